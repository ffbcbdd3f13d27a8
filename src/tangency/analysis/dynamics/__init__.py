"""How a network trains whose kernel stands still: in closed form where there is one.

Everything here takes kernel matrices and targets. The loss is 1/(2n) sum_i |f(x_i) - y_i|^2 unless
another is given; one step of `torch.optim.SGD(lr=learning_rate)` is one unit of time.
"""

from tangency.analysis.dynamics.distribution import Distribution, RandomOutputs
from tangency.analysis.dynamics.ensemble import Ensemble
from tangency.analysis.dynamics.gaussian_process import GaussianProcess
from tangency.analysis.dynamics.gradient import GradientDescent, GradientFlow
from tangency.analysis.dynamics.likelihood import log_marginal_likelihood
from tangency.analysis.dynamics.loss_flow import LossFlow
from tangency.analysis.dynamics.momentum import HeavyBall, MomentumFlow, Nesterov
from tangency.analysis.dynamics.preconditioning import weighted_kernel
from tangency.analysis.dynamics.prediction import Prediction
from tangency.analysis.dynamics.stochastic import StochasticGradientDescent
from tangency.analysis.dynamics.times import Times
from tangency.analysis.dynamics.training import LinearizedTraining

__all__ = [
    "Distribution",
    "Ensemble",
    "GaussianProcess",
    "GradientDescent",
    "GradientFlow",
    "HeavyBall",
    "LinearizedTraining",
    "LossFlow",
    "MomentumFlow",
    "Nesterov",
    "Prediction",
    "RandomOutputs",
    "StochasticGradientDescent",
    "Times",
    "log_marginal_likelihood",
    "weighted_kernel",
]
