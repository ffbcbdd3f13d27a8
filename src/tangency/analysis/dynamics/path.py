"""A solution that is kept, to be gone on with."""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor

__all__ = ["Path"]


class Path:
    """The solution from one start: states at ascending times."""

    def __init__(self, start: Tensor) -> None:
        self.start = start
        self.times: list[float] = []
        self.states: list[Tensor] = []

    def of(self, start: Tensor) -> bool:
        return bool(self.times) and torch.equal(self.start, start)

    def add(self, time: float, state: Tensor) -> None:
        index = bisect_right(self.times, time)
        self.times.insert(index, time)
        self.states.insert(index, state)

    def index(self, time: float) -> int:
        """Of the last known time up to `time`."""
        return bisect_right(self.times, time) - 1

    def missing(self, times: list[float]) -> list[list[float]]:
        """Unknown times, ascending, in groups that lie between the same two known ones."""
        groups: dict[int, list[float]] = {}
        for time in sorted(set(times) - set(self.times)):
            groups.setdefault(bisect_right(self.times, time), []).append(time)
        return list(groups.values())
