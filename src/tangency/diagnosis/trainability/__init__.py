"""Trainability of an architecture: mean-field theory of repeated blocks, and layers measured."""

from tangency.diagnosis.trainability.conditioning import NtkDepth, ntk_against_depth
from tangency.diagnosis.trainability.initialisations import (
    Initialisation,
    Initialisations,
    initialisations,
)
from tangency.diagnosis.trainability.layers import (
    LayerLimits,
    LayerSignal,
    LayerSignals,
    layer_signals,
)
from tangency.diagnosis.trainability.maps import BlockMaps
from tangency.diagnosis.trainability.mean_field import MeanField, mean_field_theory
from tangency.diagnosis.trainability.phase_diagram import (
    PhaseDiagram,
    critical_weight,
    phase_diagram,
)
from tangency.diagnosis.trainability.propagation import Propagation
from tangency.diagnosis.trainability.repetition import RepeatedBlock, find_block
from tangency.diagnosis.trainability.trainability import Trainability, trainability
from tangency.diagnosis.trainability.verdict import DepthLimits, Judgement

__all__ = [
    "BlockMaps",
    "DepthLimits",
    "Initialisation",
    "Initialisations",
    "Judgement",
    "LayerLimits",
    "LayerSignal",
    "LayerSignals",
    "MeanField",
    "NtkDepth",
    "PhaseDiagram",
    "Propagation",
    "RepeatedBlock",
    "Trainability",
    "critical_weight",
    "find_block",
    "initialisations",
    "layer_signals",
    "mean_field_theory",
    "ntk_against_depth",
    "phase_diagram",
    "trainability",
]
