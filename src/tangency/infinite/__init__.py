"""The infinite-width limit of a module: its NNGP and NTK."""

from tangency.infinite.init import Init, NotIidWarning
from tangency.infinite.kernel import InfiniteKernel

__all__ = ["InfiniteKernel", "Init", "NotIidWarning"]
