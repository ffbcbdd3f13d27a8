"""Operations that reshape, reorder, select and join."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

from torch import fx

from tangency.program.axes import (
    Axis,
    AxisError,
    Dim,
    Shape,
    position,
    rebracket,
    resolve,
    shape_of,
    width,
)
from tangency.program.axis_rules.elementwise import broadcast
from tangency.program.axis_rules.registry import Axes, axis_rule, dimension, first
from tangency.program.operations import argument

__all__ = ["cut", "single", "sliced"]


@axis_rule("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
def reshape(node: fx.Node, axes: Axes) -> Shape:
    return rebracket([a for dim in axes(first(node)) for a in dim], shape_of(node))


@axis_rule("permute")
def permute(node: fx.Node, axes: Axes) -> Shape:
    shape = axes(first(node))
    order = cast(Sequence[int], argument(node, 1, "dims"))
    return tuple(shape[d] for d in order)


@axis_rule("transpose")
def transpose(node: fx.Node, axes: Axes) -> Shape:
    shape = list(axes(first(node)))
    a, b = dimension(node, 1, "dim0"), dimension(node, 2, "dim1")
    shape[a], shape[b] = shape[b], shape[a]
    return tuple(shape)


@axis_rule("t", "numpy_T")
def reverse(node: fx.Node, axes: Axes) -> Shape:
    return tuple(reversed(axes(first(node))))


@axis_rule("expand")
def expand(node: fx.Node, axes: Axes) -> Shape:
    sizes = shape_of(node)
    shape = axes(first(node))
    padded = (((),) * (len(sizes) - len(shape))) + tuple(shape)
    for dim, size in zip(padded, sizes, strict=True):
        if not resolve(dim) and size > 1:
            raise AxisError("expanding a dimension of size 1 is not known")
    return padded


def single(dim: Dim) -> Axis:
    """The one atom of a dimension that is to be indexed."""
    atoms = resolve(dim)
    if len(atoms) != 1:
        raise AxisError("indexing a dimension that was made by merging several axes is not known")
    if atoms[0].kind == "batch":
        raise AxisError("indexing the batch mixes examples")
    return atoms[0]


@axis_rule("select")
def select(node: fx.Node, axes: Axes) -> Shape:
    shape, d = axes(first(node)), dimension(node, 1, "dim")
    if resolve(shape[d]):
        single(shape[d])
    return (*shape[:d], *shape[d + 1 :])


def cut(dim: Dim, part: range) -> Dim:
    """A part of a dimension; equal parts of one axis are the same axis."""
    axis = single(dim)
    make = width if axis.kind == "width" else position
    return axis.cuts.setdefault(part, make(len(part)))


@axis_rule("slice")
def slice_(node: fx.Node, axes: Axes) -> Shape:
    shape, d = list(axes(first(node))), dimension(node, 1, "dim", 0)
    before = shape_of(first(node))[d]
    if shape_of(node)[d] != before:
        shape[d] = cut(shape[d], sliced(node, before))
    return tuple(shape)


def sliced(node: fx.Node, size: int) -> range:
    """The indices that a `slice` node takes of a dimension."""
    start, stop = argument(node, 2, "start"), argument(node, 3, "end")
    step = argument(node, 4, "step", 1)
    return range(*slice(start, stop, step).indices(size))


@axis_rule("split", "split_with_sizes", "chunk")
def split(node: fx.Node, axes: Axes) -> tuple[Shape, ...]:
    shape, d = axes(first(node)), dimension(node, 2, "dim", 0)
    edges = [0, *itertools.accumulate(int(piece.shape[d]) for piece in node.meta["val"])]
    parts = [range(start, stop) for start, stop in itertools.pairwise(edges)]
    return tuple((*shape[:d], cut(shape[d], part), *shape[d + 1 :]) for part in parts)


@axis_rule("unbind")
def unbind(node: fx.Node, axes: Axes) -> tuple[Shape, ...]:
    shape, d = axes(first(node)), dimension(node, 1, "dim", 0)
    single(shape[d])
    return ((*shape[:d], *shape[d + 1 :]),) * len(node.meta["val"])


@axis_rule("cat")
def cat(node: fx.Node, axes: Axes) -> Shape:
    pieces = [axes(n) for n in cast(Sequence[fx.Node], node.args[0])]
    rank = len(pieces[0])
    d = cast(int, argument(node, 1, "dim", 0)) % rank
    kinds = {axis.kind for piece in pieces for axis in resolve(piece[d])}
    if "batch" in kinds:
        raise AxisError("concatenating along the batch mixes examples")
    shape = list(broadcast([(*p[:d], (), *p[d + 1 :]) for p in pieces]))
    size = shape_of(node)[d]
    shape[d] = width(size) if "width" in kinds else position(size)
    return tuple(shape)


@axis_rule("stack")
def stack(node: fx.Node, axes: Axes) -> Shape:
    pieces = [axes(n) for n in cast(Sequence[fx.Node], node.args[0])]
    shape = list(broadcast(pieces))
    d = cast(int, argument(node, 1, "dim", 0)) % (len(shape) + 1)
    shape.insert(d, position(len(pieces)))
    return tuple(shape)
