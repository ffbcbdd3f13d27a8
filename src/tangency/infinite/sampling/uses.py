"""What the results of a sampled kernel are needed for."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from tangency.infinite.layout import Layout
from tangency.infinite.memory import Entry
from tangency.infinite.pairs import Key
from tangency.infinite.values.value import Value
from tangency.program.axes import size_of

__all__ = ["COVARIANCES", "Uses", "entries_of", "expands", "gathered_entries"]

COVARIANCES = "pairs"
"""The name of the memory of covariances."""


def expands(u: Value, v: Value) -> Value:
    """Of two values, the one by whose parts their covariance is computed."""
    return u if u.precedence >= v.precedence else v


def entries_of(u: Value, v: Value, layout: Layout) -> int:
    """Of a covariance and those that it is made of, at most, for one pair of examples."""
    tied = size_of(a for a, _ in layout.ties)
    return max(1, _reach(u) * _reach(v) // tied)


def gathered_entries(u: Value, v: Value, layout: Layout) -> int:
    """The same of a mean over samples, which is not made of other covariances but those of values
    that attention weights gather.
    """
    tied = size_of(a for a, _ in layout.ties)
    return max(1, u.gathers * v.gathers // tied)


def _reach(value: Value) -> int:
    """Positions of a value and of what it is made of, at most."""
    sizes = [size_of(part.positions) for part in value.parts]
    return max(size_of(value.positions), value.reads, *sizes, 1)


@dataclass(frozen=True)
class Uses:
    """What each result is needed for.

    Attributes:
        askers: the results for which each one is asked; None stands for whoever asks from outside.
        asks: the same the other way round.
        kept: exact results of which samples are made: other groups of samples need them too.
        pinned: what belongs to Gaussians that later ones are drawn with.
    """

    askers: Mapping[Entry, frozenset[Entry | None]]
    asks: Mapping[Entry | None, tuple[Entry, ...]]
    kept: frozenset[Entry]
    pinned: frozenset[Entry]
    _most: dict[Hashable, int] = field(default_factory=dict)

    def over_after(self, entry: Entry, done: set[Entry | None]) -> list[Entry]:
        """What is not needed any more when `entry` is there, as the last of what is `done`."""
        parts = [part for part in self._parts(entry) if part not in self.kept | self.pinned]
        return [part for part in parts if self._over(part, done)]

    def _parts(self, entry: Entry) -> Iterator[Entry]:
        """What a result is made of, also by way of covariances that nobody remembers as a whole."""
        for part in self.asks.get(entry, ()):
            yield part
            if self._passing(part):
                yield from self._parts(part)

    def _over(self, entry: Entry, done: set[Entry | None]) -> bool:
        """Whether all is there that a result is needed for. A covariance that passes is done with
        what it is made for, if not before.
        """
        return all(
            asker in done
            or (asker is not None and self._passing(asker) and self._over(asker, done))
            for asker in self.askers[entry]
        )

    def _passing(self, entry: Entry) -> bool:
        return entry[0] == COVARIANCES and self.passes(cast(Key, entry[1]))

    def passes(self, key: Key) -> bool:
        """Whether a covariance is made for one other alone: nobody has to remember all of it."""
        entry = (COVARIANCES, key)
        askers = self.askers.get(entry, frozenset())
        if len(askers) != 1 or entry in self.kept or expands(key[1], key[2]).whole:
            return False
        (asker,) = askers
        if asker is None or asker[0] != COVARIANCES:
            return False
        _, u, v, _ = cast(Key, asker[1])
        return not expands(u, v).whole

    def most_entries(self, key: Key) -> int:
        """Entries of a covariance and those that are made on the way to it, for one pair."""
        if key not in self._most:
            _, u, v, ties = key
            own = entries_of(u, v, Layout(u.positions, v.positions, ties))
            parts = [
                cast(Any, part[1])
                for part in self.asks.get((COVARIANCES, key), ())
                if part[0] == COVARIANCES
            ]
            passing = [self.most_entries(part) for part in parts if self.passes(part)]
            self._most[key] = max([own, *passing])
        return self._most[key]
