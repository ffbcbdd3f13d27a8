"""Weights that differ from position to position: locally connected layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments, Positions
from tangency.infinite.values.value import Ask, Covariance, Value, untied
from tangency.infinite.values.weight import Weight

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Unshared"]


class Unshared(Value):
    """A product with a weight of its own at every place of `axes`: independent Gaussians.

    At equal places the covariance is that of `source`, a product with one weight.
    """

    precedence = 1
    gaussian = True
    centred = True

    def __init__(self, source: Weight, axes: Positions) -> None:
        super().__init__(source.positions)
        self.source = source
        self.axes = axes

    @property
    def origins(self) -> frozenset[object]:
        return self.source.origins

    def second_moment(self, side: Side) -> Tensor:
        return side.second_moment(self.source)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        return self._at_equal_places(other, layout, pairs, pairs.block)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        return self._at_equal_places(other, layout, pairs, pairs.moments)

    def _at_equal_places(
        self, other: Value, layout: Layout, pairs: Pairs, ask: Ask[Covariance]
    ) -> Covariance | None:
        if not isinstance(other, Unshared) or other.source.identity != self.source.identity:
            return None
        matched = frozenset(zip(self.axes, other.axes, strict=True))
        for a, b in layout.ties - matched:
            if a in self.axes or b in other.axes:
                return untied(self, other, (a, b), layout, ask)
        inner = Layout(layout.left, layout.right, layout.ties | matched)
        covariance = ask(self.source, other.source, inner.ties)
        if covariance is None:
            return None
        same = self._same(other, layout, pairs)
        first = layout.embed(covariance[0], inner)
        ntk = None if covariance.ntk is None else layout.embed(covariance.ntk, inner) * same
        elsewhere = 1.0 if isinstance(covariance, Block) else 0.0
        return type(covariance)(torch.where(same, first, elsewhere), ntk)

    def _same(self, other: Unshared, layout: Layout, pairs: Pairs) -> Tensor:
        """Whether two places are the same, shaped to broadcast in the block."""
        zero = pairs.number(0.0, layout)
        same = torch.ones_like(zero, dtype=torch.bool)
        for a, b in zip(self.axes, other.axes, strict=True):
            same = same & layout.equal(a, b, zero)
        return same
