"""When to record: evenly in the logarithm of the step, and within a share of the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tangency.errors import InvalidInput

__all__ = ["Budget"]


class Budget:
    """Spaces records so that they take at most a share of the time that training takes.

    A record is due when its step is `per_decade` records to the decade after the last one, and
    when, if it takes as long as the last one did, the time spent on records stays within
    `overhead` times the time spent on training so far. Time that is not spent on records is
    training. So the bound is passed at most by what a record takes longer than the one before it.

    Attributes:
        overhead: share of the training time; None for no bound.
        spent: seconds that records have taken, without the first one.
        skipped: calls at which a record was due by its step, but not by the time.
    """

    def __init__(self, overhead: float | None, per_decade: int, clock: Callable[[], float]) -> None:
        """Raises InvalidInput for an overhead or spacing that is not positive."""
        if overhead is not None and not (math.isfinite(overhead) and overhead > 0):
            raise InvalidInput(f"overhead is {overhead}, but must be positive (or None).")
        if isinstance(per_decade, bool) or not isinstance(per_decade, int) or per_decade < 1:
            raise InvalidInput(f"per_decade is {per_decade!r}, but must be a positive integer.")
        self.overhead = overhead
        self.ratio = 10 ** (1 / per_decade)
        self.clock = clock
        self.spent = 0.0
        self.skipped = 0
        self._cost = 0.0
        self._next = 1
        self._began: float | None = None

    @property
    def training(self) -> float:
        """Seconds of training since `start`."""
        return 0.0 if self._began is None else self.clock() - self._began - self.spent

    def start(self, cost: float) -> None:
        """Training begins now; a record is expected to take `cost` seconds."""
        self._cost, self._began = cost, self.clock()

    def is_due(self, step: int) -> bool:
        """Whether to record now."""
        if step < self._next:
            return False
        if self.overhead is None or self.spent + self._cost <= self.overhead * self.training:
            return True
        self.skipped += 1
        return False

    @contextmanager
    def recording(self, step: int) -> Iterator[None]:
        """Within it, the record of `step` is made, and timed."""
        before = self.clock()
        yield
        self._cost = self.clock() - before
        self.spent += self._cost
        self._next = max(step + 1, math.ceil(step * self.ratio))
