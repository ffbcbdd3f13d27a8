"""Values that select, join or average positions of other values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Positions
from tangency.infinite.values.value import Value, to_positions
from tangency.program.axes import Axis

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Average", "Join", "Take"]


class Take(Value):
    """The positions `indices` of one axis of a value; a single index removes the axis."""

    precedence = 5

    def __init__(self, source: Value, axis: Axis, new: Axis | None, indices: range) -> None:
        positions = [new if a is axis else a for a in source.positions]
        super().__init__(tuple(a for a in positions if a is not None))
        self.source = source
        self.axis = axis
        self.new = new
        self.indices = indices

    @property
    def gaussian(self) -> bool:
        return self.source.gaussian

    @property
    def centred(self) -> bool:
        return self.source.centred

    def _cut(self, values: Tensor, dim: int) -> Tensor:
        whole = _fill(values, dim, self.axis.size)
        if self.new is None:
            return whole.select(dim, self.indices[0])
        return whole.index_select(dim, torch.tensor(self.indices, device=values.device))

    def second_moment(self, side: Side) -> Tensor:
        return self._cut(side.second_moment(self.source), self.source.positions.index(self.axis))

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        return None if mean is None else self._cut(mean, self.source.positions.index(self.axis))

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        partner = _partner(self.new, layout) if self.new is not None else None
        if partner is not None:
            return self._tied(other, partner, layout, pairs)
        inner = Layout(self.source.positions, other.positions, layout.ties)
        block = pairs.block(self.source, other, inner.ties)
        dim = inner.index("left", self.axis)
        return _map(block, lambda values: self._cut(values, dim))

    def _tied(self, other: Value, partner: Axis, layout: Layout, pairs: Pairs) -> Block | None:
        alike = isinstance(other, Take) and other.new is partner and other.indices == self.indices
        if not alike or other.axis.size != self.axis.size:  # type: ignore[attr-defined]
            assert self.new is not None
            return _diagonal(self, other, (self.new, partner), layout, pairs)
        assert isinstance(other, Take)
        ties = (layout.ties - {(self.new, partner)}) | {(self.axis, other.axis)}
        inner = Layout(self.source.positions, other.source.positions, ties)
        block = pairs.block(self.source, other.source, inner.ties)
        dim = inner.index("left", self.axis)
        return _map(block, lambda values: self._cut(values, dim))


class Join(Value):
    """Values side by side along a position axis: `cat` and `stack`.

    `pieces` are values with the axis of each that is joined; None where a value fills one place.
    """

    precedence = 5

    def __init__(self, pieces: Sequence[tuple[Value, Axis | None]], axis: Axis) -> None:
        rest: list[Axis] = []
        for value, own in pieces:
            rest.extend(a for a in value.positions if a is not own and a not in rest)
        super().__init__((axis, *rest))
        self.pieces = tuple(pieces)
        self.axis = axis

    @property
    def gaussian(self) -> bool:
        return all(value.gaussian for value, _ in self.pieces)

    @property
    def centred(self) -> bool:
        return all(value.centred for value, _ in self.pieces)

    def _piece_positions(self, own: Axis | None) -> Positions:
        return self.positions[1:] if own is None else (own, *self.positions[1:])

    def _assemble(self, parts: Sequence[tuple[Tensor, Axis | None]]) -> Tensor:
        """Pieces along dimension 0; those that fill one place have no such dimension yet."""
        blocks = [
            part.unsqueeze(0) if own is None else _fill(part, 0, own.size) for part, own in parts
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
        partner = _partner(self.axis, layout)
        if partner is None:
            return self._block(
                [(value, own, other, None) for value, own in self.pieces], layout, pairs
            )
        if not isinstance(other, Join) or other.axis is not partner or self._sizes != other._sizes:
            return _diagonal(self, other, (self.axis, partner), layout, pairs)
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
        partner = _partner(self.axis, layout)
        left = self._piece_positions(own)
        right = tuple(
            b if b is not partner else theirs for b in layout.right if b is not partner or theirs
        )
        ties = {(a, b) for a, b in layout.ties if a is not self.axis}
        if own is not None and theirs is not None:
            ties.add((own, theirs))
        return Layout(left, right, frozenset(ties))  # type: ignore[arg-type]


class Average(Value):
    """The mean of a value over some of its positions."""

    precedence = 5

    def __init__(self, source: Value, axes: Positions) -> None:
        super().__init__(tuple(a for a in source.positions if a not in axes))
        self.source = source
        self.axes = axes

    @property
    def gaussian(self) -> bool:
        return self.source.gaussian

    @property
    def centred(self) -> bool:
        return self.source.centred

    def second_moment(self, side: Side) -> Tensor:
        ties = frozenset((a, a) for a in self.positions)
        layout = Layout(self.source.positions, self.source.positions, ties)
        block = side.pairs.block(self.source, self.source, ties)
        assert block is not None
        moment = side.pairs.moment(self.source, self.source, block, layout)
        dims = [layout.index("left", a) for a in self.axes]
        dims += [layout.index("right", a) for a in self.axes]
        for dim, axis in zip(dims, (*self.axes, *self.axes), strict=True):
            moment = _fill(moment, dim, axis.size)
        return moment.mean(dim=dims)

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        dims = [self.source.positions.index(a) for a in self.axes]
        return None if mean is None else mean.mean(dim=dims)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        inner = Layout(self.source.positions, other.positions, layout.ties)
        block = pairs.block(self.source, other, inner.ties)
        if block is None:
            return None
        dims = [inner.index("left", a) for a in self.axes]
        moment = pairs.moment(self.source, other, block, inner).mean(dim=dims)
        ntk = None if block.ntk is None else block.ntk.mean(dim=dims)
        return pairs.from_moment(self, other, moment, ntk, layout)


def _partner(axis: Axis | None, layout: Layout) -> Axis | None:
    """The right axis to which a left axis is tied."""
    return next((b for a, b in layout.ties if a is axis), None)


def _fill(values: Tensor, dim: int, size: int) -> Tensor:
    """`values` with a broadcast dimension expanded."""
    if values.shape[dim] == size:
        return values
    return values.expand(*values.shape[:dim], size, *values.shape[dim + 1 :])


def _map(block: Block | None, function: Callable[[Tensor], Tensor]) -> Block | None:
    if block is None:
        return None
    ntk = None if block.ntk is None else function(block.ntk)
    return Block(function(block.versine), ntk)


def _diagonal(
    u: Value, v: Value, tie: tuple[Axis, Axis], layout: Layout, pairs: Pairs
) -> Block | None:
    """A tied block as the diagonal of the one in which the two axes are free."""
    wide = Layout(layout.left, layout.right, layout.ties - {tie})
    i, j = wide.index("left", tie[0]), wide.index("right", tie[1])
    size = tie[0].size

    def take(values: Tensor) -> Tensor:
        whole = _fill(_fill(values, i, size), j, size)
        return whole.diagonal(dim1=i, dim2=j).movedim(-1, i)

    return _map(pairs.block(u, v, wide.ties), take)
