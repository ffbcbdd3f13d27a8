"""How a network trains whose kernel stands still: in closed form where there is one.

Everything here takes kernel matrices and targets. The loss is 1/(2n) sum_i |f(x_i) - y_i|^2 unless
another is given; one step of `torch.optim.SGD(lr=learning_rate)` is one unit of time.
"""

from tangency.analysis.dynamics.gradient import GradientDescent, GradientFlow
from tangency.analysis.dynamics.loss_flow import LossFlow
from tangency.analysis.dynamics.momentum import HeavyBall, MomentumFlow, Nesterov
from tangency.analysis.dynamics.prediction import Prediction
from tangency.analysis.dynamics.preconditioning import weighted_kernel
from tangency.analysis.dynamics.times import Times
from tangency.analysis.dynamics.training import LinearizedTraining

__all__ = [
    "GradientDescent",
    "GradientFlow",
    "HeavyBall",
    "LinearizedTraining",
    "LossFlow",
    "MomentumFlow",
    "Nesterov",
    "Prediction",
    "Times",
    "weighted_kernel",
]
