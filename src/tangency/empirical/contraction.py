"""Products of per-example gradients, summed over the entries of one tensor of parameters.

`Gradients` have a leading batch of independent problems: a Gram matrix is one problem with many
rows and columns, the diagonal of a kernel is many problems with one row and one column. All
functions return (b, rows, columns, *outputs) with *outputs = () for "trace" (the *sum* over
outputs), (out,) for "diagonal", (out, out) for "full".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tangency.empirical.costs import WORKING_SET, Layout, cheapest, term
from tangency.empirical.gradients import Factors, Gradients, Rows

__all__ = ["by_gradients", "by_gram", "of_explicit", "of_factors", "of_rows", "product"]


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
    _, r, out = rows.lead
    path = cheapest(term(rows), r, columns.lead[1], out, layout)
    if rows.groups > 1:
        left = rows.explicit()
        return of_explicit(left, left if columns is rows else columns.explicit(), layout)
    return (by_gram if path == "gram" else by_gradients)(rows, columns, layout)


def by_gradients(rows: Factors, columns: Factors, layout: Layout) -> Tensor:
    """Products of matrices that are written out, a slice of their input dimension at a time."""
    b, r, out = rows.lead
    n = r + (0 if columns is rows else columns.lead[1])
    width = rows.cotangents.shape[-1]
    row_bytes = n * b * max(out * width, rows.cotangents.shape[-2]) * rows.inputs.element_size()
    step = max(1, WORKING_SET // row_bytes)
    mine = _written_out(rows, step)
    yours = None if columns is rows else _written_out(columns, step)
    total: Tensor | None = None
    for left in mine:
        block = of_explicit(left, left if yours is None else next(yours), layout)
        total = block if total is None else total.add_(block)
    assert total is not None, "a weight with no inputs has no site"
    return total


def _written_out(factors: Factors, step: int) -> Iterator[Tensor]:
    """Gradients with respect to the weight's columns, `step` or so at a time: (b, n, out, size)."""
    out = factors.cotangents.shape[2]
    # One matrix for each example, (b, n, out * width, positions).
    cotangents = factors.cotangents[:, :, :, 0].mT.flatten(2, 3)
    for inputs in factors.slices(step):
        by_output: Tensor = (cotangents @ inputs).unflatten(2, (out, -1))
        yield by_output.flatten(3)


def by_gram(rows: Factors, columns: Factors, layout: Layout) -> Tensor:
    """Gram matrices of inputs and cotangents over positions: (a_p . a'_p') (g_p . g'_p')."""
    b, _, _, _, p, _ = rows.cotangents.shape
    inputs = columns.expanded()[:, :, 0]

    def alike(part: slice) -> Tensor:
        mine = rows.part(part).expanded()[:, :, 0]
        products = mine.flatten(1, 2) @ inputs.flatten(1, 2).mT
        blocks: Tensor = products.view(b, -1, p, inputs.shape[1], p)
        return blocks

    return _weighted_gram(
        rows.cotangents[:, :, :, 0], columns.cotangents[:, :, :, 0], layout, alike
    )


# -- tables -----------------------------------------------------------------------------------


def of_rows(rows: Rows, columns: Rows, layout: Layout) -> Tensor:
    """Products of gradients of tables: only equal rows meet."""
    _, r, out = rows.lead
    if cheapest(term(rows), r, columns.lead[1], out, layout) == "gradients":
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
