"""Values that select, join or map positions of other values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments, Positions, Which
from tangency.infinite.values.value import Value, diagonal, fill, to_positions
from tangency.program.axes import Axis, size_of

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["OUTSIDE", "Average", "Join", "Linear", "Mapped", "Take"]

OUTSIDE = -1
"""The index of a position that is not there: its value is zero."""


class Take(Value):
    """The positions `indices` of one axis of a value; `OUTSIDE` stands for a zero.

    Without a `new` axis, one position is taken and the axis is gone.
    """

    precedence = 5

    def __init__(self, source: Value, axis: Axis, new: Axis | None, indices: Sequence[int]) -> None:
        positions = [new if a is axis else a for a in source.positions]
        super().__init__(tuple(a for a in positions if a is not None))
        self.source = source
        self.axis = axis
        self.new = new
        self.indices = tuple(indices)

    @property
    def gaussian(self) -> bool:
        return self.source.gaussian

    @property
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

    def second_moment(self, side: Side) -> Tensor:
        return self._cut(side.second_moment(self.source), self.source.positions.index(self.axis))

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        return None if mean is None else self._cut(mean, self.source.positions.index(self.axis))

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        partner = layout.tied(self.new) if self.new is not None else None
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
        partner = layout.tied(self.axis)
        left = self._piece_positions(own)
        right = tuple(
            b if b is not partner else theirs for b in layout.right if b is not partner or theirs
        )
        ties = {(a, b) for a, b in layout.ties if a is not self.axis}
        if own is not None and theirs is not None:
            ties.add((own, theirs))
        return Layout(left, right, frozenset(ties))  # type: ignore[arg-type]


class Linear(Value):
    """A constant linear map over positions; acts on float64 moments."""

    precedence = 5
    source: Value

    @property
    def gaussian(self) -> bool:
        return self.source.gaussian

    @property
    def centred(self) -> bool:
        return self.source.centred

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        return pairs.from_moments(self, other, layout)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        for a, b in layout.ties:
            if a not in self.source.positions:
                wide = Layout(layout.left, layout.right, layout.ties - {(a, b)})
                return diagonal(pairs.moments(self, other, wide.ties), (a, b), wide)
        inner = Layout(self.source.positions, other.positions, layout.ties)
        moments = pairs.moments(self.source, other, inner.ties)
        if moments is None:
            return None
        moment = self.apply(moments.moment, inner, "left")
        ntk = None if moments.ntk is None else self.apply(moments.ntk, inner, "left")
        return Moments(moment, ntk)

    def second_moment(self, side: Side) -> Tensor:
        size = size_of(self.source.positions)
        parts = [self._second_moment(pairs) for pairs in side.chunks(size**2)]
        return side.full(torch.cat(parts, dim=-1), self.positions)

    def _second_moment(self, pairs: Pairs) -> Tensor:
        """E[u^2] of some of a side's examples."""
        kept = tuple(a for a in self.source.positions if a in self.positions)
        ties = frozenset((a, a) for a in kept)
        layout = Layout(self.source.positions, self.source.positions, ties)
        moments = pairs.moments(self.source, self.source, ties)
        assert moments is not None
        half = self.apply(moments.moment, layout, "left")
        layout = Layout(self.positions, self.source.positions, ties)
        block: Moments | None = Moments(self.apply(half, layout, "right"), None)
        layout = Layout(self.positions, self.positions, ties)
        for axis in self.positions:
            if axis not in kept:
                block = diagonal(block, (axis, axis), layout)
                layout = Layout(layout.left, layout.right, layout.ties | {(axis, axis)})
        assert block is not None
        return block.moment.expand(*(a.size for a in self.positions), block.moment.shape[-1])

    @abstractmethod
    def apply(self, values: Tensor, layout: Layout, which: Which) -> Tensor:
        """The map along the left or right axis of a block laid out by `layout`."""


class Average(Linear):
    """The mean of a value over some of its positions."""

    def __init__(self, source: Value, axes: Positions) -> None:
        super().__init__(tuple(a for a in source.positions if a not in axes))
        self.source = source
        self.axes = axes

    def apply(self, values: Tensor, layout: Layout, which: Which) -> Tensor:
        dims = [layout.index(which, a) for a in self.axes]
        return values.mean(dim=dims)

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        dims = [self.source.positions.index(a) for a in self.axes]
        return None if mean is None else mean.mean(dim=dims)


class Mapped(Linear):
    """A matrix along one position axis: pooling, interpolation, aggregation over a fixed graph.

    `matrix` is `(new, old)`, float64; an axis of size one stands for a dimension without atom.
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
        matrix = self.matrix.to(values)
        mapped: Tensor = torch.tensordot(matrix, whole, dims=([1], [dim])).movedim(0, dim)
        return mapped.squeeze(dim) if self.new is None else mapped

    def apply(self, values: Tensor, layout: Layout, which: Which) -> Tensor:
        return self._along(values, layout.index(which, self.axis))

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        return None if mean is None else self._along(mean, self.source.positions.index(self.axis))


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
    return diagonal(pairs.block(u, v, wide.ties), tie, wide)
