"""Pointwise functions of one Gaussian value."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from tangency.infinite.duals import series
from tangency.infinite.duals.dual import Dual
from tangency.infinite.duals.expansion import expand, expand_all, truncation
from tangency.infinite.duals.kinks import KnownKinks
from tangency.infinite.layout import Block, Layout, Positions
from tangency.infinite.values.concrete import Concrete, product_of_means
from tangency.infinite.values.sources import One
from tangency.infinite.values.value import Value, to_positions

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["AccuracyWarning", "Composite", "Function"]

Function: TypeAlias = "Callable[[Side | None, Positions], Callable[[Tensor], Tensor]]"
"""For a side (which supplies constants per example), the function on `(nodes, *positions, n)`."""


TOLERATED = 1e-2
"""Truncation bound from which a numerical dual is worth a warning; it is a worst case."""

_OF_A_SERIES = 128
"""Numbers of a Hermite series: some 30 coefficients of a smooth function, 300 of one with kinks."""

_AT_ALL_NODES = 8 * 800
"""Numbers while a series is made, of a function that varies: it cannot be made in parts."""


class AccuracyWarning(UserWarning):
    """A numerical dual is less accurate than usual; the message says how much."""


class Composite(Value):
    """phi(g), coordinate by coordinate, of a Gaussian value g.

    `key` identifies phi: two composites with equal keys apply the same function. `dual` is its
    closed form, where it has one; otherwise the Hermite series of `function` is used. `kinks` says
    that phi is the same for all examples and positions, and holds what is known of its kinks, for
    all composites with this key.
    """

    precedence = 2
    gaussian = False
    centred = False

    def __init__(
        self,
        positions: Positions,
        source: Value,
        function: Function,
        key: Hashable,
        dual: Dual | None,
        *,
        kinks: KnownKinks | None = None,
    ) -> None:
        super().__init__(positions)
        self.source = source
        self.function = function
        self.key = key
        self.dual = dual
        self.kinks = kinks

    @property
    def fixed(self) -> bool:
        """Whether phi is the same for all examples and positions."""
        return self.kinks is not None

    @property
    def parts(self) -> tuple[Value, ...]:
        return (self.source,)

    def numbers_held(self, one: Callable[[], Side]) -> int:
        series = _OF_A_SERIES if self.fixed else _AT_ALL_NODES
        return super().numbers_held(one) + (series if self.dual is None else 0)

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        source = to_positions(parts[0], self.source.positions, self.positions)
        return self.function(side, self.positions)(source)

    def _source_sd(self, side: Side) -> Tensor:
        sd = to_positions(side.sd(self.source), self.source.positions, self.positions)
        return side.full(sd, self.positions)

    def closed_form(self, side: Side) -> dict[str, Tensor]:
        """What the closed form needs to know of one side."""
        assert self.dual is not None
        return self.dual.moments(self._source_sd(side))

    def expansion(self, side: Side) -> dict[str, Tensor]:
        """The Hermite series on one side, as accurate as the side's data type."""
        sd = self._source_sd(side).to(side.dtype)  # its type says how long the series has to be
        make = expand_all if self.fixed else expand
        expansion = make(self.function(side, self.positions), sd, known=self.kinks)
        bound = float(truncation(expansion).detach().max())
        if bound > TOLERATED:
            warnings.warn(
                f"{self.name} meets inputs of so large a variance that its Hermite series is cut "
                f"short: E[phi' phi'] of nearly equal inputs may be off by {bound:.1g} relative "
                "to its largest value (the diagonal is exact). Smaller weights or inputs help.",
                AccuracyWarning,
                stacklevel=2,
            )
        return expansion

    @property
    def name(self) -> str:
        """The operation, for messages."""
        return str(self.key[0]) if isinstance(self.key, tuple) else str(self.key)

    def entry(self, table: str, name: str, side: Side) -> Tensor:
        """One entry of `closed_form` or `expansion`."""
        entries: dict[str, Tensor] = side.memo((table, self), lambda: getattr(self, table)(side))
        return entries[name]

    def slope(self, side: Side) -> Tensor:
        """E[phi'(g)]."""
        return self.entry("expansion", "slope", side)

    @property
    def _table(self) -> str:
        return "expansion" if self.dual is None else "closed_form"

    def second_moment(self, side: Side) -> Tensor:
        return self.entry(self._table, "sd", side).square()

    def mean(self, side: Side) -> Tensor | None:
        if self.dual is not None:
            mean = self.dual.mean(self._source_sd(side))
            if mean is not None:
                return mean
        return self.entry("expansion", "mean", side)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        if isinstance(other, Composite):
            return self._with_composite(other, layout, pairs)
        if isinstance(other, (One, Concrete)):
            return product_of_means(self, other, layout, pairs)
        return self._with_gaussian(other, layout, pairs)

    def _with_composite(self, other: Composite, layout: Layout, pairs: Pairs) -> Block | None:
        inner = layout.within(self.source.positions, other.source.positions)
        block = pairs.block(self.source, other.source, inner.ties)
        if block is None:
            return product_of_means(self, other, layout, pairs)
        versine = layout.embed(block.versine, inner)
        ntk = None if block.ntk is None else layout.embed(block.ntk, inner)
        same = self.key == other.key
        table = self._table if same else "expansion"
        left = pairs.table("left", self, table, layout)
        right = pairs.table("right", other, table, layout)
        if not same:
            moment, derivative = series.cross(left, right, versine)
            scaled = None if ntk is None else derivative * ntk
            return pairs.from_moment(self, other, moment, scaled, layout)
        if self.dual is None:
            versine, derivative = series.pair(left, right, versine)
        else:
            versine, derivative = self.dual.pair(left, right, versine)
        return Block(versine, None if ntk is None else derivative * ntk)

    def _with_gaussian(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        """Stein: E[phi(g) h] = E[phi'] E[g h] for jointly Gaussian g, h."""
        inner = layout.within(self.source.positions, other.positions)
        block = pairs.block(self.source, other, inner.ties)
        if block is None:
            return None
        slope = pairs.quantity("left", self, "slope", layout=layout)
        moment = layout.embed(pairs.moment(self.source, other, block, inner), inner) * slope
        ntk = None if block.ntk is None else layout.embed(block.ntk, inner) * slope
        return pairs.from_moment(self, other, moment, ntk, layout)
