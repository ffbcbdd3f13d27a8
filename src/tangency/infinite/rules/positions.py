"""Padding, cropping, flips, shifts, indexing, cumulative sums and patches along positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tangency.infinite.lowering import Lowering, cut_rule, rule
from tangency.infinite.rules.spatial import along, grouped, one_axis
from tangency.infinite.side import Side
from tangency.infinite.values.patches import Patches
from tangency.infinite.values.position import OUTSIDE, Mapped, Take
from tangency.infinite.values.sources import One
from tangency.infinite.values.sum import Coefficient, Sum, Term
from tangency.infinite.values.value import Value
from tangency.program.axes import Axis, Dim, Shape, resolve, shape_of, size_of
from tangency.program.geometry import PADS, PadGeometry, pad_geometry, patch_geometry
from tangency.program.operations import argument, base_name


def _source(node: fx.Node) -> fx.Node:
    return cast(fx.Node, node.args[0])


def _taken(value: Value, before: Dim, after: Dim, indices: Tensor) -> Value:
    """The positions `indices` along a dimension."""
    return along(value, before, after, partial(Take, indices=indices.tolist()))


# -- padding ----------------------------------------------------------------------------------


@rule(*PADS)
def pad(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Padded positions repeat others, or are constant; padded channels are constant."""
    geometry = pad_geometry(node)
    source, before, after = _source(node), *_shapes(lowering, node)
    front, size = _padded_width(lowering, node)
    if not front <= start < front + size:
        return Sum((), [Term(One(), geometry.value)] if geometry.value else [])
    value = lowering.strand(source, start - front, length)
    for dim, amounts in enumerate(geometry.amounts):
        if amounts != (0, 0) and not _is_width(before[dim]):
            indices = _padded(size_of(resolve(before[dim])), amounts, geometry.mode)
            value = _taken(value, before[dim], after[dim], indices)
    if geometry.mode == "constant" and geometry.value:
        border = Coefficient(_border(geometry, before, after), _padded_axes(geometry, after))
        value = Sum(value.positions, [Term(value), Term(One(), geometry.value, (border,))])
    return value


def _shapes(lowering: Lowering, node: fx.Node) -> tuple[Shape, Shape]:
    return lowering.program.axes[_source(node)], lowering.program.axes[node]


def _is_width(dim: Dim) -> bool:
    return any(axis.kind == "width" for axis in resolve(dim))


def _padded(size: int, amounts: tuple[int, int], mode: str) -> Tensor:
    """Which position of the input each position of the output shows; `OUTSIDE` for constants."""
    places = torch.arange(size, dtype=torch.float64)[None, None]
    fill = {"value": OUTSIDE} if mode == "constant" else {}
    return F.pad(places, amounts, mode, **fill).long()[0, 0]


def _padded_axes(geometry: PadGeometry, after: Shape) -> tuple[Axis, ...]:
    dims = (d for d, amounts in zip(after, geometry.amounts, strict=True) if amounts != (0, 0))
    return tuple(axis for dim in dims for axis in resolve(dim) if axis.kind == "position")


def _border(geometry: PadGeometry, before: Shape, after: Shape) -> Callable[[Side], Tensor]:
    """One on the positions that are padding, zero elsewhere, `(*padded axes, 1)`."""
    inside = torch.ones((), dtype=torch.float64)
    for dim, amounts in enumerate(geometry.amounts):
        if amounts != (0, 0) and not _is_width(before[dim]):
            size = size_of(resolve(before[dim]))
            own = (_padded(size, amounts, geometry.mode) != OUTSIDE).to(inside)
            sizes = [axis.size for axis in resolve(after[dim])]
            inside = inside[..., None] * own if sizes else inside * own[0]
            inside = inside.unflatten(-1, sizes) if len(sizes) > 1 else inside
    border = (1 - inside)[..., None]
    return lambda side: border.to(side.device)


def _padded_width(lowering: Lowering, node: fx.Node) -> tuple[int, int]:
    """How many channels are put in front, and how many there were."""
    before, _ = _shapes(lowering, node)
    front = 0
    for dim, (first, last) in zip(before, pad_geometry(node).amounts, strict=True):
        if _is_width(dim) and (first, last) != (0, 0):
            alone = lowering.program.atoms(_source(node), "width") == resolve(dim)
            if min(first, last) < 0 or not alone or pad_geometry(node).mode != "constant":
                raise lowering.unsupported(
                    node, "pads a width with other than constants, or crops it"
                )
            front = first
    return front, lowering.width(_source(node))


@cut_rule(*PADS)
def pad_cuts(lowering: Lowering, node: fx.Node) -> frozenset[int]:
    front, size = _padded_width(lowering, node)
    inner = {front + c for c in lowering.cuts(_source(node))}
    return frozenset((inner | {front, front + size}) - {0, lowering.width(node)})


# -- rearrangements ---------------------------------------------------------------------------


@rule("flip", "roll")
def rearrange(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """The operation itself, applied to the numbers of the positions, says which goes where."""
    before, after = _shapes(lowering, node)
    value = lowering.strand(_source(node), start, length)
    shifts: Sequence[int | None]
    if base_name(node) == "flip":
        dims = cast(Sequence[int], node.args[1])
        shifts = [None] * len(dims)
    else:
        shifts, dims = cast("tuple[Sequence[int], Sequence[int]]", node.args[1:3])
    for dim, shift in zip(dims, shifts, strict=True):
        places = torch.arange(size_of(resolve(before[dim])))
        indices = places.flip(0) if shift is None else places.roll(shift)
        value = _taken(value, before[dim], after[dim], indices)
    return value


@rule("cumsum")
def cumulate(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Sums over all positions up to each."""
    before, after = _shapes(lowering, node)
    dim = cast(int, argument(node, 1, "dim")) % len(before)
    matrix = torch.ones((size_of(resolve(before[dim])),) * 2, dtype=torch.float64).tril()
    value = lowering.strand(_source(node), start, length)
    return along(value, before[dim], after[dim], partial(Mapped, matrix=matrix))


# -- patches ----------------------------------------------------------------------------------


@rule("im2col")
def unfold(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Patches side by side: taps and blocks are new positions."""
    before, after = _shapes(lowering, node)
    geometry = patch_geometry(node)
    channels = len(resolve(before[1]))
    taps = iter(resolve(after[1])[channels:])
    blocks = iter(resolve(after[2]))
    value = lowering.strand(_source(node), start, length)
    for k, dim in enumerate((-2, -1)):
        size = size_of(resolve(before[dim]))
        rows = torch.arange(geometry.taps[k])[:, None] * geometry.dilation[k]
        columns = torch.arange(geometry.blocks[k])[None] * geometry.stride[k]
        indices = rows + columns - geometry.padding[k]
        indices = torch.where((indices >= 0) & (indices < size), indices, OUTSIDE)
        tap = next(taps) if geometry.taps[k] > 1 else None
        block = next(blocks) if geometry.blocks[k] > 1 else None
        value = _patches(lowering, node, value, before[dim], (tap, block), indices)
    return value


@rule("unfold")
def windows(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """`x.unfold(dim, size, step)`: windows along a dimension, their taps along a new last one."""
    before, after = _shapes(lowering, node)
    dim = cast(int, argument(node, 1, "dimension")) % len(before)
    taps, step = cast("tuple[int, int]", node.args[2:4])
    indices = torch.arange(taps)[:, None] + torch.arange(shape_of(node)[dim])[None] * step
    tap, block = (next(iter(resolve(after[d])), None) for d in (-1, dim))
    value = lowering.strand(_source(node), start, length)
    return _patches(lowering, node, value, before[dim], (tap, block), indices)


def _patches(
    lowering: Lowering,
    node: fx.Node,
    value: Value,
    dim: Dim,
    new: tuple[Axis | None, Axis | None],
    indices: Tensor,
) -> Value:
    """Positions `indices[tap][block]` of a dimension; a new axis of size one is None."""
    sizes = tuple(1 if axis is None else axis.size for axis in new)
    if sizes != tuple(indices.shape):
        raise lowering.unsupported(node, "makes patches whose taps or blocks are split afterwards")
    axis = one_axis(dim, tuple(a for a in new if a is not None))
    whole = grouped(value, dim, axis)
    tap, block = new
    if tap is None or block is None:
        return Take(whole, axis, tap or block, indices.flatten().tolist())
    return Patches(whole, axis, (tap, block), indices.tolist())


@rule("channel_shuffle")
def channel_shuffle(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Coordinates of a width of one nature are alike: their order does not matter."""
    return lowering.strand(_source(node), start, length)
