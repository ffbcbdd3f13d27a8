"""The entries of parameters and of their gradients as real numbers.

A complex parameter is the two real ones of its real and imaginary parts, and what autograd calls
its gradient, d/d(real) + i d/d(imaginary), holds the derivatives in both. A sparse gradient is one
with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_parameter", "as_real", "real_shape"]


def as_real(values: Tensor) -> Tensor:
    """Dense real numbers: (*shape) as it is, complex ones as (*shape, 2)."""
    dense = values if values.layout == torch.strided else values.to_dense()
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense


def as_parameter(values: Tensor, parameter: Tensor) -> Tensor:
    """What `as_real` makes `values` of, in the dtype of the parameter."""
    if not parameter.is_complex():
        return values.to(parameter.dtype)
    return torch.view_as_complex(values.contiguous()).to(parameter.dtype)


def real_shape(parameter: Tensor) -> torch.Size:
    """The shape of `as_real` of the parameter."""
    return torch.Size([*parameter.shape, 2]) if parameter.is_complex() else parameter.shape
