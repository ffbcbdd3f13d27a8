"""What a network does when it is trained, held against what its kernels say."""

from tangency.diagnosis.finite_width import (
    WidthStudy,
    width_study,
)
from tangency.diagnosis.harmonics import kernel_profile, learning_order
from tangency.diagnosis.laziness import (
    ScaledModel,
    mean_field,
    scaled,
)
from tangency.diagnosis.monitor import (
    Course,
    Monitor,
    monitor_checkpoints,
)
from tangency.diagnosis.training_check import training_check
from tangency.diagnosis.training_result import TrainingCheck

__all__ = [
    "Course",
    "Monitor",
    "ScaledModel",
    "TrainingCheck",
    "WidthStudy",
    "kernel_profile",
    "learning_order",
    "mean_field",
    "monitor_checkpoints",
    "scaled",
    "training_check",
    "width_study",
]
