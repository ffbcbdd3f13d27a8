"""What is cheapest: the path of a weight's contraction, and the size of a tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MEMORY_BUDGET", "Layout", "Path", "SiteSize", "cheapest", "flops", "tile_size"]

Layout = Literal["full", "trace", "diagonal"]
Path = Literal["gram", "gradients"]

MEMORY_BUDGET = 2**30
"""Bytes that the features of the tiles in hand may take (the kernel matrix itself comes on top)."""

WORKING_SET = 2**25
"""Bytes of one intermediate of a contraction (32 MiB: larger ones only leave the cache)."""

LARGEST_TILE = 512
"""Examples per tile at most: large enough for fast matrix products, small enough that a symmetric
matrix saves nearly half."""

ELEMENTWISE = 8
"""Multiply-adds of a matrix product that take the time of one elementwise multiply-add (memory
traffic)."""


@dataclass(frozen=True)
class SiteSize:
    """Sizes of a weight's contraction: a tile of `rows` x `columns` examples."""

    rows: int
    columns: int
    out: int
    positions: int
    inputs: int
    width: int


def flops(size: SiteSize, layout: Layout) -> dict[Path, int]:
    """Multiply-adds of each path.

    gram: sum_pp' (a_p . a'_p') (g_p . g'_p'), two Gram matrices over (example, position).
    gradients: J = sum_p g_p a_p^T for each example, then one matrix product of Jacobians.
    """
    pairs = size.rows * size.columns
    outputs = size.out**2 if layout == "full" else size.out
    products = 1 if layout == "trace" else outputs
    gram = pairs * size.positions**2 * (size.inputs + outputs * size.width + ELEMENTWISE * products)
    weight = size.inputs * size.width
    gradients = (size.rows + size.columns) * size.out * (
        size.positions + ELEMENTWISE
    ) * weight + pairs * outputs * weight
    return {"gram": gram, "gradients": gradients}


def cheapest(size: SiteSize, layout: Layout) -> Path:
    """The path with the fewest multiply-adds."""
    cost = flops(size, layout)
    return "gram" if cost["gram"] <= cost["gradients"] else "gradients"


def tile_size(bytes_per_example: int, budget: int = MEMORY_BUDGET) -> int:
    """Examples per tile so that the features of two tiles fit in `budget` bytes, at least one."""
    return max(1, min(LARGEST_TILE, budget // (2 * max(bytes_per_example, 1))))
