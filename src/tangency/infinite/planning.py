"""How large the tiles of an evaluation may be, and when its covariances are dropped.

A trial run on tensors without data tells both: tiles are as large as cache and memory allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tangency.infinite.pairs import Pairs, Uses
from tangency.infinite.side import MEMORY_BUDGET, Side, SideTile
from tangency.infinite.trial import Trial
from tangency.infinite.values.value import Value
from tangency.program.axes import size_of

__all__ = ["CACHED_PAIRS", "MEMORY_BUDGET", "EvaluationPlan", "examples_per_side", "plan"]

CACHED_PAIRS = 512**2
"""Entries of one matrix of a tile: the few matrices that are alive at once stay in cache."""

_DENSE_BYTES = 64
"""Bytes per entry of all covariances that are alive at once, where no trial run says it."""

_MANY = 16
"""Pairs of examples in a tile from which its size need not be known better."""


def examples_per_side(values: Iterable[Value], one: Callable[[], Side]) -> int:
    """Examples whose one-example quantities of these values take a quarter of the budget.

    Args:
        values: of the network.
        one: a side of the example with the largest norm.
    """
    numbers = sum(value.numbers_held(one) * size_of(value.positions) for value in values)
    return max(1, MEMORY_BUDGET // 4 // (8 * numbers))


@dataclass(frozen=True)
class EvaluationPlan:
    """Uses of each covariance, and entries and bytes per pair of examples.

    Attributes:
        uses: what asks for each covariance; None if no trial run was made.
        largest: entries of the largest covariance.
        peak: bytes of all covariances that are alive at once.
    """

    uses: Uses | None
    largest: int
    peak: int

    @property
    def tile_size(self) -> int:
        """Examples per side of a tile."""
        pairs = min(CACHED_PAIRS // self.largest, MEMORY_BUDGET // self.peak)
        return max(1, math.isqrt(max(1, pairs)))


def plan(
    evaluate: Callable[[Pairs], object], rows: Side, columns: Side, positions: int
) -> EvaluationPlan:
    """The plan of an evaluation between two sides.

    Args:
        evaluate: asks the pairs that it is given for all it needs.
        rows, columns: the sides.
        positions: of the random value that has most.
    """
    dense = positions**2
    if min(rows.count * columns.count, _MANY) * dense <= CACHED_PAIRS:
        return EvaluationPlan(None, dense, _DENSE_BYTES * dense)  # a trial run would cost more
    sides = [SideTile(side, slice(0, 1)) for side in (rows, columns)]
    needs = Trial(*sides).needs(evaluate)
    if needs is None:
        return EvaluationPlan(None, dense, _DENSE_BYTES * dense)
    return EvaluationPlan(needs.uses, needs.largest, needs.peak)
