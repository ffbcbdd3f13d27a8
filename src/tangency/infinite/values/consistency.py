"""Exact covariances beside sampled ones: where both may stand, and where all have to be sampled.

Covariances that are means over joint samples make a positive semi-definite matrix, and so do exact
ones. A matrix of which some blocks are exact and others sampled need not be such. Values are at
odds if their covariance is sampled although that of one of them with itself is exact; where they
are put together (added, laid side by side along positions, multiplied by one weight), all that
depends on them is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from itertools import combinations

from tangency.infinite.layout import Positions
from tangency.infinite.values.sampled import Sampled
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value, at_odds

__all__ = ["Family", "Pieces", "by_samples", "consistent", "summed"]

Pieces = Callable[[frozenset[int]], tuple[tuple[float, Value], ...]]
"""For a set of cuts of a width, its pieces as (fraction, value)."""


def _dependent(values: Iterable[Value]) -> list[list[Value]]:
    """The values in groups that have no origins in common."""
    groups: list[tuple[frozenset[Hashable], list[Value]]] = []
    for value in values:
        origins, members = value.origins, [value]
        apart = []
        for known, group in groups:
            if known.isdisjoint(value.origins):
                apart.append((known, group))
            else:
                origins, members = origins | known, [*group, *members]
        groups = [*apart, (origins, members)]
    return [members for _, members in groups]


def _disagree(group: Sequence[Value]) -> bool:
    """Whether any two of the values are at odds."""
    return any(at_odds(u, v) for u, v in combinations(group, 2))


def by_samples(value: Value) -> Value:
    """The value with moments from its samples."""
    return value if isinstance(value, Sampled) else value.memo(_estimated)


def _estimated(value: Value) -> Sampled:
    return Sampled(value.positions, [value], lambda side, part: part)


def summed(positions: Positions, terms: Sequence[Term]) -> Value:
    """A sum; terms that are at odds with others are sampled together with them."""
    groups = _to_sample(term.value for term in terms)
    whole = list(terms)
    for group in groups:
        joined = Sum(positions, [term for term in terms if term.value in group])
        whole = [term for term in whole if term.value not in group]
        whole.append(Term(by_samples(joined)))
    return Sum(positions, whole)


def consistent(values: Sequence[Value]) -> list[Value]:
    """The values, by samples where they are at odds with others."""
    sampled = frozenset[Value]().union(*_to_sample(values))
    return [by_samples(value) if value in sampled else value for value in values]


def _to_sample(values: Iterable[Value]) -> list[frozenset[Value]]:
    """Values that depend on each other, where some are at odds."""
    groups = _dependent(dict.fromkeys(values))
    return [frozenset(group) for group in groups if _disagree(group)]


class Family:
    """What one weight multiplies, at all its uses: their products are jointly Gaussian."""

    def __init__(self) -> None:
        self._members: list[Pieces] = []
        self._known: dict[tuple[frozenset[int], int], frozenset[Value]] = {}

    def joined(self, pieces: Pieces) -> Pieces:
        """The pieces of a new member, by samples where they are at odds with another's."""
        self._members.append(pieces)
        return partial(self._consistent, pieces)

    def _consistent(self, pieces: Pieces, cuts: frozenset[int]) -> tuple[tuple[float, Value], ...]:
        sampled = self._sampled(cuts)
        return tuple((part, by_samples(v) if v in sampled else v) for part, v in pieces(cuts))

    def _sampled(self, cuts: frozenset[int]) -> frozenset[Value]:
        if len(self._members) == 1:
            return frozenset()
        key = cuts, len(self._members)
        if key not in self._known:
            values = [value for pieces in self._members for _, value in pieces(cuts)]
            self._known[key] = frozenset[Value]().union(*_to_sample(values))
        return self._known[key]
