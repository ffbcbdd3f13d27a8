"""Which entries of a parameter a node shows, over positions and along a width.

Parameters that are added, multiplied or used as tokens may have positions of their own (positional
embeddings, class tokens, scales per channel and pixel) and may be sliced, reshaped and repeated on
the way. The chain of views is replayed on the numbers of the entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering
from tangency.program.axes import Shape, resolve
from tangency.program.operations import base_name
from tangency.program.parameters import is_view

__all__ = ["Entries", "entries_of", "whole_parameter"]

_SAME_ENTRIES = frozenset({"mul", "div", "neg", "_to_copy", "to"})
"""Operations that change the entries' values or type, not which they are."""


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries of a parameter by their flat numbers, `(*positions, length)`, and a factor."""

    name: str
    factor: float
    positions: Positions
    numbers: Tensor

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for vectors that are equal where their first entries are."""
        first = self.numbers.reshape(-1, self.numbers.shape[-1])[0]
        return (self.name, *(first - first[0]).unique_consecutive().tolist()[:2], len(first))

    @property
    def first(self) -> Tensor:
        """Number of the first entry at every position, `(*positions,)`."""
        return self.numbers[..., 0]

    def values(self, parameter: Tensor) -> Tensor:
        """What the entries are at present, float64 `(*positions, length)`."""
        flat = parameter.flatten().double()
        return self.factor * flat[self.numbers.to(flat.device)]


def entries_of(
    lowering: Lowering, node: fx.Node, features: Positions, start: int, length: int
) -> Entries:
    """A stretch along `features` of what a node of nature "parameter" shows.

    Raises:
        UnsupportedOperation: the node computes with the parameter, or differs from example to
            example.
    """
    chain: list[fx.Node] = []
    source = node
    while source not in lowering.program.trace.parameters:
        if not is_view(source):
            raise lowering.unsupported(source, "computes with a parameter before it meets the data")
        chain.append(source)
        source = cast(fx.Node, source.args[0])
    shape = source.meta["val"].shape
    numbers: Any = torch.arange(shape.numel()).reshape(shape)
    factor = 1.0
    for step in reversed(chain):
        name = base_name(step)
        if name in _SAME_ENTRIES:
            factor *= _factor(step, name)
        else:
            args, kwargs = map_arg((step.args[1:], step.kwargs), _one_example)
            numbers = cast(Any, step.target)(numbers, *args, **kwargs)
    name = lowering.program.trace.parameters[source]
    axes = lowering.program.axes[node]
    return _arrange(name, factor, numbers, axes, features, start, length)


def whole_parameter(
    lowering: Lowering, name: str, axes: Shape, features: Positions, start: int, length: int
) -> Entries:
    """A stretch of a whole parameter whose dimensions lie along `axes`."""
    shape = lowering.parameters.value(name).shape
    numbers = torch.arange(shape.numel()).reshape(shape)
    return _arrange(name, 1.0, numbers, axes, features, start, length)


def _factor(node: fx.Node, name: str) -> float:
    if name == "neg":
        return -1.0
    if name not in ("mul", "div"):
        return 1.0
    number = float(cast(float, node.args[1]))
    return number if name == "mul" else 1 / number


def _one_example(node: fx.Node) -> int:
    """A size in an argument, for a batch of one example."""
    value = node.meta["val"]
    if isinstance(value, int):
        return value
    expression = value.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _arrange(
    name: str,
    factor: float,
    numbers: Tensor,
    axes: Shape,
    features: Positions,
    start: int,
    length: int,
) -> Entries:
    """Dimensions that lie along `axes` as `(*positions, length)`."""
    atoms = [axis for dim in axes for axis in resolve(dim)]
    sizes = [1 if axis.kind == "batch" else axis.size for axis in atoms]
    positions = tuple(a for a in atoms if a.kind != "batch" and a not in features)
    along = [a for a in features if a in atoms]
    split = numbers.reshape(sizes)
    for k in reversed([k for k, axis in enumerate(atoms) if axis.kind == "batch"]):
        split = split.squeeze(k)
    kept = [a for a in atoms if a.kind != "batch"]
    moved = split.permute([kept.index(a) for a in (*positions, *along)])
    flat = moved.reshape(*(a.size for a in positions), -1)
    return Entries(name, factor, positions, flat[..., start : start + length])
