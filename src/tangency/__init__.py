"""Tangency: the neural tangent kernel for PyTorch.

import tangency as tg
tg.InfiniteKernel(model, example).ntk(x)      # the infinite-width limit of the module
tg.EmpiricalKernel(model).ntk(x)              # the network as it stands
tg.spectrum(K, y); tg.GradientFlow(K, y).predict(t)
tg.training_check(model, x, y)                # prediction against a real run
"""

from importlib.metadata import version

from tangency import errors, program
from tangency.analysis import (
    Eigenfunctions,
    GradientDescent,
    GradientFlow,
    HarmonicSpectrum,
    KernelMatrix,
    PatternLearning,
    PowerLawTail,
    Prediction,
    SpectralDensity,
    Spectrum,
    TopSpectrum,
    TorusSpectrum,
    Verdict,
    alignment,
    eigenfunctions,
    fourier_patterns,
    harmonic_spectrum,
    kernel_drift,
    kernel_matrix,
    pattern_learning,
    power_law_tail,
    spectral_density,
    spectrum,
    target_alignment,
    top_spectrum,
    torus_spectrum,
)
from tangency.diagnosis import (
    Course,
    Monitor,
    ScaledModel,
    TrainingCheck,
    WidthStudy,
    kernel_profile,
    learning_order,
    mean_field,
    monitor_checkpoints,
    scaled,
    training_check,
    width_study,
)
from tangency.empirical import EmpiricalKernel, linearize, taylor
from tangency.infinite import AccuracyWarning, InfiniteKernel, Init, NotIidWarning, activation
from tangency.kernel_pair import KernelPair

__version__ = version("tangency")

__all__ = [
    "AccuracyWarning",
    "Course",
    "Eigenfunctions",
    "EmpiricalKernel",
    "GradientDescent",
    "GradientFlow",
    "HarmonicSpectrum",
    "InfiniteKernel",
    "Init",
    "KernelMatrix",
    "KernelPair",
    "Monitor",
    "NotIidWarning",
    "PatternLearning",
    "PowerLawTail",
    "Prediction",
    "ScaledModel",
    "SpectralDensity",
    "Spectrum",
    "TopSpectrum",
    "TorusSpectrum",
    "TrainingCheck",
    "Verdict",
    "WidthStudy",
    "__version__",
    "activation",
    "alignment",
    "eigenfunctions",
    "errors",
    "fourier_patterns",
    "harmonic_spectrum",
    "kernel_drift",
    "kernel_matrix",
    "kernel_profile",
    "learning_order",
    "linearize",
    "mean_field",
    "monitor_checkpoints",
    "pattern_learning",
    "power_law_tail",
    "program",
    "scaled",
    "spectral_density",
    "spectrum",
    "target_alignment",
    "taylor",
    "top_spectrum",
    "torus_spectrum",
    "training_check",
    "width_study",
]
