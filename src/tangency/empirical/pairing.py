"""Products of gradients by all pairs of positions, a tile of examples at a time.

A gradient is sum_p g_p a_p^T; its product with another one is sum_pp' s_pp' (g_p . g'_p') with the
inner products s_pp' = a_p . a'_p' of what the parameter is multiplied by.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from tangency.empirical.costs import CACHED, WORKING_SET, Layout
from tangency.matrices import inner_products, long_products

__all__ = ["Alike", "Weigh", "applied", "mirrored", "over_pairs", "pieces", "weighted"]

Alike: TypeAlias = Callable[[slice, slice], Tensor]
"""s for some rows and columns: (b, rows, positions, columns, positions)."""

Weigh: TypeAlias = Callable[[Tensor, Tensor, Layout, Tensor], Tensor]
"""Cotangents (b, rows, out, positions, width), those of columns, and s: their products."""

_LARGE = 2**24
"""Multiply-adds of a symmetric matrix that is worth computing by halves."""


def pieces(n: int, size: int) -> list[slice]:
    """n things in slices of nearly equal length, none longer than `size`."""
    count = -(-n // size)
    edges = [i * n // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def mirrored(block: Tensor, layout: Layout) -> Tensor:
    """Products of columns and rows, of those of rows and columns."""
    found = block.transpose(1, 2)
    return found.transpose(-1, -2) if layout == "full" else found


def over_pairs(
    rows: Tensor,
    columns: Tensor | None,
    layout: Layout,
    alike: Alike,
    weigh: Weigh,
    *,
    expanded: int,
) -> Tensor:
    """sum_pp' s_pp' (g_p . g'_p') of cotangents (b, n, out, positions, width); without `columns`
    of all pairs of `rows`, each computed once. `expanded` numbers make `alike` of one example.
    """
    right = rows if columns is None else columns
    b, r, out, p, width = rows.shape
    c, q = right.shape[1], right.shape[3]
    outputs = {"trace": (), "diagonal": (out,), "full": (out, out)}[layout]
    numbers = WORKING_SET // (b * rows.element_size())
    # Numbers that exist at a time for a pair of examples, and for an example.
    products = 1 if weigh is applied else math.prod(outputs)
    single = max(expanded, p * width)
    side = max(1, min(int((numbers / (p * q * products)) ** 0.5), numbers // single))
    if columns is None and r * c * p * q * products * width > _LARGE:
        side = min(side, max(2, -(-r // 4)))
    found = rows.new_empty(b, r, c, *outputs)
    for mine in pieces(r, side):
        for yours in pieces(c, side):
            if columns is None and yours.start < mine.start:
                continue
            block = weigh(rows[:, mine], right[:, yours], layout, alike(mine, yours))
            found[:, mine, yours] = block
            if columns is None and yours.start > mine.start:
                found[:, yours, mine] = mirrored(block, layout)
    return found


def weighted(g: Tensor, h: Tensor, layout: Layout, alike: Tensor) -> Tensor:
    """All products of cotangents, each weighted by s."""
    b, r, out, p, _ = g.shape
    c, q = h.shape[1], h.shape[3]
    if layout == "trace":
        left = g.transpose(2, 3).flatten(3).flatten(1, 2)
        right = h.transpose(2, 3).flatten(3).flatten(1, 2)
        cotangents = inner_products(left, right).view(b, r, p, c, q)
        return cotangents.mul_(alike).sum(dim=(2, 4))
    if layout == "diagonal":
        left, right = (v.transpose(1, 2).flatten(2, 3) for v in (g, h))
        cotangents = (left @ right.mT).view(b, out, r, p, c, q)
        return cotangents.mul_(alike.unsqueeze(1)).sum(dim=(3, 5)).movedim(1, -1)
    products = inner_products(g.flatten(1, 3), h.flatten(1, 3))
    cotangents = products.view(b, r, out, p, c, out, q)
    by_pair = cotangents.mul_(alike[:, :, None, :, :, None]).sum(dim=(3, 6))
    return by_pair.transpose(2, 3)


def applied(g: Tensor, h: Tensor, layout: Layout, alike: Tensor) -> Tensor:
    """s of a pair of examples applied to the cotangents of the column, and the products of the
    row's with these: as many pairs at a time as stay in the cache.
    """
    b, r, out, p, width = g.shape
    c = h.shape[1]
    found = g.new_empty(b, r, c, out, out)
    # Positions last: (b, n, out, width * positions) and (b, n, out * width, positions).
    left, right = g.mT.flatten(3), h.mT.flatten(2, 3)
    rows = pieces(r, max(1, CACHED // (out * width * p * g.element_size())))
    for problem, j, part in itertools.product(range(b), range(c), rows):
        summed = inner_products(right[problem, j : j + 1], alike[problem, part, :, j])
        products = long_products(left[problem, part], summed.view(-1, out, width * p))
        found[problem, part, j] = products
    return found
