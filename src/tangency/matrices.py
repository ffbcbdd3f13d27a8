"""Products of large matrices, as fast as the machine computes them.

For float32 on processors with AVX-512, oneDNN's product is taken, by the operation that
`torch.compile` takes too: it uses these instructions on processors of every vendor, while the BLAS
behind `@` may not (measured: 2.2 times faster on an AMD EPYC, whatever the shape).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

__all__ = ["each_product", "inner_products", "linear", "long_products"]

_WORTH = 2**21
"""Multiply-adds from which on oneDNN's product is the faster one (its call takes 10 us)."""

_LONG = 16
"""How much slower the other one is where the result is small."""


def inner_products(rows: Tensor, columns: Tensor) -> Tensor:
    """Inner products of vectors, (*batch, m, size) and (*batch, n, size): (*batch, m, n)."""
    if rows.dim() == 3 and len(rows) == len(columns) == 1:
        return inner_products(rows[0], columns[0])[None]
    if rows.dim() == 2 and _plainly_onednn(rows, columns, rows.numel() * len(columns)):
        return _onednn(rows, columns)
    return rows @ columns.mT


def long_products(rows: Tensor, columns: Tensor) -> Tensor:
    """Inner products of few long vectors, shapes as of `inner_products`."""
    if rows.dim() == 3 and len(rows) == len(columns) == 1:
        return long_products(rows[0], columns[0])[None]
    if rows.dim() == 2 and _plainly_onednn(rows, columns, _LONG * rows.numel() * len(columns)):
        return _onednn(rows, columns)
    return rows @ columns.mT


def each_product(rows: Tensor, columns: Tensor) -> Tensor:
    """The same for many matrices, (batch, m, size) and (batch, n, size): one after the other where
    they are large, which leaves them in the cache.
    """
    # The other one shares the matrices among threads, each of which has one to itself.
    multiply_adds = rows.shape[1] * columns.shape[1] * rows.shape[2]
    if not _plainly_onednn(rows, columns, multiply_adds // torch.get_num_threads()):
        return rows @ columns.mT
    found = rows.new_empty(len(rows), rows.shape[1], columns.shape[1])
    for result, a, b in zip(found, rows, columns, strict=True):
        result.copy_(_onednn(a, b))
    return found


def _onednn(rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    operation = torch.ops.mkldnn._linear_pointwise
    found: Tensor = operation(_regular(rows), _regular(columns), bias, "none", [], "")
    return found


def _regular(matrix: Tensor) -> Tensor:
    """A matrix that is dense by rows or by columns, as oneDNN wants it: for a part of a larger one
    it has a reference implementation alone, a thousand times slower.
    """
    return matrix if matrix.is_contiguous() or matrix.mT.is_contiguous() else matrix.contiguous()


def _by_onednn(rows: Tensor, columns: Tensor, multiply_adds: int) -> bool:
    return (
        multiply_adds >= _WORTH
        and rows.device.type == columns.device.type == "cpu"
        and rows.dtype == columns.dtype == torch.float32
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _plainly_onednn(rows: Tensor, columns: Tensor, multiply_adds: int) -> bool:
    """The same, where no derivative is asked for: oneDNN's product has none of its own."""
    recorded = torch.is_grad_enabled() and (rows.requires_grad or columns.requires_grad)
    return (
        _by_onednn(rows, columns, multiply_adds)
        and not recorded
        and peek_interpreter_stack() is None  # no transform of torch.func
        and forward_ad._current_level < 0  # no dual numbers
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, for a weight without gradient as fast as other products."""
    constant = not (weight.requires_grad or (bias is not None and bias.requires_grad))
    matrices = x.dim() > 1 and weight.dim() == 2
    if not (constant and matrices and _by_onednn(x, weight, x.numel() * len(weight))):
        return torch.nn.functional.linear(x, weight, bias)
    return _product(x, weight, bias)


class _Product(torch.autograd.Function):
    """x weight^T + bias for x (*batch, in) and a constant weight (out, in)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = _onednn(x.flatten(0, -2), weight, bias)
        return found.view(*x.shape[:-1], len(weight))

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor
    ) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(cotangents[0], weight.mT, None), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        """Cotangents of several outputs are further rows."""
        assert in_dims[0] is not None
        return _product(x.movedim(in_dims[0], 0), weight, bias), 0


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    apply = cast(Callable[..., Tensor], _Product.apply)
    return apply(x, weight, bias)
