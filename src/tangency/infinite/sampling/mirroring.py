"""The other half of a symmetric covariance."""

from __future__ import annotations

from torch import Tensor

from tangency.infinite.layout import Layout
from tangency.tiles import Tile

__all__ = ["is_symmetric", "mirror"]


def is_symmetric(layout: Layout) -> bool:
    """Whether the block of a value with itself stays as it is when left and right are exchanged."""
    return layout.left == layout.right and all(a is b for a, b in layout.ties)


def mirror(whole: Tensor, tile: Tile, layout: Layout) -> None:
    """Copy what lies beyond the diagonal in a tile to its mirror image, `whole` `(..., n, n)`."""
    beyond = slice(max(tile.rows.stop, tile.columns.start), tile.columns.stop)
    if beyond.start < beyond.stop:
        right = whole[..., tile.rows, beyond].transpose(-1, -2)
        whole[..., beyond, tile.rows] = layout.embed_mirrored(right, layout.mirrored)
