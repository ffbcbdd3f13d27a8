"""Pointwise functions of two independent Gaussian values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from tangency.infinite.duals.two_gaussians import DualOfTwo
from tangency.infinite.duals.two_gaussians_cones import FunctionOfTwo
from tangency.infinite.duals.two_gaussians_piecewise import PiecewiseLinearOfTwo
from tangency.infinite.layout import Block, Layout, Positions
from tangency.infinite.values.composite import TOLERATED, AccuracyWarning
from tangency.infinite.values.concrete import product_of_means
from tangency.infinite.values.sampled import sampled_moments
from tangency.infinite.values.value import Value, to_positions
from tangency.program.axes import size_of

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["CompositeOfTwo", "pair_of_two"]

PIECE = 1 << 15
"""Entries of a covariance that are computed at a time: the rule's many intermediate results stay in
cache."""


class CompositeOfTwo(Value):
    """psi(g1, g2), coordinate by coordinate, of two independent Gaussian values.

    `key` identifies psi, which is the same function for all examples; `dual` is its rule.

    K = E[psi psi'] and T = E[d1 psi d1 psi'] T_1 + E[d2 psi d2 psi'] T_2, by a deterministic rule
    (`tangency.infinite.duals.two_gaussians`). Its covariance with other functions of the same
    Gaussians, but for linear ones, has none: it is sampled.
    """

    precedence = 2.25
    gaussian = False
    centred = False

    def __init__(
        self,
        positions: Positions,
        sources: tuple[Value, Value],
        function: FunctionOfTwo,
        key: Hashable,
        dual: DualOfTwo,
    ) -> None:
        super().__init__(positions)
        self.sources = sources
        self.function = function
        self.key = key
        self.dual = dual

    @property
    def parts(self) -> tuple[Value, ...]:
        return self.sources

    def numbers_held(self, one: Callable[[], Side]) -> int:
        """The degree of a series grows with the variances."""
        side = one()
        names = side.names(self, "expansion")
        held = sum(self.entry("expansion", name, side).numel() for name in names)
        return super().numbers_held(one) + held // size_of(self.positions)

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        first, second = (
            to_positions(part, source.positions, self.positions)
            for part, source in zip(parts, self.sources, strict=True)
        )
        return self.function(*torch.broadcast_tensors(first, second))

    # -- one example ---------------------------------------------------------------------------

    def expansion(self, side: Side) -> dict[str, Tensor]:
        """What the rule needs to know of one side."""
        first, second = (
            side.full(
                to_positions(side.sd(source), source.positions, self.positions), self.positions
            )
            for source in self.sources
        )
        moments = self.dual.moments(first, second)
        omitted = moments.get("omitted")  # of a series
        if omitted is not None and float(omitted.max()) > TOLERATED:
            warnings.warn(
                f"{self.key} of two Gaussians meets inputs of so large a variance that its Hermite "
                f"series is cut short: its NTK may be off by {float(omitted.max()):.1g} relative "
                "to its largest value (the diagonal is exact). Smaller weights or inputs help.",
                AccuracyWarning,
                stacklevel=2,
            )
        return moments

    def entry(self, table: str, name: str, side: Side) -> Tensor:
        """One entry of `expansion`."""
        entries: dict[str, Tensor] = side.memo((table, self), lambda: getattr(self, table)(side))
        return entries[name]

    def number(self, index: int, side: Side) -> Tensor:
        """One of the numbers by which generated code knows this side's piecewise linear psi."""
        assert isinstance(self.dual, PiecewiseLinearOfTwo)
        rule = self.dual
        names = ("scales", "rays", "norm", "slopes")
        moments = {name: self.entry("expansion", name, side) for name in names}
        numbers: Tensor = side.memo(("numbers", self), lambda: rule.numbers(moments))
        return numbers[index]

    def slope(self, index: int, side: Side) -> Tensor:
        """E of the derivative with respect to the first (0) or second (1) Gaussian."""
        return self.entry("expansion", f"slope_{index + 1}", side)

    def second_moment(self, side: Side) -> Tensor:
        return self.entry("expansion", "sd", side).square()

    def mean(self, side: Side) -> Tensor | None:
        return self.entry("expansion", "mean", side)

    # -- pairs ---------------------------------------------------------------------------------

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        if self.origins.isdisjoint(other.origins):
            return product_of_means(self, other, layout, pairs)
        if other.gaussian:
            return self._with_gaussian(other, layout, pairs)
        if isinstance(other, CompositeOfTwo) and self._alike(other):
            return self._with_same_function(other, layout, pairs)
        moments = sampled_moments(self, other, layout, pairs)
        return pairs.from_moment(self, other, moments.moment, moments.ntk, layout)

    def at_odds_with(self, other: Value) -> bool:
        return not other.gaussian and not (isinstance(other, CompositeOfTwo) and self._alike(other))

    def _alike(self, other: CompositeOfTwo) -> bool:
        """Whether it is the same function, of Gaussians that depend on each other in order."""
        (a, b), (c, d) = self.sources, other.sources
        crossed = a.origins & d.origins or b.origins & c.origins
        return self.key == other.key and not crossed

    def _with_same_function(
        self, other: CompositeOfTwo, layout: Layout, pairs: Pairs
    ) -> Block | None:
        versines: list[Tensor] = []
        ntks: list[Tensor | None] = []
        for mine, yours in zip(self.sources, other.sources, strict=True):
            inner = layout.within(mine.positions, yours.positions)
            block = pairs.block(mine, yours, inner.ties)
            if block is None:
                versines.append(pairs.number(1.0, layout))
                ntks.append(None)
                continue
            versines.append(layout.embed(block.versine, inner))
            ntks.append(None if block.ntk is None else layout.embed(block.ntk, inner))
        versine, *slopes = pair_of_two(versines[0], versines[1], (self, other), layout, pairs)
        total: Tensor | None = None
        for slope, ntk in zip(slopes, ntks, strict=True):
            if ntk is not None:
                part = slope * ntk
                total = part if total is None else total + part
        return Block(versine.to(pairs.dtype), total)

    def _with_gaussian(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        """Stein: E[psi h] = sum_m E[d_m psi] E[g_m h] for jointly Gaussian g_m, h."""
        moment: Tensor | None = None
        ntk: Tensor | None = None
        for m, source in enumerate(self.sources):
            inner = layout.within(source.positions, other.positions)
            found = pairs.moments(source, other, inner.ties)
            if found is None:
                continue
            slope = pairs.quantity("left", self, "slope", m, layout=layout, wide=True)
            part = slope * layout.embed(found.moment, inner)
            moment = part if moment is None else moment + part
            if found.ntk is not None:
                own = slope.to(pairs.dtype) * layout.embed(found.ntk, inner)
                ntk = own if ntk is None else ntk + own
        if moment is None:
            return None
        return pairs.from_moment(self, other, moment, ntk, layout)


def pair_of_two(
    versine1: Tensor,
    versine2: Tensor,
    values: tuple[CompositeOfTwo, CompositeOfTwo],
    layout: Layout,
    pairs: Pairs,
) -> tuple[Tensor, ...]:
    """Versine of two values that are one function of two Gaussians, and the two second moments of
    its derivatives, from the versines of the Gaussians.

    In a trial run without data, and in a rehearsal, only their shape counts: the rule has thousands
    of small operations.
    """
    if has_torch_function((versine1, versine2)):  # traced tensors: one operation
        given = (versine1, versine2)
        traced: tuple[Tensor, ...] = handle_torch_function(
            pair_of_two, given, *given, values, layout, pairs
        )
        return traced
    left = pairs.table("left", values[0], "expansion", layout)
    right = pairs.table("right", values[1], "expansion", layout)
    shape = torch.broadcast_shapes(
        *(t.shape for t in (left["sd"], right["sd"], versine1, versine2))
    )
    if versine1.is_meta:
        return (torch.empty(shape, device="meta"),) * 3
    if pairs.rehearsal:
        whole = versine1.expand(shape)
        return whole, torch.full_like(whole, 0.5), torch.full_like(whole, 0.5)
    return _in_pieces(values[0].dual, (left, right), (versine1, versine2), shape)


def _in_pieces(
    dual: DualOfTwo,
    sides: tuple[dict[str, Tensor], dict[str, Tensor]],
    versines: tuple[Tensor, Tensor],
    shape: torch.Size,
) -> tuple[Tensor, ...]:
    """The rule, some places along the first dimension at a time."""
    step = max(1, PIECE // max(1, math.prod(shape[1:])))
    pieces = []
    for start in range(0, shape[0], step):
        at = slice(start, start + step)
        left, right = ({k: _cut(t, at, len(shape)) for k, t in s.items()} for s in sides)
        first, second = (_cut(versine, at, len(shape)) for versine in versines)
        pieces.append(dual.pair(left, right, first, second))
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def _cut(values: Tensor, at: slice, rank: int) -> Tensor:
    """Some places along the first dimension, unless all are the same."""
    first = values.dim() - rank
    return values if values.shape[first] == 1 else values[(slice(None),) * first + (at,)]
