"""How a sampled kernel keeps to its memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from tangency.errors import InvalidInput
from tangency.infinite.memory import Ledger
from tangency.infinite.sampling.retention import Record, Retention
from tangency.infinite.sampling.scratch import IN_MEMORY, Scratch
from tangency.infinite.sampling.sizes import Room
from tangency.infinite.sampling.uses import Uses

__all__ = ["DoesNotFit", "SamplingPlan", "planned"]

GIBIBYTE = 1 << 30

_MATRICES = 4
"""Matrices over all positions and examples that are alive while a Gaussian is drawn."""


@dataclass(frozen=True)
class SamplingPlan:
    """What is remembered of a sampled kernel, where, and how much memory there is.

    Attributes:
        memory: bytes.
        examples: of the kernel that is asked for; a rehearsal has one.
        samples: of a group of samples of that kernel; a rehearsal has few.
        scratch: where large tensors go.
        uses: what each result is needed for, from a rehearsal.
        correlated: the Gaussians that others are correlated with, from a rehearsal.
        record: in a rehearsal, what is told of it.
        needed: the room that the rehearsal says will be taken.
    """

    memory: int
    examples: int
    samples: int
    scratch: Scratch = IN_MEMORY
    uses: Uses | None = None
    correlated: frozenset[Hashable] = frozenset()
    record: Record | None = field(default=None)
    needed: Room = field(default=Room())

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

    def stores(self, positions: int) -> bool:
        """Whether samples of a value of so many positions would lie in files."""
        return self.scratch.takes(8 * positions * self.examples * self.samples)

    def check(self, positions: int) -> None:
        """Refuse, before any work, a Gaussian whose joint covariance is too large.

        Args:
            positions: of the Gaussian.

        Raises:
            DoesNotFit: there is no room for it.
        """
        size = 8 * (positions * self.examples) ** 2
        what = f"the joint covariance of {positions} positions of"
        if self.scratch.takes(size):
            self.refuse(Room(files=_MATRICES * size), what)
        else:
            self.refuse(Room(memory=_MATRICES * size), what)

    def fits(self, needed: Room) -> bool:
        """Whether there is so much room."""
        return needed.memory <= self.memory and needed.files <= self.scratch.free

    def refuse(self, needed: Room, what: str) -> None:
        """Refuse what takes more room than there is.

        Args:
            needed: the room.
            what: takes it, of the examples.

        Raises:
            DoesNotFit: there is not so much.
        """
        if needed.memory > self.memory:
            raise DoesNotFit(self, needed.memory, what, self.memory)
        if needed.files > self.scratch.free:
            raise DoesNotFit(self, needed.files, what, self.scratch.free)


class DoesNotFit(InvalidInput):
    """A kernel of so many examples takes more room than there is."""

    def __init__(self, plan: SamplingPlan, needed: int, what: str, room: int) -> None:
        self._plan = plan
        self._needed = needed
        self._what = what
        self._room = room
        super().__init__(self.message(self.at_most))

    @property
    def at_most(self) -> int:
        """Number of examples above which no kernel fits.

        What is needed grows with the square of the number of examples, or more slowly.
        """
        return math.isqrt(self._room * self._plan.examples**2 // self._needed)

    def message(self, fitting: int) -> str:
        """What the user is told, with the number of examples that fit."""
        count, folder = self._plan.examples, self._plan.scratch.folder
        advice = (
            f"ask for the kernel of {fitting} examples at a time, or for"
            if fitting > 1
            else "even one example does not fit: ask for"
            if fitting < 1
            else "no two examples fit: ask for"
        )
        there = f"memory={self._plan.memory} ({self._plan.memory / GIBIBYTE:.1f} GiB)"
        remedy = "a larger memory= to InfiniteKernel"
        if folder is not None and self._room != self._plan.memory:
            there = f"the {self._room / GIBIBYTE:.1f} GiB that are free in scratch={str(folder)!r}"
            remedy = "another scratch= or a larger memory= to InfiniteKernel"
        return (
            f"sampling needs {self._what} {count} examples, about {self._needed / GIBIBYTE:.1f} "
            f"GiB, which is more than {there}: {advice} that of smaller inputs, or pass {remedy}."
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
