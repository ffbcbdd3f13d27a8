"""Products of independent values: gates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments, Positions, Which
from tangency.infinite.values.sampled import sampled_moments
from tangency.infinite.values.value import Value, at_odds, to_positions

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Product", "independent_factors"]


class _Group(NamedTuple):
    """Factors of two products that depend on each other, and on no other factor."""

    left: list[Value]
    right: list[Value]


class Product(Value):
    """u_1 u_2 ... of independent factors: K = K_1 K_2 ..., T = sum_i T_i prod_(j != i) K_j."""

    precedence = 5
    gaussian = False

    def __init__(self, positions: Positions, factors: Sequence[Value]) -> None:
        super().__init__(positions)
        self.factors = tuple(factors)

    @cached_property
    def centred(self) -> bool:
        return any(factor.centred for factor in self.factors)

    @property
    def parts(self) -> tuple[Value, ...]:
        return self.factors

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        product = side.number(1.0)
        for part, factor in zip(parts, self.factors, strict=True):
            product = product * to_positions(part, factor.positions, self.positions)
        return product

    def second_moment(self, side: Side) -> Tensor:
        product = side.number(1.0)
        for factor in self.factors:
            moment = side.second_moment(factor)
            product = product * to_positions(moment, factor.positions, self.positions)
        return side.full(product, self.positions)

    def mean(self, side: Side) -> Tensor | None:
        product = side.number(1.0)
        for factor in self.factors:
            mean = side.mean(factor)
            if mean is None:
                return None
            product = product * to_positions(mean, factor.positions, self.positions)
        return side.full(product, self.positions)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        groups = _groups(self.factors, _factors(other))
        if any(len(left) != 1 or len(right) != 1 for left, right in groups):
            return pairs.from_moments(self, other, layout)
        versine = pairs.number(0.0, layout)
        moments: list[Moments] = []
        for (u,), (v,) in groups:
            inner = layout.within(u.positions, v.positions)
            block = pairs.block(u, v, inner.ties)
            if block is None:
                return None
            angle = layout.embed(block.versine, inner)
            versine = versine + angle - versine * angle  # 1 - (1 - v)(1 - v'), nothing cancels
            moment = layout.embed(pairs.moment(u, v, block, inner), inner)
            ntk = None if block.ntk is None else layout.embed(block.ntk, inner)
            moments.append(Moments(moment, ntk))
        return Block(versine, _product(moments).ntk)

    def at_odds_with(self, other: Value) -> bool:
        groups = [group for group in _groups(self.factors, _factors(other)) if all(group)]
        alone = all(len(left) == len(right) == 1 for left, right in groups)
        return not alone or any(at_odds(u, v) for (u,), (v,) in groups)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        parts = []
        for left, right in _groups(self.factors, _factors(other)):
            part = _group_moments(left, right, layout, pairs)
            if part is None:
                return None
            parts.append(part)
        return _product(parts)


def independent_factors(values: Sequence[Value]) -> tuple[Value, ...] | None:
    """The factors of a product of values; None if any two of the values depend on each other."""
    for i, value in enumerate(values):
        if any(_related(value, other) for other in values[:i]):
            return None
    return tuple(factor for value in values for factor in _factors(value))


def _factors(value: Value) -> tuple[Value, ...]:
    return value.factors if isinstance(value, Product) else (value,)


def _groups(left: Sequence[Value], right: Sequence[Value]) -> list[_Group]:
    """Factors of both sides in groups that share no origins."""
    groups: list[_Group] = []
    for side, factors in enumerate((left, right)):
        for factor in factors:
            alone = _Group([factor], []) if side == 0 else _Group([], [factor])
            near = [g for g in groups if any(_related(factor, v) for v in (*g.left, *g.right))]
            groups = [g for g in groups if g not in near]
            merged = [*near, alone]
            groups.append(
                _Group([v for g in merged for v in g.left], [v for g in merged for v in g.right])
            )
    return groups


def _related(u: Value, v: Value) -> bool:
    return not u.origins.isdisjoint(v.origins)


def _product(parts: Sequence[Moments]) -> Moments:
    """Moments of a product of independent pairs."""
    moment, ntk = parts[0]
    for factor, own in parts[1:]:
        kept = None if ntk is None else ntk * factor
        new = None if own is None else own * moment.to(own.dtype)
        ntk = kept if new is None else new if kept is None else kept + new
        moment = moment * factor
    return Moments(moment, ntk)


def _group_moments(
    left: Sequence[Value], right: Sequence[Value], layout: Layout, pairs: Pairs
) -> Moments | None:
    """E of the product of all factors of a group; None if it is zero."""
    if len(left) == 1 and len(right) == 1:
        inner = layout.within(left[0].positions, right[0].positions)
        found = pairs.moments(left[0], right[0], inner.ties)
        if found is None:
            return None
        ntk = None if found.ntk is None else layout.embed(found.ntk, inner)
        return Moments(layout.embed(found.moment, inner), ntk)
    if left and right:
        u = left[0].memo(_together, tuple(left), layout.left)
        v = right[0].memo(_together, tuple(right), layout.right)
        return sampled_moments(u, v, layout, pairs)
    which: Which = "left" if left else "right"
    moment = pairs.number(1.0, layout, wide=True)
    for value in left or right:
        inner = layout.swap(which, value.positions)
        mean = pairs.mean(which, value, inner)
        if mean is None:
            return None
        moment = moment * layout.embed(mean, inner)
    return Moments(moment, None)


def _together(first: Value, factors: tuple[Value, ...], positions: Positions) -> Product:
    """The product of factors that begin with `first`."""
    assert factors[0] is first
    return Product(positions, factors)
