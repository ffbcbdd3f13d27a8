"""Weights: linear maps over the width, and over positions that they contract or slide along."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.errors import UnsupportedOperation
from tangency.infinite.layout import Block, Layout, Moments, Positions, Ties
from tangency.infinite.roots import root
from tangency.infinite.values.sources import Scale
from tangency.infinite.values.value import Value, fill, to_positions, untied
from tangency.infinite.values.window import Window, joint_sum, single_sum
from tangency.program.axes import Axis, size_of

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Weight", "WeightInput"]

Pieces = Sequence[tuple[float, Value]]


@dataclass(frozen=True, eq=False)
class WeightInput:
    """What a weight multiplies: pieces of the input's width, averaged over positions it contracts.

    Attributes:
        pieces: gives, for a set of cuts of the width, the pieces as (fraction of width, value).
        cuts: where along the width the input changes its nature (a concatenation).
        contracted: position axes that the weight also sums over (flatten, then linear), in order.
        signature: kinds and sizes of the contracted axes in order; equal for two inputs whose
            coordinates meet the same weights.
        centred: whether the input has mean zero (then it is uncorrelated with constants).
        windows: axes along which the weight slides (a convolution), in order.
    """

    pieces: Callable[[frozenset[int]], tuple[tuple[float, Value], ...]]
    cuts: frozenset[int]
    contracted: Positions
    signature: tuple[object, ...]
    centred: bool
    windows: tuple[Window, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the input is a width of one nature and nothing else."""
        return not (self.contracted or self.windows or self.cuts)

    @property
    def count(self) -> int:
        """Number of positions over which one output is a mean: taps and contracted positions."""
        taps = [window.taps for window in self.windows]
        sizes = [axis.size for axis in self.contracted]
        product = 1
        for size in (*taps, *sizes):
            product *= size
        return product


class Weight(Value):
    """W u over i.i.d. rows of W: a zero-mean Gaussian with covariance w2 E[u u']."""

    precedence = 1
    gaussian = True
    centred = True

    def __init__(
        self,
        positions: Positions,
        identity: tuple[object, ...],
        scale: Scale,
        source: WeightInput,
    ) -> None:
        super().__init__(positions)
        self.identity = identity
        self.scale = scale
        self.source = source

    @cached_property
    def _rest(self) -> Positions:
        """Positions that the weight leaves as they are."""
        targets = [window.target for window in self.source.windows]
        return tuple(a for a in self.positions if a not in targets)

    @cached_property
    def _reads(self) -> Positions:
        """Positions of the input."""
        sources = [window.source for window in self.source.windows]
        return (*sources, *self.source.contracted, *self._rest)

    @property
    def reads(self) -> int:
        return size_of(self._reads)

    @property
    def _makes(self) -> Positions:
        """Positions of the result in the order of `_reads`, axes of size one included."""
        return (*(window.target for window in self.source.windows), *self._rest)

    @cached_property
    def origins(self) -> frozenset[Hashable]:
        return frozenset({self.identity})

    # -- one example ---------------------------------------------------------------------------

    def input_moment(self, side: Side) -> Tensor:
        """E[u^2] of the input, averaged over its width, the taps and the contracted positions."""
        total = side.number(0.0)
        for fraction, value in self.source.pieces(frozenset()):
            moment = side.second_moment(value)
            total = total + fraction * to_positions(moment, value.positions, self._reads)
        for dim, window in enumerate(self.source.windows):
            total = single_sum(total, dim, window)
        total = self._contract(total) / self.source.count
        return side.full(self._squeeze(total), self.positions)

    def _contract(self, values: Tensor) -> Tensor:
        """Sum over the contracted positions, which follow the windows'."""
        start = len(self.source.windows)
        for axis in self.source.contracted:
            values = fill(values, start, axis.size).sum(dim=start)
        return values

    def _squeeze(self, values: Tensor) -> Tensor:
        """From `(*_makes, n)` to `(*positions, n)`."""
        for dim in reversed(range(len(self.source.windows))):
            if self.source.windows[dim].target not in self.positions:
                values = values.squeeze(dim)
        have = tuple(a for a in self._makes if a in self.positions)
        return to_positions(values, have, self.positions)

    def input_sd(self, side: Side) -> Tensor:
        """Square root of `input_moment`."""
        return root(side.quantity(self, "input_moment"))

    def second_moment(self, side: Side) -> Tensor:
        return self.scale.forward * side.quantity(self, "input_moment")

    # -- pairs ---------------------------------------------------------------------------------

    @property
    def by_moments(self) -> bool:
        """Whether covariances are computed as moments rather than as norms and angles."""
        return bool(self.source.windows)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        if not self._shared_with(other):
            return None
        assert isinstance(other, Weight)
        if self.by_moments or pairs.smooth:
            return pairs.from_moments(self, other, layout)
        inputs = self._input_block(other, layout, pairs)
        if inputs is None:
            return None
        left = pairs.quantity("left", self, "input_sd", layout=layout)
        right = pairs.quantity("right", other, "input_sd", layout=layout)
        total = self.scale.gradient * (left * right * (1 - inputs.versine))
        if inputs.ntk is not None:
            total = total + self.scale.forward * inputs.ntk
        return Block(inputs.versine, total)

    def _input_block(self, other: Weight, layout: Layout, pairs: Pairs) -> Block | None:
        """Versine and NTK of two inputs, averaged over their width and contracted positions.

        With x, y the shares of a piece in the norms of the two inputs, the versine of the whole is
        the mean of x y v + (x - y)^2 / 2: nothing cancels.
        """
        whole = self._input_layout(other, layout)
        blocks = []
        for fraction, u, v in self._pieces_with(other):
            inner = whole.within(u.positions, v.positions)
            block = pairs.block(u, v, inner.ties)
            if block is not None:
                ntk = None if block.ntk is None else whole.embed(block.ntk, inner)
                block = Block(whole.embed(block.versine, inner), ntk)
            blocks.append((fraction, u, v, block))
        if all(block is None for *_, block in blocks):
            return None
        if len(blocks) == 1 and not self.source.contracted:
            return blocks[0][-1]
        versine, ntk = pairs.number(0.0, layout), None
        for fraction, u, v, block in blocks:
            weight = fraction / self.source.count
            x = pairs.quantity("left", self, "share", u, layout=whole)
            y = pairs.quantity("right", other, "share", v, layout=whole)
            angle = 1.0 if block is None else block.versine
            apart = 0.5 * (x - y).square() + x * y * angle
            versine = versine + weight * self._contract(apart)
            if block is not None and block.ntk is not None:
                ntk = _add(ntk, weight * self._contract(block.ntk))
        return Block(versine, ntk)

    def share(self, piece: Value, side: Side) -> Tensor:
        """sd of one piece over sd of the input, shape `(*contracted, *positions, n)`."""
        total = to_positions(side.quantity(self, "input_sd"), self.positions, self._reads)
        part = to_positions(side.sd(piece), piece.positions, self._reads)
        return torch.where(total > 0, part / torch.where(total > 0, total, 1.0), 0.0)

    def _pieces_with(self, other: Weight) -> Iterator[tuple[float, Value, Value]]:
        """Pieces of both inputs over the same cuts."""
        cuts = self.source.cuts | other.source.cuts
        mine, yours = self.source.pieces(cuts), other.source.pieces(cuts)
        for (fraction, u), (_, v) in zip(mine, yours, strict=True):
            yield fraction, u, v

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        if not self._shared_with(other):
            return None
        assert isinstance(other, Weight)
        if not (self.by_moments or pairs.smooth):
            return pairs.from_block(self, other, layout)
        for tie in layout.ties:
            if not self._stays_tied(tie, other):
                return untied(self, other, tie, layout, pairs.moments)
        inputs = self._input_moments(other, layout, pairs)
        if inputs is None:
            return None
        moment, ntk = inputs
        gradient = self.scale.gradient * moment.to(pairs.dtype)
        total = gradient if ntk is None else gradient + self.scale.forward * ntk
        return Moments(self.scale.forward * moment, total)

    def _shared_with(self, other: Value) -> bool:
        """Whether both are products with the same weight, of inputs that may be correlated."""
        if not isinstance(other, Weight) or other.identity != self.identity:
            return False
        if self.source.signature == other.source.signature:
            return True
        if self.source.plain and other.source.plain:
            return True  # data and random values: the width of the one is that of the other
        if self.source.centred or other.source.centred:
            return False
        raise UnsupportedOperation(
            f"the weight {self.identity[0]} multiplies inputs laid out as "
            f"{self.source.signature} and {other.source.signature}: give it one layout."
        )

    def _stays_tied(self, tie: tuple[Axis, Axis], other: Weight) -> bool:
        """Whether equal output positions read equal input positions of both."""
        mine = [window for window in self.source.windows if window.target is tie[0]]
        yours = [window for window in other.source.windows if window.target is tie[1]]
        return [window.geometry for window in mine] == [window.geometry for window in yours]

    def _input_layout(self, other: Weight, layout: Layout) -> Layout:
        ties = set(zip(self.source.contracted, other.source.contracted, strict=True))
        here = {window.target: window.source for window in self.source.windows}
        there = {window.target: window.source for window in other.source.windows}
        for mine, yours in zip(self.source.windows, other.source.windows, strict=True):
            alone = mine.target.size == 1 and yours.target.size == 1
            if alone and mine.geometry == yours.geometry:
                ties.add((mine.source, yours.source))
        ties |= {(here.get(a, a), there.get(b, b)) for a, b in layout.ties}
        return Layout(self._reads, other._reads, frozenset(ties))

    def _input_moments(self, other: Weight, layout: Layout, pairs: Pairs) -> Moments | None:
        """Moments of the two inputs, averaged over width, taps and contracted positions."""
        whole = self._input_layout(other, layout)
        moment: Tensor | None = None
        ntk: Tensor | None = None
        for fraction, u, v in self._pieces_with(other):
            inner = whole.within(u.positions, v.positions)
            piece = pairs.moments(u, v, inner.ties)
            if piece is not None:
                weight = fraction / self.source.count
                moment = _add(moment, weight * whole.embed(piece.moment, inner))
                if piece.ntk is not None:
                    ntk = _add(ntk, weight * whole.embed(piece.ntk, inner))
        if moment is None:
            return None
        pooled = self._pool(moment, other, whole, layout)
        return Moments(pooled, None if ntk is None else self._pool(ntk, other, whole, layout))

    def _pool(self, values: Tensor, other: Weight, whole: Layout, layout: Layout) -> Tensor:
        """Sum over the taps and the contracted positions, in the layout asked for."""
        for mine, yours in zip(self.source.windows, other.source.windows, strict=True):
            i, j = whole.index("left", mine.source), whole.index("right", yours.source)
            if i == j:
                values = single_sum(values, i, mine)
            else:
                values = joint_sum(values, (i, j), (mine, yours))
        values = self._contract(values)
        left, right = self._makes, other._makes
        made = Layout(left, right, _made_ties(self, other, whole))
        gone = [made.index("left", a) for a in left if a not in self.positions]
        gone += [made.index("right", b) for b in made.free_right if b not in other.positions]
        for dim in sorted(gone, reverse=True):
            values = values.squeeze(dim)
        kept = Layout(
            tuple(a for a in left if a in self.positions),
            tuple(b for b in right if b in other.positions),
            layout.ties,
        )
        return layout.embed(values, kept)


def _made_ties(u: Weight, v: Weight, whole: Layout) -> Ties:
    """Ties of the inputs' layout, in terms of the results' positions."""
    mine = {window.source: window.target for window in u.source.windows}
    yours = {window.source: window.target for window in v.source.windows}
    gone = set(u.source.contracted)
    return frozenset((mine.get(a, a), yours.get(b, b)) for a, b in whole.ties if a not in gone)


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total + part
