"""What of a sampled kernel has to be remembered, and how much memory that takes.

A rehearsal with one example and few samples tells what asks for what. With that, a result is
forgotten when all that is made of it is there; and what is exact, and met by samples, is kept from
one group of samples to the next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Any, NamedTuple, cast

from tangency.infinite.memory import Entry, Memory
from tangency.infinite.sampling.sizes import InFile, Room, Size, room_of, size_of_result
from tangency.infinite.sampling.uses import COVARIANCES, Uses
from tangency.infinite.values.value import Value

__all__ = ["Record", "Retention"]


class _Event(NamedTuple):
    """A result that was computed."""

    entry: Entry
    size: Size
    sampled: bool


class Record:
    """A ledger of a rehearsal.

    What it is about to find out, that a result is not needed any more, it does not know yet: where
    results take too much room, the oldest are forgotten, each once, and computed anew at need.

    Args:
        room: bytes that covariances and factors may take.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._held: dict[Entry, int] = {}
        self._taken = 0
        self._askers: defaultdict[Entry, set[Entry | None]] = defaultdict(set)
        self._events: list[_Event] = []
        self._memories: dict[str, Memory] = {}
        self._seen: set[Entry] = set()

    def asked(self, entry: Entry, asker: Entry | None) -> None:
        """A result is asked for on behalf of another, or from outside."""
        self._askers[entry].add(asker)

    def finished(self, memory: Memory, entry: Entry) -> None:
        """A result was computed and is remembered."""
        if entry in self._seen:
            return
        self._seen.add(entry)
        key = entry[1]
        sampled = memory.rests_on_samples(key)
        size = size_of_result(memory[key], sampled=sampled)
        self._events.append(_Event(entry, size, sampled))
        self._memories[memory.name] = memory
        self._hold(entry, size.pairs)

    def _hold(self, entry: Entry, size: int) -> None:
        """Make room for a result."""
        while self._held and self._taken + size > self._room:
            name, key = next(iter(self._held))
            self._taken -= self._held.pop((name, key))
            self._memories[name].forget(key)
        if size:
            self._held[entry] = size
            self._taken += size

    def uses(self, correlated: frozenset[Hashable], *, keep: bool = True) -> Uses:
        """Who asked for what.

        Args:
            correlated: the Gaussians that later ones are drawn with.
            keep: whether what is exact is kept from one group of samples to the next.
        """
        exact = {event.entry for event in self._events if not event.sampled and keep}
        asks: defaultdict[Entry | None, list[Entry]] = defaultdict(list)
        for entry, askers in self._askers.items():
            for asker in askers:
                asks[asker].append(entry)
        return Uses(
            {entry: frozenset(askers) for entry, askers in self._askers.items()},
            {asker: tuple(entries) for asker, entries in asks.items()},
            frozenset(e for e in exact if any(a not in exact for a in self._askers[e])),
            frozenset(("draws", (kind, v)) for kind in ("rows", "pooled") for v in correlated),
        )

    def peak(self, uses: Uses, examples: int, samples: float, in_file: InFile) -> Room:
        """Bytes of all that is remembered at once, at most, in memory and in files.

        Args:
            uses: who asked for what.
            examples: their number; the rehearsal had one.
            samples: number of samples over that of the rehearsal.
            in_file: which tensors go to files, by their bytes.
        """
        exact = {event.entry for event in self._events if not event.sampled}
        alive: dict[Entry, Room] = {}
        memory = files = 0
        for later in (False, True):
            done = set[Entry | None]()
            for event in self._events:
                if later and event.entry in exact and uses.kept:
                    continue  # it is there, or nobody asks for it again
                if event.entry[0] == COVARIANCES and uses.passes(cast(Any, event.entry[1])):
                    continue  # it is never there as a whole
                held, work = event.size
                pinned = event.entry in uses.pinned
                if pinned:  # with the white noise that it was drawn from
                    held = (*held, *event.size.noise(movable=True))
                rooms = [room_of(parts, examples, samples, in_file) for parts in (held, work)]
                if rooms[0].files and is_pooled(event.entry):
                    noise = event.size.noise(movable=False)
                    rooms[1] = rooms[1].plus(room_of(noise, examples, samples, in_file))
                alive[event.entry], work_room = rooms
                total = work_room.plus(*alive.values())
                memory, files = max(memory, total.memory), max(files, total.files)
                done.add(event.entry)
                for part in uses.over_after(event.entry, done):
                    alive.pop(part, None)
            alive = {entry: alive[entry] for entry in alive if entry in exact and uses.kept}
        return Room(memory, files)


def is_pooled(entry: Entry) -> bool:
    """Whether a result is the samples of a Gaussian that is drawn jointly over all positions."""
    name, key = entry
    return name == "draws" and cast(tuple[str, Value], key)[0] == "pooled"


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
