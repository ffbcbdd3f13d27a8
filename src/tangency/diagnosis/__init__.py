"""What a network does when it is trained, held against what its kernels say."""

from tangency.diagnosis.comparison import Comparison, compare
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
from tangency.diagnosis.trainability import (
    Initialisations,
    LayerSignals,
    MeanField,
    NtkDepth,
    PhaseDiagram,
    Trainability,
    critical_weight,
    initialisations,
    layer_signals,
    mean_field_theory,
    ntk_against_depth,
    phase_diagram,
    trainability,
)
from tangency.diagnosis.training_check import training_check
from tangency.diagnosis.training_result import TrainingCheck

__all__ = [
    "Comparison",
    "Course",
    "Initialisations",
    "LayerSignals",
    "MeanField",
    "Monitor",
    "NtkDepth",
    "PhaseDiagram",
    "ScaledModel",
    "Trainability",
    "TrainingCheck",
    "WidthStudy",
    "compare",
    "critical_weight",
    "initialisations",
    "kernel_profile",
    "layer_signals",
    "learning_order",
    "mean_field",
    "mean_field_theory",
    "monitor_checkpoints",
    "ntk_against_depth",
    "phase_diagram",
    "scaled",
    "trainability",
    "training_check",
    "width_study",
]
