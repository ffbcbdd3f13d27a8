"""When the loss first falls to a given value."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["first_time"]

Curve = Callable[[Tensor], Tensor]
"""Loss (T,) at times (T,)."""

BLOCK = 256
"""Times at which the loss is asked for at once."""

EACH = 4096
"""Steps that are looked at one by one."""

FINE = 1e-3
"""Relative distance of the times that are looked at after that."""


def first_time(curve: Curve, level: float, *, end: float, whole: bool, monotone: bool) -> float:
    """The first time at which `curve` is at most `level`, infinite if there is none by `end`.

    `whole` times are integers. A `monotone` curve falls, so that the time can be bracketed;
    another is followed along a grid.
    """
    if float(curve(torch.zeros(1, dtype=torch.float64))[0]) <= level:
        return 0.0
    bracket = _doubling(curve, level, end) if monotone else _scan(curve, level, end, whole)
    if bracket is None:
        return math.inf
    return _narrowed(curve, level, *bracket, whole=whole)


def _doubling(curve: Curve, level: float, end: float) -> tuple[float, float] | None:
    """Two times between which the curve falls to the level."""
    times = 2.0 ** torch.arange(-60, math.ceil(math.log2(end)) + 2, dtype=torch.float64)
    hit = (curve(times) <= level).nonzero()
    if len(hit) == 0:
        return None
    index = int(hit[0])
    return (float(times[index - 1]) if index else 0.0), float(times[index])


def _scan(curve: Curve, level: float, end: float, whole: bool) -> tuple[float, float] | None:
    spacing = 1.0 if whole else 0.25
    before = 0.0
    while before < end:
        step = max(spacing, before * FINE if before >= EACH * spacing else 0.0)
        step = math.floor(step) if whole else step
        times = before + step * torch.arange(1, BLOCK + 1, dtype=torch.float64)
        hit = (curve(times) <= level).nonzero()
        if len(hit):
            time = float(times[int(hit[0])])
            return time - step, time
        before = float(times[-1])
    return None


def _narrowed(curve: Curve, level: float, low: float, high: float, *, whole: bool) -> float:
    """The first time in (low, high] of a grid that grows finer, until nothing lies between."""
    if whole:
        low, high = math.floor(low), math.ceil(high)
    while high - low > (1 if whole else 1e-13 * high):
        times = torch.linspace(low, high, BLOCK, dtype=torch.float64)[1:]
        times = torch.unique(times.ceil()) if whole else times
        index = int((curve(times) <= level).nonzero()[0])
        new_low, new_high = (float(times[index - 1]) if index else low), float(times[index])
        if (new_low, new_high) == (low, high):
            break
        low, high = new_low, new_high
    return high
