"""Generated C code for the infinite-width recursion on CPUs, slice by slice, in cache."""

from tangency.infinite.fused.execution import FusedKernel
from tangency.infinite.fused.fusion import Fusion
from tangency.infinite.fused.graph import NotFusable

__all__ = ["FusedKernel", "Fusion", "NotFusable"]
