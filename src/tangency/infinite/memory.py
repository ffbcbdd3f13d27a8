"""Results that depend on each other, computed at first need and remembered.

Layer upon layer, a result asks for others. Three things follow from knowing who asks for whom: a
network of any depth needs no deep recursion, what does not rest on samples is told apart, and what
nobody will ask for again can be forgotten.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeAlias

__all__ = ["Entry", "Ledger", "Memory", "rests_on_samples"]

Entry: TypeAlias = tuple[str, Hashable]
"""The name of a memory, and the key of a result in it."""


class Ledger(Protocol):
    """Told of what happens in memories that have names."""

    def asked(self, entry: Entry, asker: Entry | None) -> None:
        """A result is asked for on behalf of another, or from outside."""

    def finished(self, memory: Memory, entry: Entry) -> None:
        """A result was computed and is remembered."""


DEEPEST = 32
"""Results that may wait for each other on Python's stack, each with some ten calls."""

_DEEPER = 24
"""More of them where one starts anew again and again. Its last steps may ask for results of passing
values, which are new each time and not found in memory; what those rest on is."""


class _State(threading.local):
    """Of the computations under way: how many, and whether the innermost has met samples."""

    depth = 0
    deepest = DEEPEST
    sampled = False

    def __init__(self) -> None:
        self.waiting: list[Entry] = []
        """What is being computed, innermost last, in memories that have names."""


_state = _State()


class _TooDeep(Exception):
    """Asks for a result to be computed before those that wait for it, which then start again."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        super().__init__()
        self.compute = compute


class Memory(dict[Hashable, Any]):
    """Results by key.

    Where results wait for each other beyond `DEEPEST`, the innermost is computed on an empty stack,
    and those that waited start anew: what they had found before is remembered.

    Args:
        exact: another memory; what does not rest on samples is taken from it.
        name, ledger: what it is called by a ledger that is told of all its results.
    """

    def __init__(
        self, exact: Memory | None = None, *, name: str = "", ledger: Ledger | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self._ledger = ledger
        self._sampled: set[Hashable] = set()
        if exact is not None:
            self.update((k, v) for k, v in exact.items() if k not in exact._sampled)

    def ask(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The result remembered under `key`, else that of `compute`."""
        if self._ledger is not None:
            self._ledger.asked((self.name, key), _state.waiting[-1] if _state.waiting else None)
        if key not in self:
            _nest(lambda: self._remember(key, compute))
        elif key in self._sampled:
            _state.sampled = True
        return self[key]

    def _remember(self, key: Hashable, compute: Callable[[], Any]) -> None:
        before, _state.sampled = _state.sampled, False
        outer = _state.waiting
        if self._ledger is not None:
            _state.waiting = [*outer, (self.name, key)]
        try:
            self[key] = compute()
            if _state.sampled:
                self._sampled.add(key)
        finally:
            _state.sampled = _state.sampled or before
            _state.waiting = outer
        if self._ledger is not None:
            self._ledger.finished(self, (self.name, key))

    def rests_on_samples(self, key: Hashable) -> bool:
        """Whether the result remembered under `key` does."""
        return key in self._sampled

    def forget(self, key: Hashable) -> None:
        """Forget a result; it is computed anew if it is asked for again."""
        self.pop(key, None)

    def forget_samples(self) -> None:
        """Forget all results that rest on samples."""
        for key in self._sampled:
            self.pop(key, None)


def rests_on_samples() -> None:
    """Note that the results under way are estimates."""
    _state.sampled = True


def _nest(compute: Callable[[], None]) -> None:
    if _state.depth == 0:
        _from_the_ground(compute)
    elif _state.depth >= _state.deepest:
        raise _TooDeep(compute)
    else:
        _state.depth += 1
        try:
            compute()
        finally:
            _state.depth -= 1


def _from_the_ground(compute: Callable[[], None]) -> None:
    waiting = [compute]
    attempts = [0]
    _state.depth = 1
    try:
        while waiting:
            _state.deepest = DEEPEST + min(attempts[-1] // 4, _DEEPER)
            attempts[-1] += 1
            try:
                waiting[-1]()
            except _TooDeep as deeper:
                waiting.append(deeper.compute)
                attempts.append(0)
            else:
                waiting.pop()
                attempts.pop()
    finally:
        _state.depth = 0
