"""Angles between the inputs: where the recursion starts, and where precision is won or lost."""

from __future__ import annotations

import math

from torch import Tensor

from tangency.infinite.layout import Layout, place

__all__ = ["input_versines"]

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
    if coincident:
        return (rows - columns).square().sum(-1) / 2
    tied = [layout.index("left", a) for a, _ in layout.ties]
    versine = _products(rows, columns, sorted(tied), len(layout.left)).neg_().add_(1)
    _refine(versine, rows, columns)
    return versine


def _products(rows: Tensor, columns: Tensor, tied: list[int], left: int) -> Tensor:
    """Inner products by one batched matrix product; tied dimensions are its batch."""
    rank = rows.dim() - 2
    free = [k for k in range(rank) if k not in tied]
    mine, yours = [k for k in free if k < left], [k for k in free if k >= left]
    a = rows.permute(*tied, *mine, *yours, rank, rank + 1)
    b = columns.permute(*tied, *mine, *yours, rank, rank + 1)
    batch = [rows.shape[k] for k in tied]
    n1, n2, d = rows.shape[-2], columns.shape[-2], rows.shape[-1]
    sizes_a, sizes_b = [rows.shape[k] for k in mine], [columns.shape[k] for k in yours]
    a = a.reshape(*batch, math.prod(sizes_a) * n1, d)
    b = b.reshape(*batch, math.prod(sizes_b) * n2, d)
    product = (a @ b.mT).reshape(*batch, *sizes_a, n1, *sizes_b, n2)
    now = [*tied, *mine, "n1", *yours, "n2"]
    order = [now.index(k) for k in [*range(rank), "n1", "n2"]]
    return product.permute(*order)


def _refine(versine: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Replace small versines in place by half the squared distance."""
    if not bool((versine < NEAR).any()):
        return
    near = (versine < NEAR).nonzero(as_tuple=True)
    a = rows.expand(*versine.shape[:-2], *rows.shape[-2:])
    b = columns.expand(*versine.shape[:-2], *columns.shape[-2:])
    step = max(1, _CHUNK // rows.shape[-1])
    for start in range(0, len(near[0]), step):
        *positions, i, j = (index[start : start + step] for index in near)
        difference = a[(*positions, i)] - b[(*positions, j)]
        versine[(*positions, i, j)] = difference.square().sum(-1) / 2
