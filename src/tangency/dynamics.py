"""Training in closed form, by an ODE solver, and over ensembles: `tangency.analysis.dynamics`."""

from tangency.analysis.dynamics import (
    Distribution,
    Ensemble,
    GaussianProcess,
    GradientDescent,
    GradientFlow,
    HeavyBall,
    LinearizedTraining,
    LossFlow,
    MomentumFlow,
    Nesterov,
    Prediction,
    RandomOutputs,
    StochasticGradientDescent,
    Times,
    log_marginal_likelihood,
    weighted_kernel,
)

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
