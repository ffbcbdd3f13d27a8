"""Sums and means over axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import fx

from tangency.program.axes import AxisError, Shape, resolve
from tangency.program.axis_rules.registry import Axes, axis_rule, first
from tangency.program.operations import argument

__all__ = ["reduced_dimensions"]


@axis_rule("mean", "sum")
def reduce(node: fx.Node, axes: Axes) -> Shape:
    shape = axes(first(node))
    dims = reduced_dimensions(node)
    if any(axis.kind == "batch" for d in dims for axis in resolve(shape[d])):
        raise AxisError("reducing over the batch couples the examples")
    keep = bool(argument(node, 2, "keepdim", False))
    kept = [() if d in dims else dim for d, dim in enumerate(shape)]
    return tuple(dim for d, dim in enumerate(kept) if keep or d not in dims)


def reduced_dimensions(node: fx.Node) -> list[int]:
    """The dimensions that a `mean` or `sum` node reduces."""
    rank = len(first(node).meta["val"].shape)
    dims = argument(node, 1, "dim")
    if dims is None:
        return list(range(rank))
    listed = [dims] if isinstance(dims, int) else cast(Sequence[int], dims)
    return [d % rank for d in listed]
