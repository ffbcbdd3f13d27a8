"""Values whose moments are estimated from samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments, Positions
from tangency.infinite.values.concrete import product_of_means
from tangency.infinite.values.value import Value, to_positions

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.sampling.draw import Draw
    from tangency.infinite.sampling.draws import Draws
    from tangency.infinite.side import Side

__all__ = ["OfSamples", "Sampled", "SampledPointwise", "sampled_moments"]

OfSamples: TypeAlias = "Callable[..., Tensor]"
"""`(side, *parts)`: a function of samples `(S, *positions, n)` of each operand that acts on every
sample and example by itself (it may mix positions); gives `(S, *positions, n)`."""


class Sampled(Value):
    """Any coordinatewise function of values, by samples: see `tangency.infinite.sampling`.

    The sampled moments of two values are those of joint samples, so that all of them together are
    positive semi-definite. Values of other origins are independent, without error.
    """

    precedence = 4
    gaussian = False
    centred = False

    def __init__(
        self, positions: Positions, operands: Sequence[Value], function: OfSamples
    ) -> None:
        super().__init__(positions)
        self.operands = tuple(operands)
        self.function = function

    @cached_property
    def sampled(self) -> bool:
        return True

    @property
    def parts(self) -> tuple[Value, ...]:
        return self.operands

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        return self.function(side, *parts)

    @property
    def whole(self) -> bool:
        return True

    def second_moment(self, side: Side) -> Tensor:
        return self._moments(side)[1]

    def mean(self, side: Side) -> Tensor | None:
        return self._moments(side)[0]

    def _moments(self, side: Side) -> tuple[Tensor, Tensor]:
        """Means over the samples of the value and of its square."""

        def compute() -> tuple[Tensor, Tensor]:
            first, second, count = side.number(0.0), side.number(0.0), 0
            for part in side.parts(self):
                values = side.samples(self, part).value.double()
                first, second = first + values.sum(0), second + values.square().sum(0)
                count = part.stop
            return first / count, second / count

        return side.memo((self, "moments of samples"), compute)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        if self.origins.isdisjoint(other.origins):
            return product_of_means(self, other, layout, pairs)
        return pairs.from_moments(self, other, layout)

    def at_odds_with(self, other: Value) -> bool:
        return not isinstance(other, Sampled)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        if self.origins.isdisjoint(other.origins):
            return pairs.from_block(self, other, layout)
        return sampled_moments(self, other, layout, pairs)


class SampledPointwise(Sampled):
    """The same, of a function that acts on every position by itself.

    Where no operand moves, it does not move either. Rectified values are zero and stand still with
    positive probability; a root of them has an infinite slope there (`LPPool` of an empty window),
    and to automatic differentiation zero times infinity is NaN.
    """

    def draw(self, draws: Draws) -> Draw:
        draw = super().draw(draws)
        moves = torch.zeros_like(draw.tangent, dtype=torch.bool)
        for part in self.parts:
            moves |= to_positions(draws.of(part).tangent != 0, part.positions, self.positions)
        return draw._replace(tangent=torch.where(moves, draw.tangent, 0.0))


def sampled_moments(u: Value, v: Value, layout: Layout, pairs: Pairs) -> Moments:
    """Means over the samples of u v and of their tangents' products."""
    totals: list[Tensor] = []
    count = 0
    for part in pairs.parts(u, v):
        left = pairs.samples("left", u, part, layout)
        right = pairs.samples("right", v, part, layout)
        for k, (a, b) in enumerate(zip(left, right, strict=True)):
            product = torch.einsum("s...,s...->...", a, b)
            if count:
                totals[k] += product
            else:
                totals.append(product)
        count = part.stop
    return Moments(totals[0].div_(count), totals[1].div_(count))
