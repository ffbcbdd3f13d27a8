"""Sums and means over axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import fx

from tangency.program.axes import Shape, position, sizes_of
from tangency.program.axis_rules.elementwise import broadcast
from tangency.program.axis_rules.registry import Axes, axis_rule, dimension, first, refuse
from tangency.program.operations import argument, base_name

__all__ = ["reduced_dimensions"]


@axis_rule("mean", "sum")
def mean(node: fx.Node, axes: Axes) -> Shape:
    return _reduced(node, axes)


def _reduced(node: fx.Node, axes: Axes) -> Shape:
    shape = axes(first(node))
    dims = reduced_dimensions(node)
    refuse([shape[d] for d in dims], ("batch",), "reducing over the batch couples the examples")
    keep = bool(argument(node, 2, "keepdim", False))
    kept = [() if d in dims else dim for d, dim in enumerate(shape)]
    return tuple(dim for d, dim in enumerate(kept) if keep or d not in dims)


@axis_rule("amax", "amin", "logsumexp", "prod", "any", "all", "argmax", "argmin")
def of_positions(node: fx.Node, axes: Axes) -> Shape:
    """Reductions that have no limit over a width."""
    return _reduced_positions(node, axes)


def _reduced_positions(node: fx.Node, axes: Axes) -> Shape:
    source = first(node)
    if not axes.executed(source):
        reduced = [axes(source)[d] for d in reduced_dimensions(node)]
        refuse(reduced, ("width",), "this reduction of a width has no limit as the width grows")
    return _reduced(node, axes)


@axis_rule("max", "min")
def extremum(node: fx.Node, axes: Axes) -> Shape | tuple[Shape, ...]:
    """`x.max(dim)` gives values and indices; `torch.max(a, b)` is elementwise."""
    if len(node.args) > 1 and isinstance(node.args[1], fx.Node):
        return broadcast([axes(n) for n in node.all_input_nodes])
    shape = _reduced_positions(node, axes)
    return (shape, shape) if isinstance(node.meta["val"], (list, tuple)) else shape


@axis_rule("sort", "topk")
def ordered(node: fx.Node, axes: Axes) -> tuple[Shape, ...]:
    """Values in order, and their indices: the places are new positions."""
    source, sizes = first(node), sizes_of(node.meta["val"][0])
    d = dimension(node, 2 if base_name(node) == "topk" else 1, "dim", -1)
    shape = list(axes(source))
    refuse([shape[d]], ("batch",), "ordering the batch mixes the examples")
    if not axes.executed(source):
        refuse([shape[d]], ("width",), "the order of a width has no limit as the width grows")
    shape[d] = position(sizes[d])
    return tuple(shape), tuple(shape)


def reduced_dimensions(node: fx.Node) -> list[int]:
    """The dimensions that a reduction reduces."""
    rank = len(first(node).meta["val"].shape)
    dims = argument(node, 1, "dim")
    if dims is None or dims == []:
        return list(range(rank))
    listed = [dims] if isinstance(dims, int) else cast(Sequence[int], dims)
    return [d % rank for d in listed]
