"""Standardised values: the statistics of a width, and of positions, are deterministic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from tangency.infinite.layout import Positions
from tangency.infinite.side import Side
from tangency.infinite.values.sources import One
from tangency.infinite.values.sum import Coefficient, Sum, Term
from tangency.infinite.values.value import Value, to_positions

__all__ = ["Standardization"]


class Standardization:
    """(u - E u) / sqrt(Var u + eps), or u / sqrt(E u^2 + eps), with means over a whole width.

    Args:
        pieces: the strands of that width with their fractions of it.
        over: positions over which the means run, too.
        eps: added to the variance.
        centre: whether the mean is subtracted.
    """

    def __init__(
        self,
        pieces: Sequence[tuple[float, Value]],
        over: Positions,
        eps: float,
        *,
        centre: bool,
    ) -> None:
        self.pieces = pieces
        self.over = over
        self.eps = eps
        self.centre = centre and not all(value.centred for _, value in pieces)
        known = dict.fromkeys(axis for _, value in pieces for axis in value.positions)
        self.positions: Positions = tuple(axis for axis in known if axis not in over)

    def __call__(self, value: Value) -> Value:
        """One strand of the width, standardised."""
        inverse = Coefficient(self._inverse_sd, self.positions)
        terms = [Term(value, 1.0, (inverse,))]
        if self.centre:
            terms.append(Term(One(), -1.0, (inverse, Coefficient(self._mean, self.positions))))
        rest = (axis for axis in self.positions if axis not in value.positions)
        return Sum((*value.positions, *rest), terms)

    def _average(self, side: Side, moment: Callable[[Value], Tensor | None]) -> Tensor:
        """The mean of a moment over the width and the positions `over`."""
        total = side.full(side.number(0.0), self.positions)
        for fraction, value in self.pieces:
            known = moment(value)
            if known is not None:
                reduced = [k for k, axis in enumerate(value.positions) if axis in self.over]
                known = known.mean(dim=reduced) if reduced else known
                kept = tuple(axis for axis in value.positions if axis not in self.over)
                total = total + fraction * to_positions(known, kept, self.positions)
        return total

    def _mean(self, side: Side) -> Tensor:
        return self._average(side, side.mean)

    def _inverse_sd(self, side: Side) -> Tensor:
        variance = self._average(side, side.second_moment)
        if self.centre:
            variance = (variance - self._mean(side).square()).clamp_min(0)
        return (variance + self.eps).rsqrt()
