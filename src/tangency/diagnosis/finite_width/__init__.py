"""How far a kernel is from its infinite-width limit, and the width that brings it near."""

from tangency.diagnosis.finite_width.result import PowerOfWidth, WidthNeeded, WidthStudy
from tangency.diagnosis.finite_width.study import width_study

__all__ = ["PowerOfWidth", "WidthNeeded", "WidthStudy", "width_study"]
