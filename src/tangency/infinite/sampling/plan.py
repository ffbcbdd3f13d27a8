"""How a sampled kernel keeps to its memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from tangency.errors import InvalidInput
from tangency.infinite.memory import Ledger
from tangency.infinite.sampling.retention import Record, Retention
from tangency.infinite.sampling.uses import Uses

__all__ = ["SamplingPlan"]

GIBIBYTE = 1 << 30


@dataclass(frozen=True)
class SamplingPlan:
    """What is remembered of a sampled kernel, and how much memory there is.

    Attributes:
        memory: bytes.
        examples: of the kernel that is asked for; a rehearsal has one.
        samples: of a group of samples of that kernel; a rehearsal has few.
        uses: what each result is needed for, from a rehearsal.
        correlated: the Gaussians that others are correlated with, from a rehearsal.
        record: in a rehearsal, what is told of it.
    """

    memory: int
    examples: int
    samples: int
    uses: Uses | None = None
    correlated: frozenset[Hashable] = frozenset()
    record: Record | None = field(default=None)

    def ledger(self) -> Ledger | None:
        """Who is told of all results."""
        if self.record is not None:
            return self.record
        return None if self.uses is None else Retention(self.uses)

    def passes(self, positions: int) -> bool:
        """Whether samples of a value of so many positions are too many to be remembered."""
        return 2 * 8 * positions * self.examples * self.samples > self.memory // 16

    def check(self, positions: int, pair: int) -> None:
        """Refuse, before any work, a Gaussian whose joint covariance is too large.

        Args:
            positions: of the Gaussian.
            pair: bytes that it takes for each pair of examples.

        Raises:
            InvalidInput: it takes more than the memory.
        """
        self.refuse(pair * self.examples**2, f"the joint covariance of {positions} positions of ")

    def refuse(self, needed: int, what: str, peak: Callable[[int], int] | None = None) -> None:
        """Refuse what takes more than the memory.

        Args:
            needed: bytes; they grow with the square of the number of examples.
            what: takes them, of the examples.
            peak: what another number of examples needs, if that does not grow with its square.
        """
        if needed <= self.memory:
            return
        fitting = math.isqrt(self.memory * self.examples**2 // needed)
        while peak is not None and fitting > 0 and peak(fitting) > self.memory:
            fitting -= 1
        advice = (
            f"ask for the kernel of about {fitting} examples at a time, or for"
            if fitting > 1
            else "even one example does not fit: ask for"
        )
        raise InvalidInput(
            f"sampling needs {what}{self.examples} examples, about {needed / GIBIBYTE:.1f} GiB, "
            f"which is more than memory={self.memory} ({self.memory / GIBIBYTE:.1f} GiB): {advice} "
            "that of smaller inputs, or pass a larger memory= to InfiniteKernel."
        )
