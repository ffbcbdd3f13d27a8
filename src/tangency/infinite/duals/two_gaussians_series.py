r"""The dual of a smooth function of two independent Gaussians, by Hermite series in both.

With u = psi(s1 z1, s2 z2), correlations rho_m of z_m and z_m', normalised Hermite polynomials h_j
and d^m_jk = E[d_m psi h_j(z1) h_k(z2)], Mehler's formula in each variable gives

    A_m = E[d_m psi d_m psi'] = sum_jk d^m_jk d'^m_jk rho1^j rho2^k,
    K = E psi E psi' + sum_jk c_jk c'_jk rho1^j rho2^k,    c_jk = s1 d^1_(j-1)k / sqrt(j)
                                                                = s2 d^2_j(k-1) / sqrt(k).

Differences 1 - rho1^j rho2^k are never formed (`tangency.infinite.duals.series`), so coincidence
costs no digits. Coefficients are integrals by the trapezoidal rule, which converges
geometrically for functions that are analytic near the real plane; its step is halved until it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tangency.errors import UnsupportedOperation
from tangency.infinite.duals.expansion import check_finite, relative
from tangency.infinite.duals.in_parts import PART, joined, representatives
from tangency.infinite.duals.quadrature import normal_pdf
from tangency.infinite.duals.two_gaussians_cones import FunctionOfTwo, value_and_gradient
from tangency.infinite.duals.two_gaussians_pieces import in_pieces

__all__ = ["SmoothOfTwo"]

_DEGREES = (12, 24, 32, 48, 64, 80, 96)
# Beyond this many standard deviations the density, times any polynomial growth, is rounding.
_REACH = 9.5
_FIRST_STEP, _LEAST_STEP = 0.32, 0.03
# What the rule of twice the step may be off by: for an analytic function the error is its square.
_RESOLVED = 1e-6
# Shares of E |grad psi|^2 that the series may leave out, and that are rounding.
_TOLERATED, _ROUNDING = 1e-10, 1e-14
_LEAST_SD = 1e-30
# Entries of a side that a pair needs, and how many leading dimensions they have.
_NEEDED = {
    "first": 2,
    "second": 2,
    "rests": 1,
    "mean": 0,
    "norm": 0,
    "sds": 1,
    "metric": 1,
}


@dataclass(frozen=True)
class SmoothOfTwo:
    """The dual of one function of two independent Gaussians, smooth at the scale of its arguments.

    Accuracy: `truncation` bounds it. gelu, silu, sigmoid and tanh nested or multiplied have errors
    of 1e-9 or less at standard deviations of 0.5, 1e-6 or less at 1, 1e-4 at 2 (tanh is the worst,
    its versine_out near coincidence 2e-3 relative there). A pair costs about 7 (D + 1)^2 flops,
    D <= 96 the degree of the series.

    Attributes:
        function: psi.
        uniform: whether psi is the same for all examples, so that sides can be made in parts.
    """

    function: FunctionOfTwo
    uniform: bool = False

    def moments(self, sd1: Tensor, sd2: Tensor) -> dict[str, Tensor]:
        """What `pair` needs of one side, of standard deviations sd1, sd2 (both of shape S).

        Returns float64 tensors: "sd" = sqrt(E psi^2), "mean" = E psi, "slope_1", "slope_2" = E of
        the derivatives, "slope_energy_1", "slope_energy_2" = E of their squares, "omitted" (see
        `truncation`), S each, and what `pair` needs: "first", "second" = d^1, d^2
        (D + 1, D + 1, S), zero for j + k > D, "rests" (3, S), "norm" (S), "sds" (2, S), "metric"
        (3, S).

        Raises UnsupportedOperation if psi has kinks or features too narrow to integrate, or is
        not finite where it is needed.
        """
        sds = torch.stack(torch.broadcast_tensors(sd1.double(), sd2.double()))
        sds = sds.clamp_min(_LEAST_SD)
        if not self.uniform or sds[0].numel() <= PART:
            side = self._side(sds, self._step(sds), _DEGREES)
        else:
            side = self._in_parts(sds)
        at_rest = (sd1 == 0) & (sd2 == 0)
        zero = torch.zeros_like(sds[0])
        shown = torch.where(at_rest, self.function(zero, zero).abs(), side["norm"])
        return side | {"sd": shown}

    def _in_parts(self, sds: Tensor) -> dict[str, Tensor]:
        flat = sds.flatten(1)
        few = flat[:, representatives(*flat)]
        step = self._step(few)
        degree = self._side(few, step, _DEGREES)["first"].shape[0] - 1

        def part(*kinds: Tensor) -> dict[str, Tensor]:
            return self._side(torch.stack(kinds), step, (degree,))

        return joined(part, *flat, shape=sds.shape[1:])

    def _step(self, sds: Tensor) -> float:
        """The widest step that resolves psi."""
        step = _FIRST_STEP
        while not self._is_resolved(sds, step):
            step /= 2
            if step < _LEAST_STEP:
                raise UnsupportedOperation(
                    "a function of two Gaussians has kinks, or varies too fast for its moments to "
                    "be integrated at these standard deviations (up to "
                    f"{float(sds.detach().max()):.3g}); functions that are linear on cones and "
                    "functions that are smooth at the scale 1 have a rule; otherwise use "
                    'numerical="sample"'
                )
        return step

    def _side(self, sds: Tensor, step: float, degrees: Sequence[int]) -> dict[str, Tensor]:
        """The side with the least of the degrees that is enough."""
        sums, first, second = self._expand(sds, step, degrees[-1])
        for degree in degrees:
            side = _side(sds, sums, _up_to(degree, first), _up_to(degree, second))
            if float(side["omitted"].detach().max()) <= _TOLERATED:
                break
        return side

    def pair(
        self,
        left: Mapping[str, Tensor],
        right: Mapping[str, Tensor],
        versine1: Tensor,
        versine2: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(versine_out, A1, A2), as `PiecewiseLinearOfTwo.pair`."""
        return in_pieces(_pair, (left, right), _NEEDED, versine1, versine2)

    def truncation(self, side: Mapping[str, Tensor]) -> Tensor:
        """Bound (S) on what truncation leaves out of A_1 and A_2, relative to E |grad psi|^2.

        That of a pair is the geometric mean of its sides', times max |rho|^D; K is D times more
        accurate. Where the inputs coincide the error is 0.
        """
        return side["omitted"]

    def _is_resolved(self, sds: Tensor, step: float) -> bool:
        """Whether the rule of twice the step integrates psi^2 and |grad psi|^2 well."""
        energies = [
            torch.stack(_moments(self.function, sds, s)) for s in (2 * step, 2 * step / math.pi)
        ]
        error = relative((energies[0] - energies[1]).abs(), energies[1])
        return bool((error <= _RESOLVED).all())

    def _expand(self, sds: Tensor, step: float, degree: int) -> tuple[Tensor, Tensor, Tensor]:
        """Moments of one function (9, S), and d^1, d^2 (D + 1, D + 1, S) of its derivatives."""
        z, weights = _rule(step, sds)
        hermite = _hermite_rows(z, degree + 1) * weights
        shape = sds.shape[1:]
        rows: tuple[list[Tensor], list[Tensor]] = ([], [])
        sums = torch.zeros(9, *shape, dtype=sds.dtype, device=sds.device)
        lifted = _lift(z, sds)
        g1 = lifted * sds[0]
        for q, at in enumerate(z.tolist()):
            g2 = (at * sds[1]).expand_as(g1)
            value, slope1, slope2 = value_and_gradient(self.function, g1, g2)
            for row, slope in zip(rows, (slope1, slope2), strict=True):
                row.append(torch.tensordot(hermite, slope, dims=1))
            along1, along2 = slope1 * lifted, slope2 * at
            terms = [value, value**2, slope1**2, slope2**2, along1**2, along1 * along2, along2**2]
            terms += [value * along1, value * along2]
            sums = sums + weights[q] * torch.stack(
                [torch.tensordot(weights, t, dims=1) for t in terms]
            )
        # Dimensions (k, j, *S): the degree in z2 first, as pairs run through them.
        first, second = (torch.tensordot(hermite, torch.stack(row), dims=1) for row in rows)
        return sums, first, second


def _up_to(degree: int, coefficients: Tensor) -> Tensor:
    """The coefficients (k, j, *S) of k, j <= degree, those of k + j > degree replaced by 0."""
    part = coefficients[: degree + 1, : degree + 1]
    degrees = torch.arange(degree + 1, device=part.device)
    kept = degrees[:, None] + degrees <= degree
    return part * kept.reshape(*part.shape[:2], *[1] * (part.ndim - 2))


def _side(sds: Tensor, sums: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    mean, energy, slope_energies = sums[0], sums[1], sums[2:4]
    norm = energy.sqrt()
    degrees = torch.arange(1, len(first) + 1, dtype=first.dtype, device=first.device)
    weights = 1 / degrees.reshape(-1, *[1] * (first.ndim - 2))
    seen = (sds[0] ** 2 * (weights * first**2)).sum((0, 1)) + (
        sds[1] ** 2 * weights * second[:, 0] ** 2
    ).sum(0)
    total = slope_energies.sum(0)
    unseen = torch.stack(
        [
            slope_energies[0] - (first**2).sum((0, 1)),
            slope_energies[1] - (second**2).sum((0, 1)),
            energy - mean**2 - seen,
        ]
    )
    whole = torch.stack([total, total, energy])
    rests = torch.where(unseen > _ROUNDING * whole, unseen, 0.0)
    safe = torch.where(energy > 0, energy, 1.0)
    # <e_a, e_b> of the derivatives of psi / |psi| with respect to the standard deviations.
    drift = sums[7:9] / safe
    metric = sums[4:7] / safe - torch.stack([drift[0] ** 2, drift[0] * drift[1], drift[1] ** 2])
    return {
        "first": first,
        "second": second,
        "rests": _root(rests),
        "mean": mean,
        "norm": norm,
        "sds": sds,
        "metric": metric,
        "slope_1": first[0, 0],
        "slope_2": second[0, 0],
        "slope_energy_1": slope_energies[0],
        "slope_energy_2": slope_energies[1],
        "omitted": 2 * relative(rests[:2].amax(0), total),
    }


def _pair(
    left: Mapping[str, Tensor], right: Mapping[str, Tensor], versines: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(versines[0].dtype, versines[1].dtype)
    v1, v2 = (v.double() for v in versines)
    rho1, rho2 = 1 - v1, 1 - v2
    zero = torch.zeros_like(rho1)
    count = min(len(left["first"]), len(right["first"]))
    a, b = _Side.of(left, count), _Side.of(right, count)
    gain1, gain2 = a.gains[0] * b.gains[0], a.gains[1] * b.gains[1]
    # Totals over k of rows over j: see the module on series for the tails.
    slopes1 = slopes2 = along1 = along2 = tail2 = apart = zero
    for k in reversed(range(count)):
        row1 = row2 = along = tail = zero
        for j in reversed(range(count - k)):
            product = a.first[k, j] * b.first[k, j]
            row1 = row1 * rho1 + product
            row2 = row2 * rho1 + a.second[k, j] * b.second[k, j]
            tail = tail + product / (j + 1)
            along = along * rho1 + tail
            difference = a.gains[0] * a.first[k, j] - b.gains[0] * b.first[k, j]
            apart = apart + difference.square() / (j + 1)
        # Terms c_jk of this k, j >= 1, fall by their share of rho2^k, k >= 1; so do c_0(k+1).
        if k > 0:
            tail2 = tail2 + gain1 * tail
            along2 = along2 * rho2 + tail2
        slopes1, slopes2 = slopes1 * rho2 + row1, slopes2 * rho2 + row2
        along1 = along1 * rho2 + along
    edge = edge_along = zero
    for k in reversed(range(count)):
        edge = edge + a.second[k, 0] * b.second[k, 0] / (k + 1)
        edge_along = edge_along * rho2 + edge
        difference = a.gains[1] * a.second[k, 0] - b.gains[1] * b.second[k, 0]
        apart = apart + difference.square() / (k + 1)
    middle = (v1 + v2) / 2
    power, fall = _geometric(1 - middle, count)
    rest = a.rests[2] * b.rests[2] / (a.norm * b.norm)
    slopes1 = slopes1 + a.rests[0] * b.rests[0] * power
    slopes2 = slopes2 + a.rests[1] * b.rests[1] * power
    apart = apart + (a.rests[2] / a.norm - b.rests[2] / b.norm).square()
    apart = apart + (a.mean / a.norm - b.mean / b.norm).square()
    lost = v1 * gain1 * along1 + v2 * (along2 + gain2 * edge_along) + middle * rest * fall
    versine_out = _radial(left, right, 0.5 * apart) + lost
    return versine_out.to(dtype), slopes1.to(dtype), slopes2.to(dtype)


class _Side(NamedTuple):
    """One side's series up to degree count - 1, and what is beyond it."""

    first: Tensor
    second: Tensor
    rests: Tensor
    gains: Tensor
    mean: Tensor
    norm: Tensor

    @staticmethod
    def of(side: Mapping[str, Tensor], count: int) -> _Side:
        first, second, sds, norm = (side[key] for key in ("first", "second", "sds", "norm"))
        rests = side["rests"]
        safe = torch.where(norm > 0, norm, 1.0)
        if count < len(first):
            degrees = torch.arange(len(first), device=first.device)
            beyond = (degrees[:, None] + degrees >= count).reshape(
                *first.shape[:2], *[1] * (first.ndim - 2)
            )
            weights = 1 / (degrees.double() + 1).reshape(-1, *[1] * (first.ndim - 2))
            lost1, lost2 = first**2 * beyond, second**2 * beyond
            lost = sds[0] ** 2 * (weights * lost1).sum((0, 1))
            lost = lost + sds[1] ** 2 * (weights * lost2[:, 0]).sum(0)
            more = torch.stack([lost1.sum((0, 1)), lost2.sum((0, 1)), lost])
            rests = _root(rests**2 + more)
        return _Side(first, second, rests, sds / safe, side["mean"], safe)


def _root(x: Tensor) -> Tensor:
    """The square root, with the derivative 0 at 0."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)


def _geometric(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """x^count, and 1 + x + ... + x^(count - 1)."""
    power, total = torch.ones_like(x), torch.zeros_like(x)
    for _ in range(count):
        power, total = power * x, total + power
    return power, total


def _radial(left: Mapping[str, Tensor], right: Mapping[str, Tensor], far: Tensor) -> Tensor:
    """1 - correlation at coincidence: by the metric where the sides are close."""
    metric = 0.5 * (left["metric"] + right["metric"])
    gap1, gap2 = (left["sds"][m] - right["sds"][m] for m in (0, 1))
    near = 0.5 * (metric[0] * gap1**2 + 2 * metric[1] * gap1 * gap2 + metric[2] * gap2**2)
    return torch.where(near <= torch.finfo(far.dtype).eps ** (2 / 3), near.clamp_min(0), far)


def _rule(step: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and normal weights of the trapezoidal rule, (Q)."""
    count = math.ceil(_REACH / step)
    z = step * torch.arange(-count, count + 1, dtype=like.dtype, device=like.device)
    return z, step * normal_pdf(z)


def _lift(z: Tensor, sds: Tensor) -> Tensor:
    return z.reshape(-1, *[1] * (sds.ndim - 1))


def _hermite_rows(z: Tensor, count: int) -> Tensor:
    """h_j(z), j < count: (count, Q)."""
    rows = [torch.ones_like(z), z]
    for degree in range(2, count):
        step = z * rows[-1] - math.sqrt(degree - 1) * rows[-2]
        rows.append(step / math.sqrt(degree))
    return torch.stack(rows[:count])


def _moments(function: FunctionOfTwo, sds: Tensor, step: float) -> tuple[Tensor, ...]:
    """E psi^2, E (d_1 psi)^2, E (d_2 psi)^2 by the trapezoidal rule."""
    z, weights = _rule(step, sds)
    g1 = _lift(z, sds) * sds[0]
    totals = [torch.zeros_like(sds[0])] * 3
    for at, weight in zip(z.tolist(), weights.tolist(), strict=True):
        parts = value_and_gradient(function, g1, (at * sds[1]).expand_as(g1))
        check_finite(parts[0], parts[1] + parts[2])
        totals = [
            total + weight * torch.tensordot(weights, part**2, dims=1)
            for total, part in zip(totals, parts, strict=True)
        ]
    return tuple(totals)
