r"""Kinks of a pointwise function: where they are, how large, and their exact share of the dual.

A function that is smooth but for jumps J_m of its m-th derivatives at points x_k is a smooth
function plus sum_k sum_m J_m (x - x_k)_+^m / m!. The Hermite coefficients of such a kink decay as
a power of the degree only, but its Gaussian moments are known in closed form
(`tangency.infinite.duals.bivariate`). Kinks at x_k < 0 are taken as powers of (x_k - x)_+,
which differ from those of (x - x_k)_+ by a polynomial: so every kink term is as small as the
probability beyond it. In z = x / sd a kink term is, with e = 1 or -1 its side, a = |x_k| / sd,

    k'(x) = b_m (e z - a)_+^(m-1) / (m-1)!,   k(x) = sd e b_m (e z - a)_+^m / m!,
    b_m = sd^(m-1) J_m e^m.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from tangency.errors import UnsupportedOperation
from tangency.infinite.duals.bivariate import truncated_moments, truncated_products
from tangency.infinite.duals.quadrature import PointwiseFunction, normal_pdf, value_and_slope

__all__ = [
    "Kinks",
    "KnownKinks",
    "find_kinks",
    "kink_coefficients",
    "kink_parts",
    "kink_products",
    "kink_terms",
]

_INTERVALS = 8192
# The least half-width of the search, in x: it makes batches of differing sd find the same kinks.
_LEAST_SPAN = 40.0
_COARSE_STEPS = 8
_FINE_STEPS = 56
# A jump counts when it exceeds this share of the largest value scanned: rounding is far below,
# as are the seams of numerical branches (softplus beyond its threshold: 2e-9).
_SMALLEST_JUMP = 1e-6
_ONE_SIDED_REACH = 0.5
_DEGREES = (9, 12)
# Most sides are searched within the least span; others differ from batch to batch.
_SPANS_KEPT = 64


@dataclass(frozen=True)
class Kinks:
    """Positions x_k (K) and jumps (K, M) of the derivatives of order 1 .. M there."""

    positions: tuple[float, ...]
    jumps: Tensor

    def to_dict(self) -> dict[str, object]:
        """Plain numbers, for printing and storing."""
        return {"positions": list(self.positions), "jumps": self.jumps.tolist()}


KnownKinks: TypeAlias = dict[float, "Kinks | None"]
"""What a search for the kinks of one function found, by the half-width of the search."""


def find_kinks(
    function: PointwiseFunction, sd: Tensor, *, order: int = 6, known: KnownKinks | None = None
) -> Kinks | None:
    """The kinks of phi within ten of the largest standard deviation (and |x| < 40), or None.

    function: phi, called in float64 on (Q, *S). sd: shape S. order: highest derivative whose jumps
        are measured, M; trailing orders without a jump are left out of the result. known: what
        earlier searches for the same function and order found, which are not made again.

    Looks for jumps of phi' and phi'' by bisection from 8192 intervals; a kink is missed if it is
    smaller than 1e-6 of the largest slope, or than the smooth variation over one interval.
    Returns None too if phi differs between examples (closes over constants of theirs), since then
    there is no one place to look for.

    Raises UnsupportedOperation if phi itself jumps: E phi'(u) phi'(v) then does not exist.
    """
    if sd.numel() == 0 or not _is_uniform(function, sd):
        return None
    known = {} if known is None else known
    span = max(10 * float(sd.detach().max()), _LEAST_SPAN)
    if span not in known:
        found = _search(function, sd, span, order)
        if len(known) == _SPANS_KEPT:
            del known[next(iter(known))]
        known[span] = found
    kinks = known[span]
    return None if kinks is None else Kinks(kinks.positions, kinks.jumps.to(sd.device))


def _search(function: PointwiseFunction, sd: Tensor, span: float, order: int) -> Kinks | None:
    """The kinks in (-span, span)."""

    def slope(x: Tensor) -> Tensor:
        return value_and_slope(function, x)[1]

    def bend(x: Tensor) -> Tensor:
        return _second_derivative(function, x)

    jumps = [_jump_positions(_on_points(f, sd), span) for f in (function, slope, bend)]
    if jumps[0]:
        raise UnsupportedOperation(
            f"the activation jumps at x = {jumps[0][0]:.6g}: its derivative is a delta there, and "
            "the neural tangent kernel does not exist; use a continuous activation"
        )
    positions = _distinct(jumps[1] + jumps[2])
    if not positions:
        return None
    sizes = _jump_sizes(_on_points(slope, sd), positions, order)
    highest = int((sizes != 0).any(dim=0).nonzero().max()) + 1 if bool((sizes != 0).any()) else 0
    return Kinks(tuple(positions), sizes[:, :highest]) if highest else None


def _is_uniform(function: PointwiseFunction, sd: Tensor) -> bool:
    """Whether phi is the same function for every example."""
    if sd.numel() == 1:
        return True
    points = torch.linspace(-4.7, 5.1, 33, dtype=torch.float64, device=sd.device)
    values = function(points.reshape(-1, *[1] * sd.ndim).expand(-1, *sd.shape).contiguous())
    values = values.flatten(1)
    return bool(((values - values[:, :1]).abs() <= 1e-12 * values.abs().max()).all())


def _on_points(function: PointwiseFunction, sd: Tensor) -> Callable[[Tensor], Tensor]:
    """phi on a vector of points, packed into the shape (Q, *S) that it expects."""

    def evaluate(points: Tensor) -> Tensor:
        count, width = len(points), sd.numel()
        padded = (
            torch.cat([points, points[-1:].expand(-count % width)]) if count % width else points
        )
        return function(padded.reshape(-1, *sd.shape)).flatten()[:count].detach()

    return evaluate


def _second_derivative(function: PointwiseFunction, x: Tensor) -> Tensor:
    # Twice in reverse mode: several activations have no second derivative in forward mode.
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        values = function(x)
        if not values.requires_grad:
            return torch.zeros_like(x)
        (slopes,) = torch.autograd.grad(values.sum(), x, create_graph=True)
        if not slopes.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(slopes.sum(), x, materialize_grads=True)[0]


def _jump_positions(evaluate: Callable[[Tensor], Tensor], span: float) -> list[float]:
    """Points in (-span, span) across which a function jumps, to machine precision.

    Every interval is halved towards the larger change. The change across a jump stays, that of a
    smooth function shrinks with the interval.
    """
    # The grid is shifted so that no natural place of a kink is a grid point.
    grid = torch.linspace(-span, span * 1.000317, _INTERVALS + 1, dtype=torch.float64)
    low, high = grid[:-1], grid[1:]
    ends = evaluate(grid)
    scale = float(ends[torch.isfinite(ends)].abs().max()) if len(ends) else 0.0
    at_low, at_high = ends[:-1], ends[1:]
    first = (at_high - at_low).abs().nan_to_num(0.0, 0.0)
    for step in range(_FINE_STEPS):
        if step == _COARSE_STEPS:
            change = (at_high - at_low).abs().nan_to_num(0.0, 0.0)
            kept = (change > _SMALLEST_JUMP * scale) & (change > first / 32)
            low, high, at_low, at_high = (t[kept] for t in (low, high, at_low, at_high))
        if not len(low):
            return []
        middle = 0.5 * (low + high)
        at_middle = evaluate(middle)
        first_half = (at_middle - at_low).abs() >= (at_high - at_middle).abs()
        low = torch.where(first_half, low, middle)
        at_low = torch.where(first_half, at_low, at_middle)
        high = torch.where(first_half, middle, high)
        at_high = torch.where(first_half, at_middle, at_high)
    jumps = (at_high - at_low).abs().nan_to_num(0.0, 0.0) > _SMALLEST_JUMP * scale
    return [0.0 if abs(x) < 1e-14 else x for x in (0.5 * (low + high))[jumps].tolist()]


def _distinct(positions: list[float]) -> list[float]:
    kept: list[float] = []
    for x in sorted(positions):
        if not kept or x - kept[-1] > 1e-9 * (1 + abs(x)):
            kept.append(x)
    return kept


def _jump_sizes(evaluate: Callable[[Tensor], Tensor], positions: list[float], order: int) -> Tensor:
    """Jumps (K, order) of phi', phi'', ...: one-sided Chebyshev interpolation of phi'.

    A jump that two degrees of interpolation do not agree on is rounding, and taken as 0; what is
    not subtracted as a kink stays in the series, so nothing is lost but speed of convergence.
    """
    sizes = np.zeros((len(positions), order))
    for k, x in enumerate(positions):
        gaps = [abs(x - other) / 2 for other in positions if other != x]
        reach = min([_ONE_SIDED_REACH, *gaps])
        estimates = [
            _one_sided(evaluate, x, reach, degree, order)
            - _one_sided(evaluate, x, -reach, degree, order)
            for degree in _DEGREES
        ]
        doubt = np.abs(estimates[1] - estimates[0])
        sizes[k] = np.where(np.abs(estimates[1]) > 100 * doubt + 1e-13, estimates[1], 0.0)
    return torch.from_numpy(sizes)


def _one_sided(
    evaluate: Callable[[Tensor], Tensor], x: float, reach: float, degree: int, order: int
) -> np.ndarray:
    """Derivatives 0 .. order - 1 at x of the interpolant on the points between x and x + reach."""
    unit = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    points = x + reach * (unit + 1) / 2
    series = np.polynomial.Chebyshev.fit(
        unit, evaluate(torch.from_numpy(points)).numpy(), degree, domain=[-1, 1]
    )
    return np.array(
        [
            float(series.deriv(m)(-1.0)) * (2 / reach) ** m if m else float(series(-1.0))
            for m in range(order)
        ]
    )


def kink_terms(kinks: Kinks, sd: Tensor, order: int) -> dict[str, Tensor]:
    """One side's terms: "kink_places" a, "kink_sides" e (K, *S), "kink_jumps" b (K, M, *S).

    sd: shape S, float64, positive. order: M, the highest derivative whose jumps are used.
    """
    trailing = [1] * sd.ndim
    places = torch.tensor(kinks.positions, dtype=torch.float64, device=sd.device)
    places = places.reshape(-1, *trailing)
    sides = torch.where(places < 0, -1.0, 1.0).double()
    jumps = kinks.jumps[:, :order].reshape(-1, order, *trailing)
    powers = torch.arange(1, jumps.shape[1] + 1, device=sd.device).reshape(1, -1, *trailing)
    return {
        # Beyond forty standard deviations every term underflows.
        "kink_places": (places.abs() / sd).clamp_max(40.0),
        "kink_sides": sides.expand(-1, *sd.shape),
        "kink_jumps": jumps * sd ** (powers - 1) * sides.unsqueeze(1) ** powers,
    }


def kink_parts(terms: Mapping[str, Tensor], sd: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """k(sd z) and k'(sd z), both (Q, *S), at nodes z (Q, *S or broadcasting)."""
    value, slope = torch.zeros_like(z * sd), torch.zeros_like(z * sd)
    for place, side, jumps in _each_kink(terms):
        beyond = (side * z - place).clamp_min(0)
        power = (beyond > 0).double()
        for m, jump in enumerate(jumps, start=1):
            slope = slope + jump * power
            power = power * beyond / m
            value = value + sd * side * jump * power
    return value, slope


def kink_coefficients(terms: Mapping[str, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """E k / sd (S) and the Hermite coefficients E[k'(sd z) h_j(z)], j < count: (count, *S).

    The j-th is E of the j-th derivative of k'(z) over sqrt(j!): a truncated moment while
    derivatives of the power are left, then density times a Hermite polynomial at the kink.
    """
    places, sides, jumps = (terms[f"kink_{key}"] for key in ("places", "sides", "jumps"))
    order = jumps.shape[1]
    hermite = _density_times_hermite(places, count)
    moments = truncated_moments(places, order)
    rows = []
    for j in range(count):
        row = torch.zeros_like(places[0])
        for m in range(1, order + 1):
            if j < m:
                part = moments[m - 1 - j] * math.exp(-0.5 * math.lgamma(j + 1))
            else:
                ratio = 0.5 * (math.lgamma(j - m + 1) - math.lgamma(j + 1))
                part = hermite[j - m] * math.exp(ratio)
            row = row + (jumps[:, m - 1] * sides**j * part).sum(0)
        rows.append(row)
    mean = torch.zeros_like(places)
    for m in range(1, order + 1):
        mean = mean + sides * jumps[:, m - 1] * moments[m]
    return mean.sum(0), torch.stack(rows)


def _density_times_hermite(places: Tensor, count: int) -> list[Tensor]:
    """normal_pdf(a) h_n(a) for n < count, through functions that do not overflow."""
    root = normal_pdf(places).sqrt()
    rows = [root, places * root]
    for n in range(2, count):
        rows.append((places * rows[-1] - math.sqrt(n - 1) * rows[-2]) / math.sqrt(n))
    return [row * root for row in rows]


def kink_products(
    left: Mapping[str, Tensor], right: Mapping[str, Tensor], versine: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(E k(u) k(v) / (sd1 sd2), E k'(u) k'(v)) of the kink parts of two sides.

    versine: 1 - correlation, float64; None for correlation 1.
    """
    value = slope = torch.zeros((), dtype=torch.float64, device=left["kink_places"].device)
    start = value if versine is None else versine
    orders = left["kink_jumps"].shape[1], right["kink_jumps"].shape[1]
    for a, side_a, jumps_a in _each_kink(left):
        for b, side_b, jumps_b in _each_kink(right):
            sign = side_a * side_b
            # Powers on opposite sides of 0 see the opposite correlation.
            seen = torch.where(sign > 0, start, 2 - start)
            table = truncated_products(a, b, seen, max(orders))
            for m in range(1, orders[0] + 1):
                for n in range(1, orders[1] + 1):
                    weight = jumps_a[m - 1] * jumps_b[n - 1]
                    value = value + sign * weight * table[m, n]
                    slope = slope + weight * table[m - 1, n - 1]
    return value, slope


def _each_kink(terms: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    return list(zip(terms["kink_places"], terms["kink_sides"], terms["kink_jumps"], strict=True))
