"""Results that depend on each other, computed at first need and remembered.

Layer upon layer, a result asks for others. Two things follow from knowing who asks for whom: a
network of any depth needs no deep recursion, and what does not rest on samples is told apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["Memory", "rests_on_samples"]

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
    """

    def __init__(self, exact: Memory | None = None) -> None:
        super().__init__()
        self._sampled: set[Hashable] = set()
        if exact is not None:
            self.update((k, v) for k, v in exact.items() if k not in exact._sampled)

    def ask(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The result remembered under `key`, else that of `compute`."""
        if key not in self:
            _nest(lambda: self._remember(key, compute))
        elif key in self._sampled:
            _state.sampled = True
        return self[key]

    def _remember(self, key: Hashable, compute: Callable[[], Any]) -> None:
        before, _state.sampled = _state.sampled, False
        try:
            self[key] = compute()
            if _state.sampled:
                self._sampled.add(key)
        finally:
            _state.sampled = _state.sampled or before


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
