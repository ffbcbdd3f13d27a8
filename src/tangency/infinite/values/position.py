"""Values that select or map positions of other values."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments, Positions, Ties, Which
from tangency.infinite.values.value import Value, diagonal, fill
from tangency.program.axes import Axis, size_of

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["OUTSIDE", "Ask", "Average", "Covariance", "Linear", "Mapped", "Take", "apart", "untied"]

OUTSIDE = -1
"""The index of a position that is not there: its value is zero."""

Covariance = TypeVar("Covariance", Block, Moments)

Ask: TypeAlias = Callable[[Value, Value, Ties], "Covariance | None"]
"""`pairs.block` or `pairs.moments`: what selects positions does the same to both."""


def untied(
    u: Value, v: Value, tie: tuple[Axis, Axis], layout: Layout, ask: Ask[Covariance]
) -> Covariance | None:
    """A tied covariance as the diagonal of the one in which the two axes are free."""
    wide = Layout(layout.left, layout.right, layout.ties - {tie})
    return diagonal(ask(u, v, wide.ties), tie, wide)


def apart(covariance: Covariance | None, function: Callable[[Tensor], Tensor]) -> Covariance | None:
    """`function` of both parts of a covariance."""
    if covariance is None:
        return None
    first, ntk = covariance
    return type(covariance)(function(first), None if ntk is None else function(ntk))


class Take(Value):
    """The positions `indices` of one axis of a value; `OUTSIDE` stands for a zero.

    Without a `new` axis, one position is taken and the axis is gone.
    """

    precedence = 7

    def __init__(self, source: Value, axis: Axis, new: Axis | None, indices: Sequence[int]) -> None:
        positions = [new if a is axis else a for a in source.positions]
        super().__init__(tuple(a for a in positions if a is not None))
        self.source = source
        self.axis = axis
        self.new = new
        self.indices = tuple(indices)

    @cached_property
    def gaussian(self) -> bool:
        return self.source.gaussian

    @cached_property
    def centred(self) -> bool:
        return self.source.centred

    def _cut(self, values: Tensor, dim: int) -> Tensor:
        whole = fill(values, dim, self.axis.size)
        if self.new is None:
            return whole.select(dim, self.indices[0])
        index = torch.tensor(self.indices, device=values.device)
        taken = whole.index_select(dim, index.clamp_min(0))
        if OUTSIDE not in self.indices:
            return taken
        inside = (index != OUTSIDE).to(values.dtype)
        return taken * inside.reshape(-1, *[1] * (values.dim() - 1 - dim))

    def _cut_leading(self, values: Tensor, lead: int = 0) -> Tensor:
        """The positions taken of `(*lead, *positions of the source, n)`."""
        return self._cut(values, lead + self.source.positions.index(self.axis))

    def second_moment(self, side: Side) -> Tensor:
        return self._cut_leading(side.second_moment(self.source))

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        return None if mean is None else self._cut_leading(mean)

    @property
    def parts(self) -> tuple[Value, ...]:
        return (self.source,)

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        return self._cut_leading(parts[0], 1)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        return self._taken(other, layout, pairs.block)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        return self._taken(other, layout, pairs.moments)

    def _taken(self, other: Value, layout: Layout, ask: Ask[Covariance]) -> Covariance | None:
        partner = layout.tied(self.new) if self.new is not None else None
        if partner is not None:
            return self._tied(other, partner, layout, ask)
        inner = Layout(self.source.positions, other.positions, layout.ties)
        dim = inner.index("left", self.axis)
        return apart(ask(self.source, other, inner.ties), lambda values: self._cut(values, dim))

    def _tied(
        self, other: Value, partner: Axis, layout: Layout, ask: Ask[Covariance]
    ) -> Covariance | None:
        assert self.new is not None
        if not isinstance(other, Take) or not self._alike(other, partner):
            return untied(self, other, (self.new, partner), layout, ask)
        ties = (layout.ties - {(self.new, partner)}) | {(self.axis, other.axis)}
        inner = Layout(self.source.positions, other.source.positions, ties)
        dim = inner.index("left", self.axis)
        return apart(
            ask(self.source, other.source, inner.ties), lambda values: self._cut(values, dim)
        )

    def _alike(self, other: Take, partner: Axis) -> bool:
        """Whether equal new positions are equal old ones."""
        same = other.new is partner and other.indices == self.indices
        return same and other.axis.size == self.axis.size


class Linear(Value):
    """A constant linear map over positions; acts on float64 moments."""

    precedence = 7
    source: Value

    @cached_property
    def gaussian(self) -> bool:
        return self.source.gaussian

    @cached_property
    def centred(self) -> bool:
        return self.source.centred

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        return pairs.from_moments(self, other, layout)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        for a, b in layout.ties:
            if a not in self.source.positions:
                return untied(self, other, (a, b), layout, pairs.moments)
        inner = Layout(self.source.positions, other.positions, layout.ties)
        return apart(
            pairs.moments(self.source, other, inner.ties),
            lambda values: self.apply(values, inner, "left", pairs),
        )

    def second_moment(self, side: Side) -> Tensor:
        size = size_of(self.source.positions)
        parts = [self._second_moment(pairs) for pairs in side.chunks(size**2)]
        return side.full(torch.cat(parts, dim=-1).clamp_min(0), self.positions)

    def _second_moment(self, pairs: Pairs) -> Tensor:
        """E[u^2] of some of a side's examples."""
        kept = tuple(a for a in self.source.positions if a in self.positions)
        ties = frozenset((a, a) for a in kept)
        layout = Layout(self.source.positions, self.source.positions, ties)
        moments = pairs.moments(self.source, self.source, ties)
        assert moments is not None
        half = self.apply(moments.moment, layout, "left", pairs)
        layout = Layout(self.positions, self.source.positions, ties)
        block: Moments | None = Moments(self.apply(half, layout, "right", pairs), None)
        layout = Layout(self.positions, self.positions, ties)
        for axis in self.positions:
            if axis not in kept:
                block = diagonal(block, (axis, axis), layout)
                layout = Layout(layout.left, layout.right, layout.ties | {(axis, axis)})
        assert block is not None
        return block.moment.expand(*(a.size for a in self.positions), block.moment.shape[-1])

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        return None if mean is None else self.map(mean, side, 0)

    @property
    def parts(self) -> tuple[Value, ...]:
        return (self.source,)

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        return self.map(parts[0], side, 1)

    @abstractmethod
    def map(self, values: Tensor, side: Side, lead: int) -> Tensor:
        """The map of `(*lead, *positions of the source, n)`, `lead` leading dimensions."""

    @abstractmethod
    def apply(self, values: Tensor, layout: Layout, which: Which, pairs: Pairs) -> Tensor:
        """The map along the left or right axis of a block of `pairs` laid out by `layout`."""


class Average(Linear):
    """The mean of a value over some of its positions."""

    def __init__(self, source: Value, axes: Positions) -> None:
        super().__init__(tuple(a for a in source.positions if a not in axes))
        self.source = source
        self.axes = axes

    def apply(self, values: Tensor, layout: Layout, which: Which, pairs: Pairs) -> Tensor:
        dims = [layout.index(which, a) for a in self.axes]
        return values.mean(dim=dims)

    def map(self, values: Tensor, side: Side, lead: int) -> Tensor:
        return values.mean(dim=[lead + self.source.positions.index(a) for a in self.axes])


class Mapped(Linear):
    """A matrix along one position axis: pooling, interpolation, cumulative sums.

    `matrix` is `(new, old)`, float64; without a `new` axis it has one row, and the axis is gone.
    """

    def __init__(self, source: Value, axis: Axis, new: Axis | None, matrix: Tensor) -> None:
        replaced = (new if a is axis else a for a in source.positions)
        super().__init__(tuple(a for a in replaced if a is not None))
        self.source = source
        self.axis = axis
        self.new = new
        self.matrix = matrix

    def _along(self, values: Tensor, dim: int) -> Tensor:
        whole = fill(values, dim, self.axis.size)
        shape = list(whole.shape)
        stacked = whole.reshape(-1, shape[dim], math.prod(shape[dim + 1 :]))
        shape[dim] = len(self.matrix)
        mapped = (self.matrix.to(values) @ stacked).reshape(shape)
        return mapped.squeeze(dim) if self.new is None else mapped

    def apply(self, values: Tensor, layout: Layout, which: Which, pairs: Pairs) -> Tensor:
        return self._along(values, layout.index(which, self.axis))

    def map(self, values: Tensor, side: Side, lead: int) -> Tensor:
        return self._along(values, lead + self.source.positions.index(self.axis))
