"""Operations that take a part of a tensor."""

from __future__ import annotations

import itertools

from torch import fx

from tangency.program.axes import AxisError, Dim, Shape, position, resolve, shape_of, width
from tangency.program.axis_rules.registry import Axes, axis_rule, dimension, first
from tangency.program.operations import argument

__all__ = ["cut", "of_one_kind", "sliced"]


def of_one_kind(dim: Dim) -> Dim:
    """The atoms of a dimension that is to be indexed: all of them positions, or all widths."""
    atoms = resolve(dim)
    kinds = {axis.kind for axis in atoms}
    if "batch" in kinds:
        raise AxisError("indexing the batch mixes examples")
    if len(kinds) > 1:
        raise AxisError("indexing a dimension that merges positions with a width is not known")
    return atoms


@axis_rule("select")
def select(node: fx.Node, axes: Axes) -> Shape:
    shape, d = axes(first(node)), dimension(node, 1, "dim")
    of_one_kind(shape[d])
    return (*shape[:d], *shape[d + 1 :])


def cut(dim: Dim, part: range) -> Dim:
    """A part of a dimension; equal parts of one axis are the same axis."""
    atoms = of_one_kind(dim)
    if not atoms:
        return ()
    outer, *inner = atoms
    make = width if outer.kind == "width" else position
    return outer.cuts.setdefault((part, *inner), make(len(part)))


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
    of_one_kind(shape[d])
    return ((*shape[:d], *shape[d + 1 :]),) * len(node.meta["val"])
