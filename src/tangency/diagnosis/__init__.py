"""What a network does when it is trained, held against what its kernels say."""

from tangency.diagnosis.harmonics import kernel_profile, learning_order
from tangency.diagnosis.training_check import training_check
from tangency.diagnosis.training_result import TrainingCheck

__all__ = [
    "TrainingCheck",
    "kernel_profile",
    "learning_order",
    "training_check",
]
