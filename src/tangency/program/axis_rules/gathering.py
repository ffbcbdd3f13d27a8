"""Entries chosen by integers: `x[:, index]`, `x[arange(n), index]`, `index_select`, `gather`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import fx

from tangency.program.axes import BATCH, AxisError, Dim, Shape, resolve, shape_of
from tangency.program.axis_rules.elementwise import broadcast
from tangency.program.axis_rules.registry import Axes, axis_rule, dimension, first, refuse
from tangency.program.operations import argument, base_name

__all__ = ["indexes_examples"]

_WIDTH = "choosing coordinates of a width by a table: they are alike in the limit"
_EXAMPLES = "indexing the batch mixes examples"
_VIEWS = ("unsqueeze", "view", "reshape", "to", "_to_copy", "expand")


@axis_rule("index")
def index(node: fx.Node, axes: Axes) -> Shape:
    """Integer indices, all of them concrete; the indexed dimensions become those of the indices.

    `x[arange(n), index]` picks an entry of every example: the first index keeps the batch.
    """
    source = first(node)
    shape = axes(source)
    indices = cast("Sequence[fx.Node | None]", node.args[1])
    used = [d for d, chosen in enumerate(indices) if chosen is not None]
    nodes = [cast(fx.Node, indices[d]) for d in used]
    _check_indices(source, nodes, axes)
    own = [d for d in used if not (d == 0 and indexes_examples(cast(fx.Node, indices[0])))]
    reason = _EXAMPLES if not axes.executed(source) else "the batch is indexed"
    refuse([shape[d] for d in own], ("batch",), reason)
    if not axes.executed(source):
        refuse([shape[d] for d in used], ("width",), _WIDTH)
    result = broadcast([axes(n) for n in nodes])
    kept: list[Dim] = [dim for d, dim in enumerate(shape) if d not in used]
    adjacent = used == list(range(used[0], used[0] + len(used)))
    place = used[0] if adjacent else 0
    return _once((*kept[:place], *result, *kept[place:]))


def _check_indices(source: fx.Node, indices: Sequence[fx.Node], axes: Axes) -> None:
    if any(n.meta["val"].dtype.is_floating_point for n in indices):
        raise AxisError("indices must be integers")
    if any(not axes.executed(n) for n in indices):
        raise AxisError("indices that depend on parameters have no infinite-width limit")


def indexes_examples(index: fx.Node) -> bool:
    """Whether an index is `arange(n)`, perhaps with dimensions of size 1: every example itself."""
    while base_name(index) in _VIEWS or (
        base_name(index) == "slice" and shape_of(index) == shape_of(first(index))
    ):
        index = first(index)
    if base_name(index) != "arange" or shape_of(index) != (BATCH,):
        return False
    numbers = [a for a in index.args if not isinstance(a, fx.Node)]
    return numbers in ([], [0], [0, 1])


def _once(shape: Shape) -> Shape:
    """Refuse a shape in which the batch stands twice."""
    if sum(axis.kind == "batch" for dim in shape for axis in resolve(dim)) > 1:
        raise AxisError("every example would be indexed with the indices of all examples")
    return shape


@axis_rule("index_select")
def index_select(node: fx.Node, axes: Axes) -> Shape:
    shape, d = axes(first(node)), dimension(node, 1, "dim")
    chosen = cast(fx.Node, argument(node, 2, "index"))
    _check_indices(first(node), [chosen], axes)
    refuse([shape[d]], ("batch",), _EXAMPLES)
    if not axes.executed(first(node)):
        refuse([shape[d]], ("width",), _WIDTH)
    return _once((*shape[:d], *(axes(chosen) or ((),)), *shape[d + 1 :]))


@axis_rule("gather")
def gather(node: fx.Node, axes: Axes) -> Shape:
    """`out[i][j][k] = x[i][index[i][j][k]][k]`: other dimensions must keep their size."""
    shape, d = axes(first(node)), dimension(node, 1, "dim")
    chosen = cast(fx.Node, argument(node, 2, "index"))
    _check_indices(first(node), [chosen], axes)
    refuse([shape[d]], ("batch",), _EXAMPLES)
    if not axes.executed(first(node)):
        refuse([shape[d]], ("width",), _WIDTH)
    sizes = zip(shape_of(first(node)), shape_of(node), strict=True)
    if any(a != b for k, (a, b) in enumerate(sizes) if k != d):
        raise AxisError("gathering a part of the other dimensions is not known: slice them first")
    return (*shape[:d], axes(chosen)[d], *shape[d + 1 :])


@axis_rule("index_add")
def index_add(node: fx.Node, axes: Axes) -> Shape:
    """Sums of entries by index (messages along the edges of a graph)."""
    target, d = axes(first(node)), dimension(node, 1, "dim")
    chosen, source = cast("tuple[fx.Node, fx.Node]", node.args[2:4])
    _check_indices(source, [chosen], axes)
    refuse([target[d], axes(source)[d]], ("width", "batch"), "entries are added along positions")
    others = [(*shape[:d], (), *shape[d + 1 :]) for shape in (target, axes(source))]
    shape = list(broadcast(others))
    shape[d] = target[d]
    return tuple(shape)
