"""Position axes merged into one, or one split into several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from tangency.infinite.layout import Layout, Positions, Ties
from tangency.infinite.values.position import Rearranged, apart
from tangency.infinite.values.value import Ask, Covariance, Value, fill, untied

if TYPE_CHECKING:
    pass

__all__ = ["Regroup"]


class Regroup(Rearranged):
    """The positions along `old` axes, outermost first, counted along `new` axes instead."""

    def __init__(self, source: Value, old: Positions, new: Positions) -> None:
        at = source.positions.index(old[0])
        before = tuple(a for a in source.positions[:at] if a not in old)
        after = tuple(a for a in source.positions[at:] if a not in old)
        super().__init__(source, (*before, *new, *after))
        self.old = old
        self.new = new
        self._at = len(before)

    def rearrange(self, values: Tensor, lead: int = 0) -> Tensor:
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

    def rearranged(self, other: Value, layout: Layout, ask: Ask[Covariance]) -> Covariance | None:
        mine = frozenset((a, b) for a, b in layout.ties if a in self.new)
        if not mine:
            inner = Layout(self.source.positions, other.positions, layout.ties)
            return apart(ask(self.source, other, inner.ties), self.rearrange)
        if isinstance(other, Regroup) and self._alike(other, mine):
            ties = (layout.ties - mine) | set(zip(self.old, other.old, strict=True))
            return apart(ask(self.source, other.source, ties), self.rearrange)
        return untied(self, other, next(iter(mine)), layout, ask)

    def _alike(self, other: Regroup, ties: Ties) -> bool:
        """Whether `ties` ask for equal positions along all old axes."""
        if len(self.new) != len(other.new) or len(self.old) != len(other.old):
            return False
        same = all(a.size == b.size for a, b in zip(self.old, other.old, strict=True))
        return same and ties == set(zip(self.new, other.new, strict=True))
