"""Windows over positions: pooling and patches."""

from __future__ import annotations

from torch import fx

from tangency.program.axes import Shape, position, shape_of, sizes_of
from tangency.program.axis_rules.registry import Axes, axis_rule, dimension, first, refuse
from tangency.program.geometry import ADAPTIVE_POOLS, MAX_POOLS, POOLS, patch_geometry, spatial_rank

__all__ = ["new_positions"]


def new_positions(node: fx.Node, axes: Axes, rank: int, sizes: tuple[int, ...]) -> Shape:
    """The axes of the first argument with its last `rank` dimensions replaced by new positions."""
    shape = axes(first(node))
    if not axes.executed(first(node)):
        refuse(shape[-rank:], ("width",), "windows along a width mix what must go to infinity")
    refuse(shape[-rank:], ("batch",), "windows along the batch mix examples")
    return (*shape[:-rank], *(position(size) for size in sizes[-rank:]))


@axis_rule(*POOLS, *ADAPTIVE_POOLS, *MAX_POOLS)
def pool(node: fx.Node, axes: Axes) -> Shape:
    return new_positions(node, axes, spatial_rank(node), shape_of(node))


_WITH_INDICES = ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")


@axis_rule(
    *_WITH_INDICES,
    "max_pool1d_with_indices",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
)
def pool_with_indices(node: fx.Node, axes: Axes) -> tuple[Shape, ...]:
    shape = new_positions(node, axes, spatial_rank(node), sizes_of(node.meta["val"][0]))
    return shape, shape


@axis_rule("im2col")
def patches(node: fx.Node, axes: Axes) -> Shape:
    """(n, channels, H, W) to (n, channels * taps, blocks): taps and blocks are new positions."""
    batch, channels, *spatial = axes(first(node))
    refuse(spatial, ("width", "batch"), "windows must lie along positions")
    geometry = patch_geometry(node)
    taps = tuple(axis for size in geometry.taps for axis in position(size))
    blocks = tuple(axis for size in geometry.blocks for axis in position(size))
    return batch, (*channels, *taps), blocks


@axis_rule("unfold")
def windows(node: fx.Node, axes: Axes) -> Shape:
    """`x.unfold(dim, size, step)`: the dimension counts windows, a new last one their taps."""
    shape, sizes = list(axes(first(node))), shape_of(node)
    dim = dimension(node, 1, "dimension")
    if not axes.executed(first(node)):
        refuse([shape[dim]], ("width",), "windows along a width mix what must go to infinity")
    refuse([shape[dim]], ("batch",), "windows along the batch mix examples")
    shape[dim] = position(sizes[dim])
    return (*shape, position(sizes[-1]))
