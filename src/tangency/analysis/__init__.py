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
    Verdict,
    alignment,
    kernel_drift,
    prediction_error,
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
    "Verdict",
    "alignment",
    "kernel_drift",
    "kernel_matrix",
    "power_law_tail",
    "prediction_error",
    "spectrum",
    "target_alignment",
    "verdict",
]
