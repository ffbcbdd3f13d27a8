"""Patches: windows along a position axis laid out side by side (`F.unfold`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Layout
from tangency.infinite.values.position import OUTSIDE, Rearranged, apart
from tangency.infinite.values.value import Ask, Covariance, Value, fill, untied
from tangency.program.axes import Axis

if TYPE_CHECKING:
    pass

__all__ = ["Patches"]


class Patches(Rearranged):
    """The positions `indices[tap][block]` of one axis of a value, along two new axes."""

    def __init__(
        self,
        source: Value,
        axis: Axis,
        new: tuple[Axis, Axis],
        indices: Sequence[Sequence[int]],
    ) -> None:
        at = source.positions.index(axis)
        super().__init__(source, (*source.positions[:at], *new, *source.positions[at + 1 :]))
        self.axis = axis
        self.new = new
        self.indices = tuple(tuple(row) for row in indices)

    def _cut(self, values: Tensor, dim: int) -> Tensor:
        """`(tap, block)` in place of dimension `dim`."""
        whole = fill(values, dim, self.axis.size)
        index = torch.tensor(self.indices, device=values.device)
        taken = whole.index_select(dim, index.flatten().clamp_min(0))
        taken = taken.reshape(*whole.shape[:dim], *index.shape, *whole.shape[dim + 1 :])
        inside = (index != OUTSIDE).to(values.dtype)
        return taken * inside.reshape(*index.shape, *[1] * (values.dim() - 1 - dim))

    def rearrange(self, values: Tensor, lead: int = 0) -> Tensor:
        return self._cut(values, lead + self.source.positions.index(self.axis))

    def rearranged(self, other: Value, layout: Layout, ask: Ask[Covariance]) -> Covariance | None:
        mine = frozenset((a, b) for a, b in layout.ties if a in self.new)
        inner = Layout(self.source.positions, other.positions, layout.ties)
        if not mine:
            dim = inner.index("left", self.axis)
            return apart(ask(self.source, other, inner.ties), lambda values: self._cut(values, dim))
        if not isinstance(other, Patches) or not self._alike(other):
            return untied(self, other, next(iter(mine)), layout, ask)
        if mine == set(zip(self.new, other.new, strict=True)):
            ties = (layout.ties - mine) | {(self.axis, other.axis)}
            inner = Layout(self.source.positions, other.source.positions, ties)
            dim = inner.index("left", self.axis)
            return apart(ask(self.source, other.source, ties), lambda v: self._cut(v, dim))
        if mine != {(self.new[0], other.new[0])}:
            return untied(self, other, next(iter(mine)), layout, ask)
        inner = Layout(self.source.positions, other.source.positions, layout.ties - mine)
        return apart(
            ask(self.source, other.source, inner.ties),
            lambda values: self._by_tap(values, other, inner, layout),
        )

    def _alike(self, other: Patches) -> bool:
        return self.indices == other.indices and self.axis.size == other.axis.size

    def _by_tap(self, values: Tensor, other: Patches, inner: Layout, layout: Layout) -> Tensor:
        """Equal taps of both: `(tap, block, block')` in place of the two old dimensions."""
        i, j = inner.index("left", self.axis), inner.index("right", other.axis)
        whole = fill(fill(values, i, self.axis.size), j, other.axis.size)
        index = torch.tensor(self.indices, device=values.device)
        inside = (index != OUTSIDE).to(values.dtype)
        both = inside[:, :, None] * inside[:, None, :]
        index = index.clamp_min(0)
        front = whole.movedim((i, j), (0, 1))
        taken = front[index[:, :, None], index[:, None, :]]
        taken = taken * both.reshape(*both.shape, *[1] * (front.dim() - 2))
        places = (
            layout.index("left", self.new[0]),
            layout.index("left", self.new[1]),
            layout.index("right", other.new[1]),
        )
        return taken.movedim((0, 1, 2), places)
