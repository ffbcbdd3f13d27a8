"""Angles between the inputs: where the recursion starts, and where precision is won or lost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tangency.infinite.layout import Layout, place
from tangency.matrices import inner_products

__all__ = ["input_products", "input_versines"]

NEAR = 1e-2
"""Versines below this are computed from the difference of the vectors, not from their product."""

_CHUNK = 1 << 22


def input_versines(left: Tensor, right: Tensor, layout: Layout, *, coincident: bool) -> Tensor:
    """1 - cos of the angles between unit vectors.

    One matrix product gives them to a few units of rounding; those below `NEAR` are computed again
    as |x - x'|^2 / 2, which is relatively accurate, and exactly zero for duplicates.

    Args:
        left: `(*left positions, n1, d)`, rows of norm one or zero.
        right: `(*right positions, n2, d)`.
        layout: of the result, `(*layout, n1, n2)`, or `(*layout, n)` with `coincident`.
    """
    indices = [layout.index("left", a) for a in layout.left]
    rows = place(left, indices, layout.rank)
    columns = place(right, [layout.index("right", b) for b in layout.right], layout.rank)
    if coincident and left is right and layout.ties == {(a, a) for a in layout.left}:
        return rows.new_zeros(rows.shape[:-1], dtype=torch.float64)
    if coincident:
        return _half_squared_distance(rows.double(), columns.double())
    tied = [layout.index("left", a) for a, _ in layout.ties]
    versine = _products(rows, columns, sorted(tied), len(layout.left), from_one=True)
    if layout.rank == 0 and left.shape == right.shape and left.data_ptr() == right.data_ptr():
        versine.fill_diagonal_(2.0)  # a tile on the diagonal: leave it out of the search, ...
        _refine(versine, rows, columns)
        return versine.fill_diagonal_(0.0)  # ... each example is at no angle to itself
    _refine(versine, rows, columns)
    return versine


def _half_squared_distance(a: Tensor, b: Tensor) -> Tensor:
    return 0.5 * (a - b).square().sum(-1)


def input_products(left: Tensor, right: Tensor, layout: Layout, *, coincident: bool) -> Tensor:
    """x.x' for arguments as those of `input_versines`, of any norm."""
    indices = [layout.index("left", a) for a in layout.left]
    rows = place(left, indices, layout.rank)
    columns = place(right, [layout.index("right", b) for b in layout.right], layout.rank)
    if coincident:
        return (rows * columns).sum(-1)
    tied = [layout.index("left", a) for a, _ in layout.ties]
    return _products(rows, columns, sorted(tied), len(layout.left))


def _products(
    rows: Tensor, columns: Tensor, tied: list[int], left: int, *, from_one: bool = False
) -> Tensor:
    """x.x' (or 1 - x.x') by one batched matrix product; tied dimensions are its batch."""
    rank = rows.dim() - 2
    free = [k for k in range(rank) if k not in tied]
    mine, yours = [k for k in free if k < left], [k for k in free if k >= left]
    a = rows.permute(*tied, *mine, *yours, rank, rank + 1)
    b = columns.permute(*tied, *mine, *yours, rank, rank + 1)
    batch = [rows.shape[k] for k in tied]
    n1, n2, d = rows.shape[-2], columns.shape[-2], rows.shape[-1]
    sizes_a, sizes_b = [rows.shape[k] for k in mine], [columns.shape[k] for k in yours]
    a = a.reshape(math.prod(batch), math.prod(sizes_a) * n1, d)
    b = b.reshape(math.prod(batch), math.prod(sizes_b) * n2, d)
    if not from_one:
        product = torch.bmm(a, b.mT)
    elif batch:
        product = torch.baddbmm(a.new_ones(1, 1, 1), a, b.mT, alpha=-1)
    else:
        product = 1 - inner_products(a[0], b[0])
    product = product.reshape(*batch, *sizes_a, n1, *sizes_b, n2)
    now = [*tied, *mine, "n1", *yours, "n2"]
    order = [now.index(k) for k in [*range(rank), "n1", "n2"]]
    return product.permute(*order)


def _refine(versine: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Replace small versines in place by half the squared distance."""
    if float(versine.min()) >= NEAR:
        return
    near = (versine < NEAR).nonzero(as_tuple=True)
    a = rows.expand(*versine.shape[:-2], *rows.shape[-2:])
    b = columns.expand(*versine.shape[:-2], *columns.shape[-2:])
    step = max(1, _CHUNK // rows.shape[-1])
    for start in range(0, len(near[0]), step):
        *positions, i, j = (index[start : start + step] for index in near)
        at_left, at_right, at = (*positions, i), (*positions, j), (*positions, i, j)
        versine[at] = _half_squared_distance(a[at_left], b[at_right])
