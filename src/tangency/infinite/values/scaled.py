"""A value times parameters along its width, and perhaps along positions: the scale of a norm."""

from __future__ import annotations

import string
from collections.abc import Hashable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Positions, Which, place
from tangency.infinite.values.embedding import Embedding
from tangency.infinite.values.sources import Scale as Moments
from tangency.infinite.values.value import Value, at_odds, to_positions

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Scale", "Scaled"]


class Scale:
    """Parameters at their present values, one vector along the width per position.

    Attributes:
        identity, rows: two scales share their parameters where both are equal.
        positions: along which the vector varies.
        values: float64, `(*positions, length)`.
        rows: `(*positions,)`, a number for every vector.
        trainable: whether they count in the NTK.
        parameter: a step of the parameters away from their present values.
    """

    def __init__(
        self,
        identity: Hashable,
        positions: Positions,
        values: Tensor,
        rows: Tensor,
        *,
        trainable: bool,
    ) -> None:
        self.identity = identity
        self.positions = positions
        self.values = values
        self.rows = rows
        self.trainable = trainable
        self.parameter = Embedding(
            positions,
            identity,
            Moments(0.0, float(trainable)),
            lambda side: rows.to(side.device)[..., None],
        )

    @cached_property
    def uniform(self) -> bool:
        """Whether all entries of every vector are equal."""
        return bool((self.values == self.values[..., :1]).all())

    @cached_property
    def positive(self) -> bool:
        """Whether the scale changes the length of a value and not its direction."""
        return self.uniform and bool((self.values > 0).all())

    def mean(self) -> Tensor:
        """Mean over the width, `(*positions,)`."""
        return self.values.mean(-1)

    def square(self) -> Tensor:
        """Mean of the squares over the width, `(*positions,)`."""
        return self.values.square().mean(-1)

    def product(self, other: Scale, layout: Layout) -> Tensor:
        """Means over the width of s s', laid out by `layout` for a batch of one."""
        inner = layout.within(self.positions, other.positions)
        left = [string.ascii_letters[inner.index("left", a)] for a in inner.left]
        right = [string.ascii_letters[inner.index("right", b)] for b in inner.right]
        result = "".join(string.ascii_letters[: inner.rank])
        equation = f"{''.join(left)}Z,{''.join(right)}Z->{result}"
        whole = torch.einsum(equation, self.values, other.values) / self.values.shape[-1]
        return layout.embed(whole[..., None], inner)

    def shared(self, other: Scale, layout: Layout) -> Tensor:
        """Where the two are the same parameters, laid out like `product`."""
        left = place(self.rows[..., None], _dims(layout, "left", self.positions), layout.rank)
        right = place(other.rows[..., None], _dims(layout, "right", other.positions), layout.rank)
        return left == right


class Scaled(Value):
    """s * u with the entries of a scale s at their present values, independent of u.

    K = mean(s s') K_u, and T = mean(s s') T_u + [same s, trainable] K_u.
    """

    precedence = 3

    def __init__(self, source: Value, scale: Scale) -> None:
        new = tuple(a for a in scale.positions if a not in source.positions)
        super().__init__((*source.positions, *new))
        self.source = source
        self.scale = scale

    @cached_property
    def gaussian(self) -> bool:
        if not bool(self.scale.values.any()):
            return True
        return self.scale.uniform and self.source.gaussian

    @cached_property
    def centred(self) -> bool:
        return self.source.centred

    @property
    def parts(self) -> tuple[Value, ...]:
        return (self.source, self.scale.parameter)

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        width = self.scale.values.shape[-1]
        taken = self.scale.values.to(side.device)[..., side.draws.coordinates(width)]
        entries = self._spread(taken.movedim(-1, 0), side) + to_positions(
            parts[1], self.scale.positions, self.positions
        )
        return to_positions(parts[0], self.source.positions, self.positions) * entries

    def _spread(self, values: Tensor, side: Side) -> Tensor:
        """One number per position as a quantity of this value."""
        here = values.to(side.device)[..., None]
        return to_positions(here, self.scale.positions, self.positions)

    def _of_source(self, values: Tensor) -> Tensor:
        return to_positions(values, self.source.positions, self.positions)

    def second_moment(self, side: Side) -> Tensor:
        moment = self._of_source(side.second_moment(self.source))
        return side.full(moment * self._spread(self.scale.square(), side), self.positions)

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        if mean is None:
            return None
        scaled = self._of_source(mean) * self._spread(self.scale.mean(), side)
        return side.full(scaled, self.positions)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        partner = other.source if isinstance(other, Scaled) else other
        inner = layout.within(self.source.positions, partner.positions)
        block = pairs.block(self.source, partner, inner.ties)
        if block is None:
            return None
        factor = self._factor(other, layout, pairs)
        moment = layout.embed(pairs.moment(self.source, partner, block, inner), inner)
        ntk = None
        if block.ntk is not None:
            ntk = layout.embed(block.ntk, inner) * factor.to(pairs.dtype)
        if isinstance(other, Scaled) and self._trained_with(other):
            same = _with_batch(self.scale.shared(other.scale, layout), pairs)
            own = torch.where(same.to(moment.device), moment, 0.0)
            ntk = own if ntk is None else ntk + own
        if self._keeps_direction(other):
            return Block(layout.embed(block.versine, inner), ntk)
        return pairs.from_moment(self, other, moment * factor, ntk, layout)

    def at_odds_with(self, other: Value) -> bool:
        return at_odds(self.source, other.source if isinstance(other, Scaled) else other)

    def _trained_with(self, other: Scaled) -> bool:
        return self.scale.trainable and self.scale.identity == other.scale.identity

    def _keeps_direction(self, other: Value) -> bool:
        """Whether the covariance is that of the sources but for the values' lengths."""
        if not isinstance(other, Scaled):
            return self.scale.positive
        alike = self.scale.identity == other.scale.identity and not self.scale.positions
        return alike or (self.scale.positive and other.scale.positive)

    def _factor(self, other: Value, layout: Layout, pairs: Pairs) -> Tensor:
        """Mean over the width of the product of the two scales."""
        if isinstance(other, Scaled):
            factor = self.scale.product(other.scale, layout)
        else:
            places = _dims(layout, "left", self.scale.positions)
            factor = place(self.scale.mean()[..., None], places, layout.rank)
        return _with_batch(factor, pairs).to(pairs.rows.number(0.0).device)


def _dims(layout: Layout, which: Which, positions: Positions) -> list[int]:
    return [layout.index(which, axis) for axis in positions]


def _with_batch(values: Tensor, pairs: Pairs) -> Tensor:
    """From a batch of one example to one of pairs, where the block has such."""
    return values if pairs.coincident else values[..., None]
