"""Linear combinations of values, with coefficients per example and position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Positions
from tangency.infinite.values.value import Value, leaves_of, to_positions, uncorrelated

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Coefficient", "Sum", "Term"]


@dataclass(frozen=True, eq=False)
class Coefficient:
    """A factor that is the same over the width: a number, or one per example and position.

    Attributes:
        evaluate: gives `(*positions, n)` for a side.
        positions: position axes of what `evaluate` gives.
    """

    evaluate: Callable[[Side], Tensor]
    positions: Positions


@dataclass(frozen=True)
class Term:
    """`number * product of coefficients * value`."""

    value: Value
    number: float = 1.0
    coefficients: tuple[Coefficient, ...] = ()

    @property
    def trivial(self) -> bool:
        """Whether the factor is one."""
        return self.number == 1.0 and not self.coefficients

    def scaled(self, number: float = 1.0, *coefficients: Coefficient) -> Term:
        """This term times a number and further coefficients."""
        return Term(self.value, self.number * number, (*self.coefficients, *coefficients))


class Sum(Value):
    """sum_i a_i u_i. The terms may depend on each other; all cross pairs are accounted for."""

    precedence = 6

    def __init__(self, positions: Positions, terms: Sequence[Term]) -> None:
        super().__init__(positions)
        self.terms = tuple(terms)

    @cached_property
    def gaussian(self) -> bool:
        return all(term.value.gaussian for term in self.terms)

    @cached_property
    def centred(self) -> bool:
        return all(term.value.centred for term in self.terms)

    @cached_property
    def gaussian_part(self) -> Sum:
        """The sum of the Gaussian terms."""
        return Sum(self.positions, [term for term in self.terms if term.value.gaussian])

    @property
    def parts(self) -> tuple[Value, ...]:
        return tuple(term.value for term in self.terms)

    @cached_property
    def leaves(self) -> tuple[Value, ...]:
        return leaves_of(self.parts)

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        total = side.number(0.0)
        for i, (part, term) in enumerate(zip(parts, self.terms, strict=True)):
            spread = to_positions(part, term.value.positions, self.positions)
            total = total + side.quantity(self, "amplitude", i) * spread
        return total

    def amplitude(self, index: int, side: Side) -> Tensor:
        """a_i, shape `(*positions, n)`."""
        term = self.terms[index]
        product = side.number(term.number)
        for factor in term.coefficients:
            values = factor.evaluate(side)
            product = product * to_positions(values, factor.positions, self.positions)
        return side.full(product, self.positions)

    def share(self, index: int, side: Side) -> Tensor:
        """a_i sd(u_i) / sd(u), shape `(*positions, n)`; the squares add to one if uncorrelated."""
        value = self.terms[index].value
        own = to_positions(side.sd(value), value.positions, self.positions)
        total = side.sd(self)
        part = self.amplitude(index, side) * own
        return torch.where(total > 0, part / torch.where(total > 0, total, 1.0), 0.0)

    def second_moment(self, side: Side) -> Tensor:
        total = side.number(0.0)
        amplitudes = [self.amplitude(i, side) for i in range(len(self.terms))]
        for i, term in enumerate(self.terms):
            moment = to_positions(
                side.second_moment(term.value), term.value.positions, self.positions
            )
            total = total + amplitudes[i].square() * moment
            for j in range(i):
                cross = side.coincident_moment(self.terms[j].value, term.value, self.positions)
                if cross is not None:
                    total = total + 2 * amplitudes[i] * amplitudes[j] * cross
        # Terms that cancel, such as u - u, leave a rounding error of either sign.
        return side.full(total.clamp_min(0), self.positions)

    def mean(self, side: Side) -> Tensor | None:
        total = None
        for i, term in enumerate(self.terms):
            mean = side.mean(term.value)
            if mean is not None:
                spread = to_positions(mean, term.value.positions, self.positions)
                part = self.amplitude(i, side) * spread
                total = part if total is None else total + part
        return None if total is None else side.full(total, self.positions)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        partner = other if isinstance(other, Sum) else other.memo(_alone)
        blocks = self._blocks(partner, layout, pairs)
        if not blocks:
            return None
        count = len(self.terms)
        matched = len(partner.terms) == count and all(i == j for i, j in blocks)
        if matched and len(blocks) == count and not pairs.smooth:
            versine = self._matched(partner, blocks, layout, pairs)
        else:
            versine = self._general(partner, layout, pairs)
        return Block(versine, self._ntk(partner, blocks, layout, pairs))

    def _blocks(self, other: Sum, layout: Layout, pairs: Pairs) -> dict[tuple[int, int], Block]:
        blocks = {}
        for i, mine in enumerate(self.terms):
            for j, yours in enumerate(other.terms):
                if uncorrelated(mine.value, yours.value):
                    continue
                inner = layout.within(mine.value.positions, yours.value.positions)
                block = pairs.block(mine.value, yours.value, inner.ties)
                if block is not None:
                    ntk = None if block.ntk is None else layout.embed(block.ntk, inner)
                    blocks[i, j] = Block(layout.embed(block.versine, inner), ntk)
        return blocks

    def _shares(self, other: Sum, i: int, j: int, pairs: Pairs, layout: Layout) -> list[Tensor]:
        return [
            pairs.quantity("left", self, "share", i, layout=layout),
            pairs.quantity("right", other, "share", j, layout=layout),
        ]

    def _matched(
        self, other: Sum, blocks: dict[tuple[int, int], Block], layout: Layout, pairs: Pairs
    ) -> Tensor:
        """With unit vectors x, y of shares: 1 - sum x y (1 - v) = sum x y v + |x - y|^2 / 2.

        Nothing cancels, so near-duplicates keep their relative accuracy.
        """
        total = None
        for i, j in blocks:
            x, y = self._shares(other, i, j, pairs, layout)
            part = 0.5 * (x - y).square() + x * y * blocks[i, j].versine
            total = part if total is None else total + part
        assert total is not None
        return total

    def _general(self, other: Sum, layout: Layout, pairs: Pairs) -> Tensor:
        """Terms that depend on each other, by subtraction: in float64, so that an angle of the sum
        has an absolute error of 1e-8 near 0.
        """
        total = pairs.number(0.0, layout, wide=True)
        for i, mine in enumerate(self.terms):
            for j, yours in enumerate(other.terms):
                inner = layout.within(mine.value.positions, yours.value.positions)
                moments = pairs.moments(mine.value, yours.value, inner.ties)
                if moments is not None:
                    a = pairs.quantity("left", self, "amplitude", i, layout=layout, wide=True)
                    b = pairs.quantity("right", other, "amplitude", j, layout=layout, wide=True)
                    total = total + a * b * layout.embed(moments.moment, inner)
        return pairs.from_moment(self, other, total, None, layout).versine

    def _ntk(
        self, other: Sum, blocks: dict[tuple[int, int], Block], layout: Layout, pairs: Pairs
    ) -> Tensor | None:
        total = None
        for (i, j), block in blocks.items():
            if block.ntk is None:
                continue
            part = block.ntk
            if not self.terms[i].trivial:
                part = pairs.quantity("left", self, "amplitude", i, layout=layout) * part
            if not other.terms[j].trivial:
                part = pairs.quantity("right", other, "amplitude", j, layout=layout) * part
            total = part if total is None else total + part
        return total


def _alone(value: Value) -> Sum:
    """A value as a sum of itself."""
    return Sum(value.positions, [Term(value)])
