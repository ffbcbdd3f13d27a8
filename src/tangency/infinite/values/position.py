"""Values that select or map positions of other values."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments, Positions, Which
from tangency.infinite.values.value import (
    Ask,
    Covariance,
    Value,
    diagonal,
    fill,
    untied,
)
from tangency.program.axes import Axis, size_of

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["OUTSIDE", "Average", "Linear", "Mapped", "OfSource", "Rearranged", "Take", "apart"]

OUTSIDE = -1
"""The index of a position that is not there: its value is zero."""


def apart(covariance: Covariance | None, function: Callable[[Tensor], Tensor]) -> Covariance | None:
    """`function` of both parts of a covariance."""
    if covariance is None:
        return None
    first, ntk = covariance
    return type(covariance)(function(first), None if ntk is None else function(ntk))


class OfSource(Value):
    """A value whose coordinates are those of one other value, its `source`."""

    def __init__(self, source: Value, positions: Positions) -> None:
        super().__init__(positions)
        self.source = source

    @cached_property
    def gaussian(self) -> bool:
        return self.source.gaussian

    @cached_property
    def centred(self) -> bool:
        return self.source.centred

    @property
    def parts(self) -> tuple[Value, ...]:
        return (self.source,)

    @cached_property
    def leaves(self) -> tuple[Value, ...]:
        return self.source.leaves


class Rearranged(OfSource):
    """Positions of the source, selected or counted otherwise: the same for all moments."""

    precedence = 7

    @abstractmethod
    def rearrange(self, values: Tensor, lead: int = 0) -> Tensor:
        """`(*lead, *positions of the source, ...)` at the positions of this value."""

    @abstractmethod
    def rearranged(self, other: Value, layout: Layout, ask: Ask[Covariance]) -> Covariance | None:
        """The covariance with `other`, of what `ask` gives for the source."""

    def second_moment(self, side: Side) -> Tensor:
        return self.rearrange(side.second_moment(self.source))

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        return None if mean is None else self.rearrange(mean)

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        return self.rearrange(parts[0], 1)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        return self.rearranged(other, layout, pairs.block)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        return self.rearranged(other, layout, pairs.moments)


class Take(Rearranged):
    """The positions `indices` of one axis of a value; `OUTSIDE` stands for a zero.

    Without a `new` axis, one position is taken and the axis is gone.
    """

    precedence = 7

    def __init__(self, source: Value, axis: Axis, new: Axis | None, indices: Sequence[int]) -> None:
        positions = [new if a is axis else a for a in source.positions]
        super().__init__(source, tuple(a for a in positions if a is not None))
        self.axis = axis
        self.new = new
        self.indices = tuple(indices)

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

    def rearrange(self, values: Tensor, lead: int = 0) -> Tensor:
        return self._cut(values, lead + self.source.positions.index(self.axis))

    def rearranged(self, other: Value, layout: Layout, ask: Ask[Covariance]) -> Covariance | None:
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


class Linear(OfSource):
    """A constant linear map over positions; acts on float64 moments."""

    precedence = 7

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
        source = self.source
        if side.by_samples and not set(source.positions) & set(self.positions):
            # All pairs of examples need what every position has with every other.
            moment = self._second_moment(side.draws.diagonals)
            return side.full(moment.clamp_min(0), self.positions)
        size = size_of(source.positions)
        while isinstance(source, OfSource):  # sums go axis by axis: the first is the largest
            source = source.source
            size = max(size, size_of(source.positions))
        moment = side.by_chunks(self, "second_moment", size**2, self._second_moment)
        return side.full(moment.clamp_min(0), self.positions)

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
        super().__init__(source, tuple(a for a in source.positions if a not in axes))
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
        super().__init__(source, tuple(a for a in replaced if a is not None))
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
