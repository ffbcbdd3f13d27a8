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
    GradientDescent,
    GradientFlow,
    KernelMatrix,
    PowerLawTail,
    Prediction,
    Spectrum,
    Verdict,
    alignment,
    kernel_drift,
    kernel_matrix,
    power_law_tail,
    spectrum,
    target_alignment,
)
from tangency.diagnosis import TrainingCheck, training_check
from tangency.empirical import EmpiricalKernel, linearize, taylor
from tangency.infinite import AccuracyWarning, InfiniteKernel, Init, NotIidWarning, activation
from tangency.kernel_pair import KernelPair

__version__ = version("tangency")

__all__ = [
    "AccuracyWarning",
    "EmpiricalKernel",
    "GradientDescent",
    "GradientFlow",
    "InfiniteKernel",
    "Init",
    "KernelMatrix",
    "KernelPair",
    "NotIidWarning",
    "PowerLawTail",
    "Prediction",
    "Spectrum",
    "TrainingCheck",
    "Verdict",
    "__version__",
    "activation",
    "alignment",
    "errors",
    "kernel_drift",
    "kernel_matrix",
    "linearize",
    "power_law_tail",
    "program",
    "spectrum",
    "target_alignment",
    "taylor",
    "training_check",
]
