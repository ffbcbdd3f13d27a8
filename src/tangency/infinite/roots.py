"""A square root that can be differentiated at zero."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["root"]


def root(values: Tensor) -> Tensor:
    """sqrt(values), with the derivative 0 where the value is 0.

    A kernel has a cusp where the root of a vanishing distance enters it (the ReLU's NTK at two
    equal inputs): 0 is the mean of its one-sided derivatives, and what central differences give.
    """
    if not values.requires_grad:
        return values.sqrt()
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), 0.0)
