"""The infinite-width limit of a module: its NNGP and NTK."""

from tangency.infinite.activation import activation
from tangency.infinite.init import Init, NotIidWarning
from tangency.infinite.kernel import InfiniteKernel
from tangency.infinite.values.composite import AccuracyWarning

__all__ = ["AccuracyWarning", "InfiniteKernel", "Init", "NotIidWarning", "activation"]
