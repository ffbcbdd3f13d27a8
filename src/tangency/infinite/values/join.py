"""Values side by side along a position axis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Positions
from tangency.infinite.values.value import Value, fill, leaves_of, to_positions, untied
from tangency.program.axes import Axis

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Join"]


class Join(Value):
    """Values side by side along a position axis: `cat` and `stack`.

    `pieces` are values with the axis of each that is joined; None where a value fills one place.
    """

    precedence = 7

    def __init__(self, pieces: Sequence[tuple[Value, Axis | None]], axis: Axis) -> None:
        rest: list[Axis] = []
        for value, own in pieces:
            rest.extend(a for a in value.positions if a is not own and a not in rest)
        super().__init__((axis, *rest))
        self.pieces = tuple(pieces)
        self.axis = axis

    @cached_property
    def gaussian(self) -> bool:
        return all(value.gaussian for value, _ in self.pieces)

    @cached_property
    def centred(self) -> bool:
        return all(value.centred for value, _ in self.pieces)

    @property
    def parts(self) -> tuple[Value, ...]:
        return tuple(value for value, _ in self.pieces)

    @cached_property
    def leaves(self) -> tuple[Value, ...]:
        return leaves_of(self.parts)

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        pieces = []
        for part, (value, own) in zip(parts, self.pieces, strict=True):
            spread = to_positions(part, value.positions, self._piece_positions(own))
            pieces.append((spread.movedim(0, -1), own))
        return self._assemble(pieces).movedim(-1, 0)

    def _piece_positions(self, own: Axis | None) -> Positions:
        return self.positions[1:] if own is None else (own, *self.positions[1:])

    def _assemble(self, parts: Sequence[tuple[Tensor, Axis | None]]) -> Tensor:
        """Pieces along dimension 0; those that fill one place have no such dimension yet."""
        blocks = [
            part.unsqueeze(0) if own is None else fill(part, 0, own.size) for part, own in parts
        ]
        shape = torch.broadcast_shapes(*(block.shape[1:] for block in blocks))
        return torch.cat([block.expand(block.shape[0], *shape) for block in blocks])

    def second_moment(self, side: Side) -> Tensor:
        parts = []
        for value, own in self.pieces:
            positions = self._piece_positions(own)
            parts.append((to_positions(side.second_moment(value), value.positions, positions), own))
        return side.full(self._assemble(parts), self.positions)

    def mean(self, side: Side) -> Tensor | None:
        means = [side.mean(value) for value, _ in self.pieces]
        if all(mean is None for mean in means):
            return None
        parts = []
        for mean, (value, own) in zip(means, self.pieces, strict=True):
            known = side.full(side.number(0.0), value.positions) if mean is None else mean
            parts.append((to_positions(known, value.positions, self._piece_positions(own)), own))
        return side.full(self._assemble(parts), self.positions)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        partner = layout.tied(self.axis)
        if partner is None:
            return self._block(
                [(value, own, other, None) for value, own in self.pieces], layout, pairs
            )
        if not isinstance(other, Join) or other.axis is not partner or self._sizes != other._sizes:
            return untied(self, other, (self.axis, partner), layout, pairs.block)
        matched = [(u, a, v, b) for (u, a), (v, b) in zip(self.pieces, other.pieces, strict=True)]
        return self._block(matched, layout, pairs)

    @property
    def _sizes(self) -> list[int]:
        return [1 if own is None else own.size for _, own in self.pieces]

    def _block(
        self,
        matched: Sequence[tuple[Value, Axis | None, Value, Axis | None]],
        layout: Layout,
        pairs: Pairs,
    ) -> Block | None:
        """Blocks of the pieces with their partners, assembled along this value's axis."""
        versines: list[tuple[Tensor, Axis | None]] = []
        ntks: list[tuple[Tensor, Axis | None]] = []
        correlated = coupled = False
        for u, own, v, theirs in matched:
            whole = self._piece_layout(own, theirs, layout)
            inner = whole.within(u.positions, v.positions)
            block = pairs.block(u, v, inner.ties)
            zero = pairs.number(0.0, whole)
            correlated |= block is not None
            coupled |= block is not None and block.ntk is not None
            versine = zero + 1 if block is None else whole.embed(block.versine, inner)
            versines.append((versine, own))
            known = block is not None and block.ntk is not None
            ntks.append((whole.embed(block.ntk, inner) if known else zero, own))  # type: ignore[union-attr,arg-type]
        if not correlated:
            return None
        return Block(self._assemble(versines), self._assemble(ntks) if coupled else None)

    def _piece_layout(self, own: Axis | None, theirs: Axis | None, layout: Layout) -> Layout:
        """The layout of one piece's block: the joined axis replaced by the piece's own."""
        partner = layout.tied(self.axis)
        left = self._piece_positions(own)
        right = tuple(
            b if b is not partner else theirs for b in layout.right if b is not partner or theirs
        )
        ties = {(a, b) for a, b in layout.ties if a is not self.axis}
        if own is not None and theirs is not None:
            ties.add((own, theirs))
        return Layout(left, right, frozenset(ties))  # type: ignore[arg-type]
