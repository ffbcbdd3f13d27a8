"""The program of one slice as a graph of operations on matrices of numbers.

A slice holds a covariance at one offset between left and right positions. What is written here is
a value of it: a number per position, of the type and along the axes that the traced rule gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tangency.infinite.layout import Ties
from tangency.infinite.values.concrete import Concrete
from tangency.infinite.values.value import Value
from tangency.infinite.values.window import Window
from tangency.program.axes import Axis

__all__ = ["Data", "Kind", "Node", "NotFusable", "Reduction", "deduplicated", "each", "uses"]


class NotFusable(Exception):
    """The covariance is not local in the offset, or uses an operation that has no C form."""


class Kind:
    """What a node is."""

    LEFT = "left"
    """A quantity of the left value, `detail` = (value, name, args, wide)."""
    RIGHT = "right"
    DATA = "data"
    """Products or versines of data, `detail` = `Data`."""
    DENSE = "dense"
    """Numbers that are in memory: `detail` says whose."""
    CONSTANT = "constant"
    POINTWISE = "pointwise"
    """`function` applied to `arguments`, in which nodes stand for numbers."""
    WINDOW = "window"
    """Sum over the taps of `detail`, a `Window`."""
    REDUCE = "reduce"
    """Sum over the axes `detail.axes`, at equal positions or over all offsets."""
    POOL = "pool"
    """Sums over windows side by side, `detail`, a `Pooling`."""
    RESAMPLE = "resample"
    """Sums over the few positions that each new one reads, `detail`, a `Resampling`."""

    OF_TWO = "of two"
    """A second moment of a function of two Gaussians, `detail`, an `OfTwo`."""

    MAPS = (POOL, RESAMPLE)

    LEAVES = (LEFT, RIGHT, DATA, DENSE)


@dataclass(frozen=True)
class Data:
    """Products of the data of two values, or versines between them.

    Attributes:
        left, right: the values.
        ties: of the positions.
        versine: whether 1 - cos(angle) is meant, and not the mean of the products.
        channels: over how many numbers a product runs.
    """

    left: Concrete
    right: Concrete
    ties: Ties
    versine: bool
    channels: int


@dataclass(frozen=True)
class Reduction:
    """A sum over positions.

    Attributes:
        axes: that are summed over, in order.
        weights: if the sum is over all pairs of positions, the weights of the positions along each
            axis; None if it is over equal positions only.
        value: the mean whose second moment a sum over all pairs of positions is.
    """

    axes: tuple[Axis, ...]
    weights: tuple[tuple[float, ...], ...] | None = None
    value: Value | None = None


@dataclass(eq=False)
class Node:
    """One value of a slice.

    Attributes:
        kind: one of `Kind`.
        dtype: float64, float32 or bool.
        axes: position axes along which it varies.
        arguments: of a pointwise function (nodes and numbers), or the input of a window.
        function: the ATen operation of a pointwise node.
        keywords: keyword arguments of the function.
        detail: see `Kind`.
        order: axes of a quantity's dimensions, None for a dimension of size one.
    """

    kind: str
    dtype: torch.dtype
    axes: frozenset[Axis] = frozenset()
    arguments: tuple[Any, ...] = ()
    function: Callable[..., Any] | None = None
    keywords: dict[str, Any] = field(default_factory=dict)
    detail: Any = None
    order: tuple[Axis | None, ...] = ()

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The arguments that are nodes."""
        return tuple(a for a in self.arguments if isinstance(a, Node))

    @property
    def window(self) -> Window:
        """The window of a window node."""
        assert isinstance(self.detail, Window)
        return self.detail


def each(roots: tuple[Node, ...]) -> Iterator[Node]:
    """All nodes on which `roots` depend, inputs first."""
    done: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready:
            done.add(node)
            yield node
            continue
        stack.append((node, True))
        stack.extend((n, False) for n in reversed(node.inputs) if n not in done)


def uses(roots: tuple[Node, ...]) -> dict[Node, list[Node]]:
    """For every node, those that have it as an input."""
    users: dict[Node, list[Node]] = {node: [] for node in each(roots)}
    for node in list(users):
        for source in node.inputs:
            users[source].append(node)
    return users


def deduplicated(roots: tuple[Node, ...]) -> tuple[Node, ...]:
    """The same graph with equal nodes merged."""
    first: dict[Hashable, Node] = {}
    merged: dict[Node, Node] = {}
    for node in each(roots):
        arguments = tuple(merged[a] if isinstance(a, Node) else a for a in node.arguments)
        marks = tuple(id(a) if isinstance(a, Node) else repr(a) for a in arguments)
        keywords = repr(sorted(node.keywords.items()))
        leaf = id(node) if node.kind in Kind.LEAVES else None
        key = (node.kind, node.dtype, node.function, marks, keywords, node.detail, leaf)
        merged[node] = first.setdefault(key, _folded(replace(node, arguments=arguments)))
    return tuple(merged[root] for root in roots)


def _folded(node: Node) -> Node:
    """A pointwise node of numbers alone as a number; x * 1 and x + 0 as x."""
    if node.kind != Kind.POINTWISE or node.function is None:
        return node
    if any(n.kind != Kind.CONSTANT for n in node.inputs):
        return _without_neutral(node)
    values = [
        torch.tensor(a.detail, dtype=a.dtype) if isinstance(a, Node) else a for a in node.arguments
    ]
    number = float(node.function(*values, **node.keywords))
    return Node(Kind.CONSTANT, node.dtype, detail=number)


def _without_neutral(node: Node) -> Node:
    name = node.function.overloadpacket.__name__  # type: ignore[union-attr]
    neutral = {"mul": 1.0, "add": 0.0}.get(name)
    if neutral is None or len(node.arguments) != 2:
        return node
    for number, other in (node.arguments, node.arguments[::-1]):
        value = number.detail if isinstance(number, Node) else number
        constant = not isinstance(number, Node) or number.kind == Kind.CONSTANT
        if constant and value == neutral and isinstance(other, Node) and other.dtype == node.dtype:
            return other
    return node
