"""Kernels that are given as functions, of the angles between inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from tangency.errors import InvalidInput

__all__ = ["KernelFunction", "values_at"]

KernelFunction: TypeAlias = Callable[[Tensor], Tensor]
"""Points (m,) or (m, p), float64, to the kernel's values (m,)."""


def values_at(kernel_function: KernelFunction, points: Tensor) -> Tensor:
    """The values (m,) of a kernel function at `points` (m, ...), float64, on the CPU.

    Raises:
        InvalidInput: it does not give one finite number for each point.
    """
    values = kernel_function(points)
    if not isinstance(values, Tensor) or values.shape != points.shape[:1]:
        shape = getattr(values, "shape", type(values).__name__)
        raise InvalidInput(
            f"kernel_function was given points {tuple(points.shape)} and returned {shape}, but "
            "must return a tensor of one value for each row."
        )
    if not bool(torch.isfinite(values).all()):
        raise InvalidInput("kernel_function returned NaN or infinity.")
    return values.detach().cpu().double()
