"""What follows from a kernel matrix: spectrum, training dynamics, regime.

Analyses take kernel *matrices*, (n, n) or (n, n, out, out), and real targets, (n,) or (n, out);
they never ask how the matrix was made.
"""

from tangency.analysis.dynamics import (
    GradientDescent,
    GradientFlow,
    LinearizedTraining,
    Prediction,
)
from tangency.analysis.matrix import KernelMatrix, kernel_matrix
from tangency.analysis.regime import (
    Evidence,
    Thresholds,
    Uncertainty,
    Verdict,
    alignment,
    catapults,
    edge_of_stability,
    kernel_angle,
    kernel_distance,
    kernel_drift,
    kernel_velocity,
    parameter_movement,
    prediction_error,
    stability_limit,
    target_alignment,
    verdict,
)
from tangency.analysis.spectrum import PowerLawTail, Spectrum, power_law_tail, spectrum

__all__ = [
    "Evidence",
    "GradientDescent",
    "GradientFlow",
    "KernelMatrix",
    "LinearizedTraining",
    "PowerLawTail",
    "Prediction",
    "Spectrum",
    "Thresholds",
    "Uncertainty",
    "Verdict",
    "alignment",
    "catapults",
    "edge_of_stability",
    "kernel_angle",
    "kernel_distance",
    "kernel_drift",
    "kernel_matrix",
    "kernel_velocity",
    "parameter_movement",
    "power_law_tail",
    "prediction_error",
    "spectrum",
    "stability_limit",
    "target_alignment",
    "verdict",
]
