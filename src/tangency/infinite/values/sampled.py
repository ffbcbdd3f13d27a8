"""Values whose moments are estimated from samples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments, Positions
from tangency.infinite.values.concrete import product_of_means
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["OfSamples", "Sampled", "sampled_moments", "summed"]

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

    def second_moment(self, side: Side) -> Tensor:
        return side.quantity(self, "samples").square().mean(0)

    def mean(self, side: Side) -> Tensor | None:
        return side.quantity(self, "samples").mean(0)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        if self.origins.isdisjoint(other.origins):
            return product_of_means(self, other, layout, pairs)
        return pairs.from_moments(self, other, layout)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        if self.origins.isdisjoint(other.origins):
            return pairs.from_block(self, other, layout)
        return sampled_moments(self, other, layout, pairs)


def sampled_moments(u: Value, v: Value, layout: Layout, pairs: Pairs) -> Moments:
    """Means over the samples of u v and of their tangents' products."""

    def product(name: str) -> Tensor:
        left = pairs.quantity("left", u, name, layout=layout, wide=True)
        right = pairs.quantity("right", v, name, layout=layout, wide=True)
        return torch.einsum("s...,s...->...", left, right) / left.shape[0]

    return Moments(product("samples"), product("tangents"))


def summed(positions: Positions, terms: Sequence[Term]) -> Value:
    """A sum. Terms that depend on a sampled one are sampled with it.

    An exact covariance beside a sampled cross-covariance need not be positive semi-definite.
    """
    if not any(term.value.sampled for term in terms):
        return Sum(positions, terms)
    rest, joined = list(terms), list[Term]()
    while rest:
        group = _depending([rest.pop(0)], rest)
        rest = [term for term in rest if term not in group]
        if any(t.value.sampled for t in group) and not all(t.value.sampled for t in group):
            whole = Sum(positions, group)
            joined.append(Term(Sampled(positions, [whole], lambda side, part: part)))
        else:
            joined.extend(group)
    return Sum(positions, joined)


def _depending(group: list[Term], others: Sequence[Term]) -> list[Term]:
    """The terms with an origin in common with the group, directly or through others."""
    origins = frozenset[Hashable]().union(*(term.value.origins for term in group))
    more = [t for t in others if t not in group and not origins.isdisjoint(t.value.origins)]
    return _depending([*group, *more], others) if more else group
