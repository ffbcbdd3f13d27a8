"""What one evaluation of a block will need: how often each covariance, and how much memory.

A trial run on tensors without data tells both. Covariances are then dropped after their last use,
and tiles are made as large as cache and memory allow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments
from tangency.infinite.pairs import Key, Pairs, Uses
from tangency.infinite.side import Side, SideTile
from tangency.infinite.values.concrete import Concrete
from tangency.infinite.values.value import Value
from tangency.program.axes import size_of
from tangency.program.capture import Program

__all__ = ["CACHED_PAIRS", "MEMORY_BUDGET", "EvaluationPlan", "examples_per_side", "plan"]

CACHED_PAIRS = 512**2
"""Entries of one matrix of a tile: the few matrices that are alive at once stay in cache."""

MEMORY_BUDGET = 2 << 30
"""Bytes that the covariances of one tile may take together."""

_DENSE_BYTES = 64
"""Bytes per entry of all covariances that are alive at once, where no trial run says it."""

_MANY = 16
"""Pairs of examples in a tile from which its size need not be known better."""

_WORKING = 4
"""Temporary tensors of the largest size inside one rule."""


_QUANTITIES = 6
"""Numbers per example, position and value that a side remembers."""


def examples_per_side(program: Program) -> int:
    """Examples whose one-example quantities take a quarter of the budget."""
    random = [n for n in program.axes if program.nature[n] == "random"]
    positions = sum(size_of(program.atoms(n, "position")) for n in random)
    return max(1, MEMORY_BUDGET // 4 // (8 * _QUANTITIES * positions))


@dataclass(frozen=True)
class EvaluationPlan:
    """Uses of each covariance, and entries and bytes per pair of examples.

    Attributes:
        uses: how often each covariance is asked for; None if no trial run was made.
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


class _Trial(SideTile):
    """One example of a side, without its data."""

    def quantity(self, value: Value, name: str, *args: Hashable, wide: bool = False) -> Tensor:
        return super().quantity(value, name, *args, wide=wide).to("meta")

    def mean(self, value: Value) -> Tensor | None:
        mean = super().mean(value)
        return None if mean is None else mean.to("meta")

    def number(self, number: float | Tensor, *, wide: bool = False) -> Tensor:
        return super().number(number, wide=wide).to("meta")


class _Measured(Pairs):
    """Pairs that keep account of what is alive."""

    alive = peak = largest = 0

    def angles(self, u: Concrete, v: Concrete, layout: Layout) -> Tensor:
        """Of the shape that angles have."""
        sizes = [axis.size for axis in (*layout.left, *layout.free_right)]
        return torch.empty(*sizes, 1, 1, dtype=self.dtype, device="meta")

    def keep(self, key: Key, covariance: Block | Moments | None) -> None:
        """Account for a covariance that is remembered."""
        sizes = [t for t in covariance or () if t is not None]
        self.alive += sum(t.numel() * t.element_size() for t in sizes)
        self.largest = max([self.largest, *(t.numel() for t in sizes)])
        working = _WORKING * max([0, *(t.numel() * t.element_size() for t in sizes)])
        self.peak = max(self.peak, self.alive + working)

    def drop(self, covariance: Block | Moments | None) -> None:
        """Account for a covariance that is dropped."""
        self.alive -= sum(t.numel() * t.element_size() for t in covariance or () if t is not None)


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
    sides = [_Trial(side, slice(0, 1)) for side in (rows, columns)]
    try:
        first = _Measured(*sides)
        evaluate(first)
        second = _Measured(*sides, uses=first.asked)
        evaluate(second)
    except (RuntimeError, NotImplementedError):  # a rule that looks at numbers
        return EvaluationPlan(None, dense, _DENSE_BYTES * dense)
    return EvaluationPlan(Counter(first.asked), max(1, second.largest), max(1, second.peak))
