"""How lazy a training run was: measures of change, and a verdict with its reasons.

Lazy training is training in which the network stays its own linearisation: the kernel stands
still and predicts the outputs (Chizat, Oyallon & Bach 2019). In feature learning the kernel turns
towards the task.
"""

from tangency.analysis.regime.bootstrap import Resamples, bootstrap
from tangency.analysis.regime.measures import (
    alignment,
    failure_time,
    kernel_angle,
    kernel_distance,
    kernel_drift,
    kernel_velocity,
    parameter_movement,
    prediction_error,
    target_alignment,
)
from tangency.analysis.regime.stability import (
    Catapult,
    Edge,
    catapults,
    edge_of_stability,
    stability_limit,
)
from tangency.analysis.regime.verdict import (
    Evidence,
    Regime,
    Thresholds,
    Uncertainty,
    Verdict,
    verdict,
)

__all__ = [
    "Catapult",
    "Edge",
    "Evidence",
    "Regime",
    "Resamples",
    "Thresholds",
    "Uncertainty",
    "Verdict",
    "alignment",
    "bootstrap",
    "catapults",
    "edge_of_stability",
    "failure_time",
    "kernel_angle",
    "kernel_distance",
    "kernel_drift",
    "kernel_velocity",
    "parameter_movement",
    "prediction_error",
    "stability_limit",
    "target_alignment",
    "verdict",
]
