"""Fixed points of length and correlation maps, all of them, and which one attracts a start."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

__all__ = ["CorrelationFixedPoints", "LengthFixedPoints", "correlation_fixed_points"]
__all__ += ["length_fixed_points"]

SMALLEST, LARGEST, SCANNED = 1e-8, 1e8, 81
"""Lengths between which fixed points are looked for, and how many are tried."""

NEUTRAL = 1e-10
"""|ln Q(q) / q| below which a length counts as fixed: rounding."""

RESOLVED = 1e-13
"""Smallest |C(c) - c| and |ln Q(q) / q| whose sign is trusted."""

CLOSEST = 1e-7
"""Smallest 1 - c at which a fixed correlation is told from one."""

ODD = 1e-10
"""A fixed correlation below this is the zero that odd activations keep, found by rounding sums."""

XTOL = 1e-14
"""Absolute tolerance of roots in ln q and in c."""


@dataclass(frozen=True)
class LengthFixedPoints:
    """Where Q(q) = q.

    Attributes:
        values: the fixed points between `SMALLEST` and `LARGEST`, ascending.
        all: every length is a fixed point (critical ReLU).
        from_zero: whether short states grow; if not, q -> 0 attracts them.
        to_infinity: whether long states grow without bound.
    """

    values: tuple[float, ...]
    all: bool
    from_zero: bool
    to_infinity: bool

    def attracting(self, start: float, longer: bool) -> float:
        """The limit of lengths that start at `start` and first grow (`longer`) or shrink.

        By monotonicity: E phi(sqrt(q) z)^2 grows with q for the activations in use, so that lengths
        cannot jump over a fixed point. 0 and infinity are limits too.
        """
        if self.all:
            return start
        beside = [q for q in self.values if abs(math.log(q / start)) < NEUTRAL]
        if beside:
            return beside[0]
        if longer:
            return min((q for q in self.values if q > start), default=math.inf)
        return max((q for q in self.values if q < start), default=0.0)


def length_fixed_points(lengths: Callable[[Tensor], Tensor]) -> LengthFixedPoints:
    """All fixed points of a length map q (m,) -> Q(q) (m,)."""
    grid = torch.logspace(math.log10(SMALLEST), math.log10(LARGEST), SCANNED, dtype=torch.float64)

    def growth(log_q: float) -> float:
        at = torch.tensor([math.exp(log_q)], dtype=torch.float64)
        return float(_log_ratio(lengths(at), at))

    ratios = _log_ratio(lengths(grid), grid)
    if bool((ratios.abs() < NEUTRAL).all()):
        return LengthFixedPoints((), all=True, from_zero=False, to_infinity=False)
    roots = _roots(growth, grid.log().tolist(), ratios.tolist())
    values = tuple(math.exp(r) for r in roots)
    return LengthFixedPoints(values, False, float(ratios[0]) > 0, float(ratios[-1]) > 0)


@dataclass(frozen=True)
class CorrelationFixedPoints:
    """Where C(c) = c at a given length, with the slopes dC/dc there; c = 1 is the last.

    `all` says that every correlation is fixed (a linear block without bias).
    """

    values: tuple[float, ...]
    slopes: tuple[float, ...]
    all: bool = False

    def attracting(self, start: float, closer: bool) -> tuple[float, float]:
        """Limit and slope for correlations that start at `start` and first grow (`closer`) or fall.

        Correlation maps are increasing: C(c) is a power series in c with coefficients that are not
        negative (for c >= 0).
        """
        if self.all:
            return start, 1.0
        known = list(zip(self.values, self.slopes, strict=True))
        beside = [pair for pair in known if abs(pair[0] - start) < XTOL]
        if beside:
            return beside[0]
        if closer:
            return min((p for p in known if p[0] > start), default=known[-1])
        return max((p for p in known if p[0] < start), default=known[0])


def correlation_fixed_points(
    correlations: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> CorrelationFixedPoints:
    """All fixed points in [-1, 1] of a correlation map c (m,) -> C(c), dC/dc, both (m,)."""
    near = 1 - torch.logspace(math.log10(CLOSEST), -1, 37, dtype=torch.float64)
    far = torch.linspace(0.85, -1.0, 38, dtype=torch.float64)
    grid = torch.cat([near, far]).flip(0)

    def rise(c: float) -> float:
        at = torch.tensor([c], dtype=torch.float64)
        return float(correlations(at)[0]) - c

    gaps = correlations(grid)[0] - grid
    slope_at_one = float(correlations(torch.ones(1, dtype=torch.float64))[1])
    if bool((gaps.abs() < RESOLVED).all()):
        return CorrelationFixedPoints((1.0,), (slope_at_one,), all=True)
    roots = [r if abs(r) > ODD else 0.0 for r in _roots(rise, grid.tolist(), gaps.tolist())]
    values = torch.tensor([*roots, 1.0], dtype=torch.float64)
    slopes = correlations(values)[1]
    return CorrelationFixedPoints(tuple(values.tolist()), tuple(slopes.tolist()))


def _log_ratio(image: Tensor, q: Tensor) -> Tensor:
    return (image / q).log()


def _roots(function: Callable[[float], float], at: list[float], values: list[float]) -> list[float]:
    """Roots between points `at` (ascending), where the function has the given values.

    Points whose sign is rounding are left out, so that a root on a point is found between its
    neighbours, and a function that touches zero makes no roots.
    """
    known = [(x, v) for x, v in zip(at, values, strict=True) if abs(v) >= RESOLVED]
    return [
        float(brentq(function, a, b, xtol=XTOL, rtol=1e-14))
        for (a, left), (b, right) in itertools.pairwise(known)
        if left * right < 0
    ]
