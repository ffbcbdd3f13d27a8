"""What of a sampled kernel has to be remembered, and how much memory that takes.

A rehearsal with one example and few samples tells what asks for what. With that, a result is
forgotten when all that is made of it is there; and what is exact, and met by samples, is kept from
one group of samples to the next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tangency.infinite.memory import Entry, Memory
from tangency.infinite.sampling.sizes import Size, size_of_result

__all__ = ["Record", "Retention", "Uses"]


class _Event(NamedTuple):
    """A result that was computed."""

    entry: Entry
    size: Size
    sampled: bool


@dataclass(frozen=True)
class Uses:
    """What each result is needed for.

    Attributes:
        askers: the results for which each one is asked; None stands for whoever asks from outside.
        asks: the same the other way round.
        kept: exact results of which samples are made: other groups of samples need them too.
    """

    askers: Mapping[Entry, frozenset[Entry | None]]
    asks: Mapping[Entry | None, tuple[Entry, ...]]
    kept: frozenset[Entry]

    def over_after(self, entry: Entry, done: set[Entry | None]) -> list[Entry]:
        """What is not needed any more when `entry` is there, as the last of what is `done`."""
        parts = self.asks.get(entry, ())
        return [part for part in parts if part not in self.kept and self.askers[part] <= done]


class Record:
    """A ledger of a rehearsal."""

    def __init__(self) -> None:
        self._askers: defaultdict[Entry, set[Entry | None]] = defaultdict(set)
        self._events: list[_Event] = []

    def asked(self, entry: Entry, asker: Entry | None) -> None:
        """A result is asked for on behalf of another, or from outside."""
        self._askers[entry].add(asker)

    def finished(self, memory: Memory, entry: Entry) -> None:
        """A result was computed and is remembered."""
        key = entry[1]
        sampled = memory.rests_on_samples(key)
        size = size_of_result(memory[key], sampled=sampled)
        self._events.append(_Event(entry, size, sampled))

    def uses(self) -> Uses:
        """Who asked for what."""
        exact = {event.entry for event in self._events if not event.sampled}
        pinned = frozenset(event.entry for event in self._events if event.entry[1][0] == "pooled")  # type: ignore[index]
        asks: defaultdict[Entry | None, list[Entry]] = defaultdict(list)
        for entry, askers in self._askers.items():
            for asker in askers:
                asks[asker].append(entry)
        return Uses(
            {entry: frozenset(askers) for entry, askers in self._askers.items()},
            {asker: tuple(entries) for asker, entries in asks.items()},
            frozenset(e for e in exact if any(a not in exact for a in self._askers[e])) | pinned,
        )

    def peak(self, examples: int, samples: float) -> int:
        """Bytes of all that is remembered at once, at most.

        Args:
            examples: their number; the rehearsal had one.
            samples: number of samples over that of the rehearsal.
        """
        uses = self.uses()
        alive: dict[Entry, int] = {}
        peak = 0
        for later in (False, True):
            done = set[Entry | None]()
            for event in self._events:
                if later and not event.sampled:
                    continue  # it is there, or nobody asks for it again
                alive[event.entry] = event.size.bytes(examples, samples)
                total = sum(alive.values())
                peak = max(peak, total + event.size.work * examples**2)
                done.add(event.entry)
                for part in uses.over_after(event.entry, done):
                    alive.pop(part, None)
            exact = {event.entry for event in self._events if not event.sampled}
            alive = {entry: alive[entry] for entry in alive if entry in exact}
        return peak


class Retention:
    """A ledger that lets memories forget what is not needed any more."""

    def __init__(self, uses: Uses) -> None:
        self._uses = uses
        self._memories: dict[str, Memory] = {}
        self._done: set[Entry | None] = set()

    def asked(self, entry: Entry, asker: Entry | None) -> None:
        """A result is asked for."""

    def finished(self, memory: Memory, entry: Entry) -> None:
        """A result was computed and is remembered."""
        self._memories[memory.name] = memory
        self._done.add(entry)
        for name, key in self._uses.over_after(entry, self._done):
            if name in self._memories:
                self._memories[name].forget(key)
