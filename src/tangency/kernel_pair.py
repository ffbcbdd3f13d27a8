"""The two kernels of one network."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["KernelPair"]


class KernelPair(NamedTuple):
    """NNGP and NTK of the same network on the same data, with equal shapes."""

    nngp: Tensor
    ntk: Tensor
