"""How a sampled kernel keeps to its memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from tangency.errors import InvalidInput
from tangency.infinite.memory import Ledger
from tangency.infinite.sampling.retention import Record, Retention
from tangency.infinite.sampling.uses import Uses

__all__ = ["DoesNotFit", "SamplingPlan", "planned"]

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
        needed: bytes that the rehearsal says will be taken.
    """

    memory: int
    examples: int
    samples: int
    uses: Uses | None = None
    correlated: frozenset[Hashable] = frozenset()
    record: Record | None = field(default=None)
    needed: int = 0

    def ledger(self) -> Ledger | None:
        """Who is told of all results."""
        if self.record is not None:
            return self.record
        return None if self.uses is None else Retention(self.uses)

    @property
    def keeps_exact(self) -> bool:
        """Whether what is exact, and met by samples, is kept from one group to the next."""
        return self.uses is not None and bool(self.uses.kept)

    def passes(self, positions: int) -> bool:
        """Whether samples of a value of so many positions are too many to be remembered."""
        return 2 * 8 * positions * self.examples * self.samples > self.memory // 16

    def check(self, positions: int, pair: int) -> None:
        """Refuse, before any work, a Gaussian whose joint covariance is too large.

        Args:
            positions: of the Gaussian.
            pair: bytes that it takes for each pair of examples.

        Raises:
            DoesNotFit: it takes more than the memory.
        """
        self.refuse(pair * self.examples**2, f"the joint covariance of {positions} positions of")

    def refuse(self, needed: int, what: str) -> None:
        """Refuse what takes more than the memory.

        Args:
            needed: bytes.
            what: takes them, of the examples.

        Raises:
            DoesNotFit: they are more than the memory.
        """
        if needed > self.memory:
            raise DoesNotFit(self, needed, what)


class DoesNotFit(InvalidInput):
    """A kernel of so many examples takes more than the memory."""

    def __init__(self, plan: SamplingPlan, needed: int, what: str) -> None:
        self._plan = plan
        self._needed = needed
        self._what = what
        super().__init__(self.message(self.at_most))

    @property
    def at_most(self) -> int:
        """Number of examples above which no kernel fits.

        What is needed grows with the square of the number of examples, or more slowly.
        """
        return math.isqrt(self._plan.memory * self._plan.examples**2 // self._needed)

    def message(self, fitting: int) -> str:
        """What the user is told, with the number of examples that fit."""
        count, memory = self._plan.examples, self._plan.memory
        advice = (
            f"ask for the kernel of {fitting} examples at a time, or for"
            if fitting > 1
            else "even one example does not fit: ask for"
            if fitting < 1
            else "no two examples fit: ask for"
        )
        return (
            f"sampling needs {self._what} {count} examples, about {self._needed / GIBIBYTE:.1f} "
            f"GiB, which is more than memory={memory} ({memory / GIBIBYTE:.1f} GiB): {advice} "
            "that of smaller inputs, or pass a larger memory= to InfiniteKernel."
        )


def planned(rehearse: Callable[[int], SamplingPlan], examples: int) -> SamplingPlan:
    """The plan for so many examples.

    Args:
        rehearse: gives the plan for a number of examples, or raises `DoesNotFit`.
        examples: their number.

    Raises:
        InvalidInput: they do not fit; it tells how many do, by rehearsals for fewer.
    """
    try:
        return rehearse(examples)
    except DoesNotFit as error:
        refused = error
    fitting = refused.at_most
    while fitting > 0:
        try:
            rehearse(fitting)
            break
        except DoesNotFit as error:
            fitting = min(fitting - 1, error.at_most)
    raise InvalidInput(refused.message(fitting))
