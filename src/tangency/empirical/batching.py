"""A function of one example applied to all."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["each"]


def each(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """`function` of every row of `values`, stacked: at once by `torch.func.vmap`, or one after the
    other where an operation has no batching rule.
    """
    try:
        with warnings.catch_warnings():
            # Slow rules give exact results, and the user can do nothing about them.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            result: Tensor = torch.func.vmap(function)(*values)
        return result
    except RuntimeError:
        return torch.stack([function(*row) for row in zip(*values, strict=True)])
