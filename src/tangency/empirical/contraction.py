"""Products of per-example gradients, summed over the entries of one tensor of parameters.

`Gradients` have a leading batch of independent problems: a Gram matrix is one problem with many
rows and columns, the diagonal of a kernel is many problems with one row and one column. All
functions return (b, rows, columns, *outputs) with *outputs = () for "trace" (the *sum* over
outputs), (out,) for "diagonal", (out, out) for "full". Where rows and columns are the same object,
one half is computed and mirrored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tangency.empirical import pairing
from tangency.empirical.costs import WORKING_SET, WRITTEN, Layout, cheapest, term
from tangency.empirical.gradients import Factors, Gradients, Rows
from tangency.matrices import each_product, inner_products

__all__ = [
    "by_cotangents",
    "by_gradients",
    "by_gram",
    "of_explicit",
    "of_factors",
    "of_rows",
    "product",
]


def product(rows: Sequence[Gradients], columns: Sequence[Gradients], layout: Layout) -> Tensor:
    """Products of two sums of gradients: all pairs of terms."""
    blocks = []
    for i, u in enumerate(rows):
        for j, v in enumerate(columns):
            if columns is rows and j < i:  # the mirror image of an earlier one
                continue
            blocks.append(_pair(u, v, layout))
            if columns is rows and j > i:
                blocks.append(pairing.mirrored(blocks[-1], layout))
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
        return pairing.mirrored(_of_factors_and_rows(v, u, layout), layout)
    left = u.explicit()
    return of_explicit(left, left if v is u else v.explicit(), layout)


def of_explicit(rows: Tensor, columns: Tensor, layout: Layout) -> Tensor:
    """Products of gradients written out, (b, rows, out, size) and (b, columns, out, size)."""
    same = columns is rows
    if layout == "trace":
        left = rows.flatten(2)
        return _products(left, left if same else columns.flatten(2))
    if layout == "diagonal":
        left = rows.transpose(1, 2)
        return _products(left, left if same else columns.transpose(1, 2)).movedim(1, -1)
    b, r, out, _ = rows.shape
    left = rows.flatten(1, 2)
    block = _products(left, left if same else columns.flatten(1, 2))
    return block.view(b, r, out, -1, out).transpose(2, 3)


_BAND = 128
"""Vectors of a band of a symmetric product, at least."""


def _products(rows: Tensor, columns: Tensor) -> Tensor:
    """Inner products of all vectors (b, m, size) with all of (b, n, size)."""
    m = rows.shape[-2]
    bands = min(4, m // _BAND)
    if columns is not rows or rows.dim() != 3 or bands < 2:
        return inner_products(rows, columns)
    found = rows.new_empty(len(rows), m, m)
    for part in pairing.pieces(m, -(-m // bands)):
        block = inner_products(rows[:, part], rows[:, part.start :])
        found[:, part, part.start :] = block
        found[:, part.stop :, part] = block[:, :, part.stop - part.start :].mT
    return found


# -- matrices ---------------------------------------------------------------------------------


def of_factors(rows: Factors, columns: Factors, layout: Layout) -> Tensor:
    """Products of gradients in factors, by the cheapest path."""
    _, r, out = rows.lead
    path = cheapest(term(rows), r, columns.lead[1], out, layout, same=columns is rows)
    by = {"gram": by_gram, "cotangents": by_cotangents, "gradients": by_gradients}
    return by[path](rows, columns, layout)


def by_gradients(rows: Factors, columns: Factors, layout: Layout) -> Tensor:
    """Products of matrices that are written out, a slice of their input dimension at a time."""
    if rows.groups > 1:
        left = rows.explicit()
        return of_explicit(left, left if columns is rows else columns.explicit(), layout)
    b, r, out = rows.lead
    n = r + (0 if columns is rows else columns.lead[1])
    width = rows.cotangents.shape[-1]
    row_bytes = n * b * max(out * width, rows.cotangents.shape[-2]) * rows.inputs.element_size()
    step = max(1, WRITTEN // row_bytes)
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
    b, n, out = factors.lead
    # One matrix for each example, (b * n, out * width, positions).
    cotangents = factors.cotangents[:, :, :, 0].mT.flatten(2, 3).flatten(0, 1)
    for inputs in factors.slices(step):
        yield each_product(cotangents, inputs.mT.flatten(0, 1)).view(b, n, out, -1)


def by_gram(rows: Factors, columns: Factors, layout: Layout) -> Tensor:
    """Gram matrices of inputs and cotangents over positions: (a_p . a'_p') (g_p . g'_p')."""
    return _of_positions(rows, columns, layout, pairing.weighted)


def by_cotangents(rows: Factors, columns: Factors, layout: Layout) -> Tensor:
    """The Gram matrix of inputs over positions applied to the cotangents of the columns, which are
    then multiplied by those of the rows: g_p . sum_p' (a_p . a'_p') g'_p'.
    """
    assert layout == "full", "no cheaper than Gram matrices for other layouts"
    return _of_positions(rows, columns, layout, pairing.applied)


def _of_positions(rows: Factors, columns: Factors, layout: Layout, weigh: pairing.Weigh) -> Tensor:
    """Products by inner products of inputs at all pairs of positions; each group of channels is a
    problem of its own.
    """

    p, q = rows.cotangents.shape[-2], columns.cotangents.shape[-2]
    expanded = rows.inputs_length * max(p, q)
    few = columns.lead[1] * expanded * rows.inputs.element_size() <= WORKING_SET
    known: dict[tuple[bool, int, int], Tensor] = {}

    def vectors(factors: Factors, part: slice) -> Tensor:
        key = factors is columns, part.start, part.stop
        if key not in known:
            known[key] = _by_position(factors.part(part).by_group())
        return known[key]

    def alike(mine: slice, yours: slice) -> Tensor:
        left, right = vectors(rows, mine), vectors(columns, yours)
        if not few:
            known.clear()
        products = inner_products(left, right)
        return products.view(len(left), mine.stop - mine.start, p, yours.stop - yours.start, q)

    found = pairing.over_pairs(
        rows.cotangents_by_group(),
        None if columns is rows else columns.cotangents_by_group(),
        layout,
        alike,
        weigh,
        expanded=expanded,
    )
    return _over_groups(found, rows)


def _over_groups(found: Tensor, rows: Factors | Rows) -> Tensor:
    """Products of problems, (b * groups, ...), summed over the groups."""
    if rows.groups == 1:
        return found
    by_group: Tensor = found.unflatten(0, (rows.lead[0], rows.groups))
    return by_group.sum(1)


def _by_position(inputs: Tensor) -> Tensor:
    """Vectors (b, n, positions, size) as (b, n * positions, size), in the order in memory that is
    nearer to theirs.
    """
    if inputs.stride(-1) > inputs.stride(-2):
        return inputs.permute(0, 3, 1, 2).flatten(2).mT
    return inputs.flatten(1, 2)


# -- tables -----------------------------------------------------------------------------------


def of_rows(rows: Rows, columns: Rows, layout: Layout) -> Tensor:
    """Products of gradients of tables: only equal rows meet, of the same group of columns."""
    _, r, out = rows.lead
    path = cheapest(term(rows), r, columns.lead[1], out, layout, same=columns is rows)
    if path == "gradients":
        left = rows.explicit()
        return of_explicit(left, left if columns is rows else columns.explicit(), layout)

    first, second = rows.by_group(), columns.by_group()

    def alike(mine: slice, yours: slice) -> Tensor:
        equal: Tensor = first[:, mine, :, None, None] == second[:, None, None, yours]
        return equal.to(rows.cotangents.dtype)

    found = pairing.over_pairs(
        rows.cotangents_by_group(),
        None if columns is rows else columns.cotangents_by_group(),
        layout,
        alike,
        pairing.weighted,
        expanded=1,
    )
    return _over_groups(found, rows)


def _of_factors_and_rows(u: Factors, v: Rows, layout: Layout) -> Tensor:
    """sum_pq g_p[i_q] (a_p . h_q), with rows i_q and cotangents h_q of the table; for one group."""
    a, g, h = u.expanded()[:, :, 0], u.cotangents[:, :, :, 0], v.cotangents[:, :, :, 0]
    b, r, out, p, _ = g.shape
    _, c, _, q = v.indices.shape
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
