"""Independent copies of a value along new position axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.errors import UnsupportedOperation
from tangency.infinite.layout import Block, Layout, Moments, Positions
from tangency.infinite.values.concrete import product_of_means
from tangency.infinite.values.position import OfSource
from tangency.infinite.values.value import Ask, Covariance, Value, untied

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.sampling.draw import Draw
    from tangency.infinite.sampling.draws import Draws
    from tangency.infinite.side import Side

__all__ = ["Copies"]


class Copies(OfSource):
    """A part of a width as position axes (pixel shuffle): coordinates of a width are i.i.d.

    Two values have the same coordinates at equal places of their `axes`; with values that have no
    such axes they share none.
    """

    precedence = 2.5
    """Above all values that stand for one draw, below what is made of several values."""

    def __init__(self, source: Value, axes: Positions) -> None:
        super().__init__(source, (*axes, *source.positions))
        self.axes = axes

    def second_moment(self, side: Side) -> Tensor:
        moment = side.second_moment(self.source)
        return moment.expand(*(a.size for a in self.axes), *moment.shape)

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        return None if mean is None else mean.expand(*(a.size for a in self.axes), *mean.shape)

    def draw(self, draws: Draws) -> Draw:
        """Independent copies of a Gaussian are drawn as one Gaussian; of others there is no rule.

        Raises:
            UnsupportedOperation: always.
        """
        raise UnsupportedOperation(
            "a pixel shuffle of a value that is not Gaussian cannot be sampled: shuffle first, and "
            "apply the nonlinearity afterwards, which is the same function."
        )

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        if not self._aligned(other):
            return product_of_means(self, other, layout, pairs)
        if self.centred or other.centred:
            return self._copied(other, layout, pairs, pairs.block)
        return pairs.from_moments(self, other, layout)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        if not self._aligned(other):
            return pairs.from_block(self, other, layout)
        return self._copied(other, layout, pairs, pairs.moments)

    def _aligned(self, other: Value) -> bool:
        if not isinstance(other, Copies):
            return False
        return [a.size for a in self.axes] == [b.size for b in other.axes]

    def _copied(
        self, other: Value, layout: Layout, pairs: Pairs, ask: Ask[Covariance]
    ) -> Covariance | None:
        assert isinstance(other, Copies)
        matched = frozenset(zip(self.axes, other.axes, strict=True))
        for a, b in layout.ties - matched:
            if a in self.axes or b in other.axes:
                return untied(self, other, (a, b), layout, ask)
        inner = layout.within(self.source.positions, other.source.positions)
        covariance = ask(self.source, other.source, inner.ties)
        if covariance is None:
            return None
        same = self._same(other, layout, pairs)
        first = layout.embed(covariance[0], inner)
        ntk = None if covariance.ntk is None else layout.embed(covariance.ntk, inner)
        if isinstance(covariance, Block):
            elsewhere: Tensor | float = 1.0
        else:
            elsewhere = self._product_of_means(other, layout, pairs)
        apart = torch.where(same, first, elsewhere)
        return type(covariance)(apart, None if ntk is None else ntk * same)

    def _same(self, other: Copies, layout: Layout, pairs: Pairs) -> Tensor:
        """Whether two copies are the same one, shaped to broadcast in the block."""
        zero = pairs.number(0.0, layout)
        same = torch.ones_like(zero, dtype=torch.bool)
        for a, b in zip(self.axes, other.axes, strict=True):
            same = same & layout.equal(a, b, zero)
        return same

    def _product_of_means(self, other: Value, layout: Layout, pairs: Pairs) -> Tensor | float:
        left, right = pairs.mean("left", self, layout), pairs.mean("right", other, layout)
        return 0.0 if left is None or right is None else left * right
