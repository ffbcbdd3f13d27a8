"""The registry of axis rules, and what rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

from torch import fx

from tangency.program.axes import Axis, AxisError, Dim, Kind, Shape, resolve
from tangency.program.operations import argument

__all__ = ["RULES", "Axes", "AxisRule", "axis_rule", "dimension", "first", "refuse"]


@dataclass(frozen=True)
class Axes:
    """What a rule knows of the arguments of its node: `axes(argument)` are their axes.

    Attributes:
        known: axes of every node so far.
        nature: nature of every node so far ("random", "concrete", ...).
        batch: the batch axis.
    """

    known: Mapping[fx.Node, Shape]
    nature: Mapping[fx.Node, str]
    batch: Axis

    def __call__(self, node: fx.Node) -> Shape:
        return self.known[node]

    def executed(self, node: fx.Node) -> bool:
        """Whether a node is computed from data and constants alone."""
        return self.nature[node] == "concrete"


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


def refuse(dims: Iterable[Dim], kinds: Iterable[Kind], reason: str) -> None:
    """Raise an `AxisError` with the reason if an atom of the dimensions is of one of the kinds."""
    if any(axis.kind in kinds for dim in dims for axis in resolve(dim)):
        raise AxisError(reason)
