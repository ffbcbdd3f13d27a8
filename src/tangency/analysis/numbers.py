"""Arguments that are one number or a vector of them: times, ridges, rates, sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tangency.errors import InvalidInput

__all__ = ["as_numbers", "check_fraction", "check_rate", "check_ridge"]


def as_numbers(values: Any, name: str) -> tuple[Tensor, bool]:
    """The numbers as a vector in float64, on the CPU, and whether one was given as a scalar.

    Raises:
        InvalidInput: not real numbers in at most one dimension, or none at all.
    """
    try:
        given = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, float))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} must be numbers, got {type(values).__name__}.") from error
    if given.dim() > 1 or given.numel() == 0 or given.is_complex():
        raise InvalidInput(
            f"{name} has shape {tuple(given.shape)} and dtype {given.dtype}, but must be one real "
            "number or a vector of them."
        )
    return given.detach().cpu().double().reshape(-1), given.dim() == 0


def check_rate(learning_rate: float) -> None:
    """Refuse a learning rate that is not positive."""
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InvalidInput(f"learning_rate is {learning_rate}, but must be positive.")


def check_ridge(ridge: float, name: str = "ridge") -> None:
    """Refuse a ridge that is negative."""
    if not (math.isfinite(ridge) and ridge >= 0):
        raise InvalidInput(f"{name} is {ridge}, but must be zero or positive.")


def check_fraction(fraction: float) -> None:
    """Refuse a fraction outside (0, 1)."""
    if not 0 < fraction < 1:
        raise InvalidInput(f"fraction is {fraction}, but must lie between 0 and 1.")
