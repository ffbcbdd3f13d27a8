"""Maps along positions: padding, resizing, flips, shifts, cumulative sums, pixel shuffles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import fx

from tangency.program.axes import (
    AxisError,
    Dim,
    Shape,
    position,
    rebracket,
    resolve,
    shape_of,
    size_of,
    width,
)
from tangency.program.axis_rules.pooling import new_positions
from tangency.program.axis_rules.registry import Axes, axis_rule, dimension, first, refuse
from tangency.program.geometry import PADS, UPSAMPLINGS, pad_geometry, spatial_rank
from tangency.program.operations import argument, base_name


@axis_rule(*UPSAMPLINGS)
def resize(node: fx.Node, axes: Axes) -> Shape:
    return new_positions(node, axes, spatial_rank(node), shape_of(node))


@axis_rule(*PADS)
def pad(node: fx.Node, axes: Axes) -> Shape:
    """Padded (or cropped) dimensions are new."""
    amounts = pad_geometry(node).amounts
    shape, sizes = axes(first(node)), shape_of(node)
    refuse(_moved(shape, amounts), ("batch",), "padding the batch invents examples")
    triples = zip(shape, sizes, amounts, strict=True)
    return tuple(dim if pair == (0, 0) else _like(dim, size) for dim, size, pair in triples)


def _moved(shape: Shape, amounts: Sequence[tuple[int, int]]) -> list[Dim]:
    return [dim for dim, pair in zip(shape, amounts, strict=True) if pair != (0, 0)]


def _like(dim: Dim, size: int) -> Dim:
    """A new dimension of another size: a width if the old one has width."""
    has_width = any(axis.kind == "width" for axis in resolve(dim))
    return width(size) if has_width else position(size)


@axis_rule("flip", "roll")
def rearrange(node: fx.Node, axes: Axes) -> Shape:
    shape = list(axes(first(node)))
    given = argument(node, 1 if base_name(node) == "flip" else 2, "dims", ())
    dims = (given,) if isinstance(given, int) else cast(Sequence[int], given)
    if not dims:
        raise AxisError("rolling a tensor as if it were flat is not known")
    for d in dims:
        shape[d] = _renewed(shape[d], axes.executed(first(node)))
    return tuple(shape)


@axis_rule("cumsum", "cumprod", "logcumsumexp")
def cumulate(node: fx.Node, axes: Axes) -> Shape:
    shape, d = list(axes(first(node))), dimension(node, 1, "dim")
    shape[d] = _renewed(shape[d], axes.executed(first(node)))
    return tuple(shape)


def _renewed(dim: Dim, executed: bool) -> Dim:
    """A new position dimension of the same size."""
    if not executed:
        refuse([dim], ("width",), "the order of coordinates along a width has no meaning")
    refuse([dim], ("batch",), "this mixes examples")
    return position(size_of(resolve(dim)))


@axis_rule("pixel_shuffle")
def pixel_shuffle(node: fx.Node, axes: Axes) -> Shape:
    """(.., C r r, H, W) to (.., C, H r, W r): a part of the width becomes positions.

    Coordinates of a width at different places of a pixel are independent copies, so that part is a
    *new* position axis, the inner one of each spatial dimension.
    """
    factor = cast(int, argument(node, 1, "upscale_factor"))
    *lead, channels, height, columns = axes(first(node))
    inner = shape_of(node)[-3]
    outer, _, _ = rebracket(channels, (inner, factor, factor))
    return (*lead, outer, (*height, *position(factor)), (*columns, *position(factor)))


@axis_rule("pixel_unshuffle")
def pixel_unshuffle(node: fx.Node, axes: Axes) -> Shape:
    """(.., C, H r, W r) to (.., C r r, H, W): the places inside a pixel join the channels."""
    factor = cast(int, argument(node, 1, "downscale_factor"))
    *lead, channels, height, columns = axes(first(node))
    sizes = shape_of(node)[-2:]
    rows, row = rebracket(height, (sizes[0], factor))
    places, place = rebracket(columns, (sizes[1], factor))
    return (*lead, (*channels, *row, *place), rows, places)


@axis_rule("channel_shuffle")
def channel_shuffle(node: fx.Node, axes: Axes) -> Shape:
    """(n, g * c, ...) to (n, c * g, ...)."""
    batch, channels, *spatial = axes(first(node))
    groups = cast(int, argument(node, 1, "groups"))
    outer, inner = rebracket(channels, (groups, size_of(resolve(channels)) // groups))
    return (batch, (*inner, *outer), *spatial)
