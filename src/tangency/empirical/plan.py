"""Sizes of batches within memory."""

from __future__ import annotations

__all__ = ["MEMORY_BUDGET", "tile_size"]

MEMORY_BUDGET = 2**30
"""Bytes that the features of the tiles in hand may take (the kernel matrix itself comes on top)."""

LARGEST_TILE = 512
"""Examples per tile at most."""


def tile_size(bytes_per_example: int, budget: int = MEMORY_BUDGET) -> int:
    """Examples per tile so that the features of two tiles fit in `budget` bytes, at least one."""
    return max(1, min(LARGEST_TILE, budget // (2 * max(bytes_per_example, 1))))
