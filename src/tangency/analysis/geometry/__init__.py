"""Geometry of the data in the kernel: near-duplicates, conditioning, targets and their noise."""

from tangency.analysis.geometry.distances import kernel_distances
from tangency.analysis.geometry.duplicates import NearDuplicates
from tangency.analysis.geometry.label_noise import LabelNoise, label_noise
from tangency.analysis.geometry.report import Geometry, geometry
from tangency.analysis.geometry.target_fit import TargetFit

__all__ = [
    "Geometry",
    "LabelNoise",
    "NearDuplicates",
    "TargetFit",
    "geometry",
    "kernel_distances",
    "label_noise",
]
