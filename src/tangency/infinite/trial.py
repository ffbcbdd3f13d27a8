"""A trial run on tensors without data: which covariances ask for which, and how large they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments
from tangency.infinite.pairs import Key, Pairs, Quantities, Uses
from tangency.infinite.sampling.draw import Draw
from tangency.infinite.values.concrete import Concrete
from tangency.infinite.values.value import Value

__all__ = ["Needs", "Trial"]

_WORKING = 20
"""Temporary tensors of the largest size inside one rule (the polynomials of an angle)."""


@dataclass(frozen=True)
class Needs:
    """What the evaluation of one pair of examples needs.

    Attributes:
        uses: what asks for each covariance.
        largest: entries of the largest covariance.
        peak: bytes of all covariances that are alive at once, and of the work on one.
    """

    uses: Uses
    largest: int
    peak: int


class Trial:
    """A trial evaluation between two sides of one example each.

    Quantities of the sides that are missing are computed on the way, with nothing else alive.
    """

    def __init__(self, rows: Quantities, columns: Quantities, *, coincident: bool = False) -> None:
        self._sides = _Dataless(rows), _Dataless(columns)
        self._coincident = coincident
        self._first = self._measured(None)
        self._second: _Measured | None = None

    def needs(self, evaluate: Callable[[Pairs], object]) -> Needs | None:
        """What `evaluate` needs of the pairs that it is given; None where a rule looks at numbers.

        Where it has to start anew (`tangency.infinite.memory`), it goes on from what was found.
        """
        try:
            if self._second is None:
                evaluate(self._first)
                self._second = self._measured(Uses(self._first.asked))
            evaluate(self._second)
        except (RuntimeError, NotImplementedError):
            return None
        measured = self._second
        assert measured.uses is not None
        return Needs(measured.uses, max(1, measured.largest), max(1, measured.peak))

    def _measured(self, uses: Uses | None) -> _Measured:
        return _Measured(*self._sides, coincident=self._coincident, uses=uses)


class _Dataless:
    """A side without its data."""

    def __init__(self, side: Quantities) -> None:
        self.side = side
        self.smooth = side.smooth
        self.rehearsal = True

    def quantity(self, value: Value, name: str, *args: Hashable, wide: bool = False) -> Tensor:
        return self.side.quantity(value, name, *args, wide=wide).to("meta")

    def mean(self, value: Value) -> Tensor | None:
        mean = self.side.mean(value)
        return None if mean is None else mean.to("meta")

    def names(self, value: Value, table: str) -> tuple[str, ...]:
        return self.side.names(value, table)

    def parts(self, *values: Value) -> Iterator[slice]:
        yield slice(0, 1)

    def samples(self, value: Value, part: slice) -> Draw:
        """Of the shape that one sample has."""
        sizes = [axis.size for axis in value.positions]
        sample = torch.empty(1, *sizes, 1, dtype=torch.float64, device="meta")
        return Draw(sample, sample)

    def number(self, number: float, *, wide: bool = False) -> Tensor:
        return self.side.number(number, wide=wide).to("meta")


class _Measured(Pairs):
    """Pairs that keep account of what is alive."""

    alive = peak = largest = 0

    def angles(self, u: Concrete, v: Concrete, layout: Layout) -> Tensor:
        """Of the shape that angles have."""
        sizes = [axis.size for axis in (*layout.left, *layout.free_right)]
        batch = [1] if self.coincident else [1, 1]
        return torch.empty(*sizes, *batch, dtype=self.dtype, device="meta")

    def keep(self, key: Key, covariance: Block | Moments | None) -> None:
        """Account for a covariance that is remembered, before those it was made of are dropped."""
        sizes = [t for t in covariance or () if t is not None]
        self.alive += sum(t.numel() * t.element_size() for t in sizes)
        self.largest = max([self.largest, *(t.numel() for t in sizes)])
        working = _WORKING * max([0, *(t.numel() * t.element_size() for t in sizes)])
        self.peak = max(self.peak, self.alive + working)

    def drop(self, covariance: Block | Moments | None) -> None:
        """Account for a covariance that is dropped."""
        self.alive -= sum(t.numel() * t.element_size() for t in covariance or () if t is not None)
