"""Position axes merged into one, or one split into several."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments, Positions, Ties
from tangency.infinite.values.position import Ask, Covariance, apart, untied
from tangency.infinite.values.value import Value, fill

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Regroup"]


class Regroup(Value):
    """The positions along `old` axes, outermost first, counted along `new` axes instead."""

    precedence = 7

    def __init__(self, source: Value, old: Positions, new: Positions) -> None:
        at = source.positions.index(old[0])
        before = tuple(a for a in source.positions[:at] if a not in old)
        after = tuple(a for a in source.positions[at:] if a not in old)
        super().__init__((*before, *new, *after))
        self.source = source
        self.old = old
        self.new = new
        self._at = len(before)

    @cached_property
    def gaussian(self) -> bool:
        return self.source.gaussian

    @cached_property
    def centred(self) -> bool:
        return self.source.centred

    def _regrouped(self, values: Tensor, lead: int = 0) -> Tensor:
        """`(*lead, *positions of the source, ...)` in terms of the positions of this value."""
        dims = tuple(lead + self.source.positions.index(a) for a in self.old)
        sizes = [1] * len(self.new)
        if any(values.shape[d] > 1 for d in dims):
            sizes = [a.size for a in self.new]
            for dim, axis in zip(dims, self.old, strict=True):
                values = fill(values, dim, axis.size)
        start = lead + self._at
        together = values.movedim(dims, tuple(range(start, start + len(dims))))
        shape = (*together.shape[:start], *sizes, *together.shape[start + len(dims) :])
        return together.reshape(shape)

    def second_moment(self, side: Side) -> Tensor:
        return self._regrouped(side.second_moment(self.source))

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        return None if mean is None else self._regrouped(mean)

    @property
    def parts(self) -> tuple[Value, ...]:
        return (self.source,)

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        return self._regrouped(parts[0], 1)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        return self._taken(other, layout, pairs.block)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        return self._taken(other, layout, pairs.moments)

    def _taken(self, other: Value, layout: Layout, ask: Ask[Covariance]) -> Covariance | None:
        mine = frozenset((a, b) for a, b in layout.ties if a in self.new)
        if not mine:
            inner = Layout(self.source.positions, other.positions, layout.ties)
            return apart(ask(self.source, other, inner.ties), self._regrouped)
        if isinstance(other, Regroup) and self._alike(other, mine):
            ties = (layout.ties - mine) | set(zip(self.old, other.old, strict=True))
            return apart(ask(self.source, other.source, ties), self._regrouped)
        return untied(self, other, next(iter(mine)), layout, ask)

    def _alike(self, other: Regroup, ties: Ties) -> bool:
        """Whether `ties` ask for equal positions along all old axes."""
        if len(self.new) != len(other.new) or len(self.old) != len(other.old):
            return False
        same = all(a.size == b.size for a, b in zip(self.old, other.old, strict=True))
        return same and ties == set(zip(self.new, other.new, strict=True))
