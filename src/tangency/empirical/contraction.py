"""Products of per-example gradients, summed over the entries of one tensor of parameters.

`Gradients` have a leading batch of independent problems: a Gram matrix is one problem with many
rows and columns, the diagonal of a kernel is many problems with one row and one column. All
functions return (b, rows, columns, *outputs) with *outputs = () for "trace" (the *sum* over
outputs), (out,) for "diagonal", (out, out) for "full".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tangency.empirical.gradients import Factors, Gradients, Rows
from tangency.empirical.plan import WORKING_SET, Layout, SiteSize, cheapest

__all__ = ["of_explicit", "of_factors", "of_rows", "product"]


def product(rows: Sequence[Gradients], columns: Sequence[Gradients], layout: Layout) -> Tensor:
    """Products of two sums of gradients: all pairs of terms."""
    blocks = [_pair(u, v, layout) for u in rows for v in columns]
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block
    return total


def _pair(u: Gradients, v: Gradients, layout: Layout) -> Tensor:
    if isinstance(u, Factors) and isinstance(v, Factors):
        return of_factors(u, v, layout)
    if isinstance(u, Rows) and isinstance(v, Rows):
        return of_rows(u, v, layout)
    if isinstance(u, Factors) and isinstance(v, Rows):
        return _of_factors_and_rows(u, v, layout)
    if isinstance(u, Rows) and isinstance(v, Factors):
        mirrored = _of_factors_and_rows(v, u, layout).transpose(1, 2)
        return mirrored.transpose(-1, -2) if layout == "full" else mirrored
    left = u.explicit()
    return of_explicit(left, left if v is u else v.explicit(), layout)


def of_explicit(rows: Tensor, columns: Tensor, layout: Layout) -> Tensor:
    """Products of gradients written out, (b, rows, out, size) and (b, columns, out, size)."""
    if layout == "trace":
        return rows.flatten(2) @ columns.flatten(2).mT
    if layout == "diagonal":
        return (rows.transpose(1, 2) @ columns.transpose(1, 2).mT).movedim(1, -1)
    b, r, out, _ = rows.shape
    block = rows.flatten(1, 2) @ columns.flatten(1, 2).mT
    return block.view(b, r, out, -1, out).transpose(2, 3)


# -- matrices ---------------------------------------------------------------------------------


def of_factors(rows: Factors, columns: Factors, layout: Layout) -> Tensor:
    """Products of gradients in factors, by the cheaper path."""
    if rows.groups > 1:
        left = rows.explicit()
        return of_explicit(left, left if columns is rows else columns.explicit(), layout)
    a, g = rows.expanded()[:, :, 0], rows.cotangents[:, :, :, 0]
    mine = (a, g)
    yours = mine
    if columns is not rows:
        yours = (columns.expanded()[:, :, 0], columns.cotangents[:, :, :, 0])
    _, r, out, positions, width = g.shape
    size = SiteSize(r, yours[0].shape[1], out, positions, a.shape[-1], width)
    path = _by_gram if cheapest(size, layout) == "gram" else _by_gradients
    return path(mine, yours, layout)


Pair = tuple[Tensor, Tensor]
"""Inputs (b, n, positions, in) and cotangents (b, n, out, positions, width)."""


def _by_gradients(rows: Pair, columns: Pair, layout: Layout) -> Tensor:
    """Explicit gradients, a slice of the input dimension at a time."""
    b, r, out, _, width = rows[1].shape
    row_bytes = (r + columns[0].shape[1]) * b * out * width * rows[0].element_size()
    step = max(1, WORKING_SET // row_bytes)
    left, right = _matrix(rows), None if columns is rows else _matrix(columns)
    total: Tensor | None = None
    for start in range(0, rows[0].shape[-1], step):
        part = slice(start, start + step)
        mine = _gradients(left, part, out)
        yours = mine if right is None else _gradients(right, part, out)
        block = of_explicit(mine, yours, layout)
        total = block if total is None else total.add_(block)
    assert total is not None, "a weight with no inputs has no site"
    return total


def _matrix(factors: Pair) -> Pair:
    """The cotangents as (b, n, out * width, positions): one matrix for each example."""
    return factors[0], factors[1].mT.flatten(2, 3)


def _gradients(factors: Pair, part: slice, out: int) -> Tensor:
    """Gradients with respect to the weight's columns `part`: (b, n, out, width * len(part))."""
    gradient = factors[1] @ factors[0][..., part]
    by_output: Tensor = gradient.unflatten(2, (out, -1))
    return by_output.flatten(3)


def _by_gram(rows: Pair, columns: Pair, layout: Layout) -> Tensor:
    """Gram matrices of inputs and cotangents over positions: (a_p . a'_p') (g_p . g'_p')."""

    def alike(part: slice) -> Tensor:
        b, _, p, _ = rows[0].shape
        inputs = rows[0][:, part].flatten(1, 2) @ columns[0].flatten(1, 2).mT
        blocks: Tensor = inputs.view(b, -1, p, columns[0].shape[1], p)
        return blocks

    return _weighted_gram(rows[1], columns[1], layout, alike)


# -- tables -----------------------------------------------------------------------------------


def of_rows(rows: Rows, columns: Rows, layout: Layout) -> Tensor:
    """Products of gradients of tables: only equal rows meet."""
    p, q = rows.indices.shape[2], columns.indices.shape[2]
    if rows.rows < p * q:
        left = rows.explicit()
        return of_explicit(left, left if columns is rows else columns.explicit(), layout)

    def alike(part: slice) -> Tensor:
        mine = rows.indices[:, part, :, None, None]
        equal: Tensor = mine == columns.indices[:, None, None]
        return equal.to(rows.cotangents.dtype)

    return _weighted_gram(rows.cotangents, columns.cotangents, layout, alike)


def _of_factors_and_rows(u: Factors, v: Rows, layout: Layout) -> Tensor:
    """sum_pq g_p[i_q] (a_p . h_q), with rows i_q and cotangents h_q of the table."""
    a, g, h = u.expanded()[:, :, 0], u.cotangents[:, :, :, 0], v.cotangents
    b, r, out, p, _ = g.shape
    c, q = v.indices.shape[1:]
    step = max(1, WORKING_SET // (2 * b * out * p * c * q * g.element_size()))
    equation = {"trace": "brkpcq,brpckq->brc", "diagonal": "brkpcq,brpckq->brck"}
    index = v.indices.reshape(b, 1, 1, 1, c * q)
    blocks = []
    for i in range(0, r, step):
        part = g[:, i : i + step]
        chosen = part.gather(-1, index.expand(*part.shape[:-1], -1)).unflatten(-1, (c, q))
        products = torch.einsum("brpd,bclqd->brpclq", a[:, i : i + step], h)
        blocks.append(torch.einsum(equation.get(layout, "brkpcq,brpclq->brckl"), chosen, products))
    return torch.cat(blocks, dim=1)


# -- both -------------------------------------------------------------------------------------


def _weighted_gram(
    rows: Tensor, columns: Tensor, layout: Layout, alike: Callable[[slice], Tensor]
) -> Tensor:
    """sum_pp' s_pp' (g_p . g'_p') for cotangents (b, n, out, positions, width), a slice of the rows
    at a time; `alike` gives s, (b, rows, positions, columns, positions).
    """
    b, r, out, p, _ = rows.shape
    outputs = {"trace": 1, "diagonal": out, "full": out**2}[layout]
    pairs = b * columns.shape[1] * p * columns.shape[3]
    step = max(1, WORKING_SET // (pairs * outputs * rows.element_size()))
    parts = [slice(i, i + step) for i in range(0, r, step)]
    blocks = [_weighted(rows[:, part], columns, layout, alike(part)) for part in parts]
    return torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]


def _weighted(g: Tensor, h: Tensor, layout: Layout, alike: Tensor) -> Tensor:
    b, r, out, p, _ = g.shape
    c, q = h.shape[1], h.shape[3]
    if layout == "trace":
        left = g.transpose(2, 3).flatten(3).flatten(1, 2)
        right = h.transpose(2, 3).flatten(3).flatten(1, 2)
        cotangents = (left @ right.mT).view(b, r, p, c, q)
        return cotangents.mul_(alike).sum(dim=(2, 4))
    if layout == "diagonal":
        left, right = (v.transpose(1, 2).flatten(2, 3) for v in (g, h))
        cotangents = (left @ right.mT).view(b, out, r, p, c, q)
        return cotangents.mul_(alike.unsqueeze(1)).sum(dim=(3, 5)).movedim(1, -1)
    cotangents = (g.flatten(1, 3) @ h.flatten(1, 3).mT).view(b, r, out, p, c, out, q)
    weighted = cotangents.mul_(alike[:, :, None, :, :, None])
    return weighted.sum(dim=(3, 6)).transpose(2, 3)
