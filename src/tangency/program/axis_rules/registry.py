"""The registry of axis rules, and what rules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from torch import fx

from tangency.program.axes import AxisError, Shape
from tangency.program.operations import argument

__all__ = ["RULES", "Axes", "AxisRule", "axis_rule", "dimension", "first"]

Axes: TypeAlias = Callable[[fx.Node], Shape]
"""Gives the axes of an argument node."""

AxisRule: TypeAlias = Callable[[fx.Node, Axes], Shape | tuple[Shape, ...]]
"""Axes of the result (one shape per tensor where the operation returns several)."""

RULES: dict[str, AxisRule] = {}


def axis_rule(*names: str) -> Callable[[AxisRule], AxisRule]:
    """Register the decorated function for the operations `names`."""

    def register(rule: AxisRule) -> AxisRule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def first(node: fx.Node) -> fx.Node:
    """The first argument, which most operations act on."""
    return cast(fx.Node, node.args[0])


def dimension(node: fx.Node, index: int, name: str, default: int | None = None) -> int:
    """An argument that names one dimension of the first argument, counted from the front."""
    rank = len(first(node).meta["val"].shape)
    value = argument(node, index, name, default)
    if not isinstance(value, int):
        raise AxisError(f"{name}={value} is not one dimension")
    return value % rank if rank else 0
