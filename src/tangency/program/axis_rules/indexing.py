"""Operations that take a part of a tensor."""

from __future__ import annotations

import itertools

from torch import fx

from tangency.program.axes import Axis, AxisError, Dim, Shape, position, resolve, shape_of, width
from tangency.program.axis_rules.registry import Axes, axis_rule, dimension, first
from tangency.program.operations import argument

__all__ = ["cut", "single", "sliced"]


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
