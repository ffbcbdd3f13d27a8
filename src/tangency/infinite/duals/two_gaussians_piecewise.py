"""Second moments of a function of two independent Gaussians that is linear on cones.

u = psi(g1, g2) and v = psi(g1', g2') with (g1, g1') independent of (g2, g2'), g_m = s_m z_m, and
angles theta_m, cos theta_m the correlation of z_m and z_m'. Let the angles shrink together, to
t theta_m, 0 <= t <= 1. By Price's theorem, with A_m = E[d_m psi d_m psi'] and K = E[psi psi'],

    dK/dt = -sum_m s_m s_m' theta_m sin(t theta_m) A_m(t),
    dA_i/dt = -sum_m theta_m sin(t theta_m) E[d_zm d_i psi d_zm d_i psi'].

Second derivatives of psi live on rays, as delta functions: the last expectation is a sum over
pairs of rays of the density of (z1, z2, z1', z2') integrated over two half lines, which is an
arctangent. So A_m(1) and K(1) are A_m(0), K(0) less one integral over t of elementary functions
(swap the integrals of K; the weight of the rates becomes cos(t theta_m) - cos(theta_m)), and
A_m(0), K(0) are integrals over a circle in closed form. Nothing cancels near coincidence.

Obtuse angles are reflected first (g_m' -> -g_m'), so that theta_m <= pi / 2. The integrand is then
smooth but for rays of the two sides that nearly meet as t goes to 0, at an angle eps: it varies at
the scale tau = eps / theta there, and the nodes t = tau sinh(.) of Gauss and Legendre resolve it.

[derived for the project; tested against nested integrals and Monte Carlo]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tangency.infinite.duals.two_gaussians_cones import Cones
from tangency.infinite.duals.two_gaussians_pieces import MOST_PAIRS, in_pieces

__all__ = ["RAY_NUMBERS", "SIDE_NUMBERS", "PiecewiseLinearOfTwo"]

RAY_NUMBERS = 4
"""Numbers of a ray that generated code needs: two coordinates, its angle, its weight."""

SIDE_NUMBERS = 6
"""Those of a side beside them: gains, mean slopes and their products, two each."""

_NODES = {torch.float32: 20}
_MOST_NODES = 32
# Entries of a side that a pair needs, and how many leading dimensions they have.
_NEEDED = {"scales": 1, "rays": 2, "slopes": 1, "norm": 0}
# Angles below 1e-20 are taken as 1e-20: what they change is of that relative size.
_LEAST_VERSINE = 1e-40
_LEAST_RATIO = 1e-30
# Rays closer than this are taken as equal; resolving them would change nothing beyond rounding.
_SAME_RAY = 1e-12


_Rows: TypeAlias = tuple[tuple[float, float], ...]


class _TwoRays(NamedTuple):
    """Unit vectors e along a ray of the left side, f of the right one: b_m = e_m f_m.

    apart: (e_1 f_2 - e_2 f_1)^2. twice: 2 b1 b2. square1, square2: b1^2, b2^2.
    jumps: products of the jumps of d_i psi, i = 1, 2.
    """

    b1: Tensor
    b2: Tensor
    apart: Tensor
    twice: Tensor
    square1: Tensor
    square2: Tensor
    jumps: tuple[float, float]


class _Path(NamedTuple):
    """What does not change along the path; reflections are done."""

    angles: tuple[Tensor, Tensor]
    pairs: list[_TwoRays]


@dataclass(frozen=True)
class PiecewiseLinearOfTwo:
    """The dual of one function of two independent Gaussians that is linear on cones.

    Relative accuracy of versine_out and of A for float64 versines: 1e-13 where the ratio s2 / s1
    is the same on both sides, whatever the angles, 1e-10 where the ratios differ by some tens of
    per cent, 1e-8 at worst (ratios that differ by 1e-6, or by factors of 1e6). For float32
    versines, with fewer nodes, 1e-6 and 5e-6. Cost of a pair: 32 (20) nodes with L^2 arctangents
    and some fifteen flops for each, L being the number of rays, 3 for relu(g2 + relu(g1)), of
    which two pairs of rays drop out.

    Attributes:
        cones: the function.
        nodes: how many nodes to take instead; 12 reach 1e-10 where all sides have equal s2 / s1.
    """

    cones: Cones
    nodes: int | None = None

    def moments(self, sd1: Tensor, sd2: Tensor) -> dict[str, Tensor]:
        """What `pair` needs of one side, of standard deviations sd1, sd2 (both of shape S).

        Returns float64 tensors: "sd" = sqrt(E psi^2), "mean" = E psi, "slope_1", "slope_2" = E of
        the derivatives, "slope_energy_1", "slope_energy_2" = E of their squares (S each), and
        what `pair` needs: "scales" (2, S), "rays" (L, 2, S), "slopes" (2, S), "norm" (S).
        Where both standard deviations are 0, derivatives are those of equal ones.
        """
        wide1, wide2 = torch.broadcast_tensors(sd1.double(), sd2.double())
        size = torch.maximum(wide1, wide2)
        safe = torch.where(size > 0, size, 1.0)
        scales = torch.stack([torch.where(size > 0, s / safe, 1.0) for s in (wide1, wide2)])
        scales = scales.clamp_min(_LEAST_RATIO)
        rays = _constant(self.cones.rays, scales) * scales.flip(0)
        rays = rays / torch.linalg.vector_norm(rays, dim=1, keepdim=True)
        jumps = _constant(self.cones.jumps, scales)
        slopes = _mean_slopes(_constant(self.cones.beside, scales)[0], jumps, rays)
        same = torch.ones_like(size)
        energies = _slopes_at_start(slopes.square(), (jumps, jumps), (rays, rays), same)
        bends = (jumps * scales * _normals(rays)).sum(dim=(0, 1))
        side = {"scales": scales, "rays": rays}
        norm = _distance([_scaled(self.cones, side)]).sqrt()
        return {
            **side,
            "norm": norm,
            "sd": size * norm,
            "slopes": slopes,
            "mean": size * bends / math.sqrt(8 * math.pi),
            "slope_1": slopes[0],
            "slope_2": slopes[1],
            "slope_energy_1": energies[0],
            "slope_energy_2": energies[1],
        }

    def nodes_for(self, dtype: torch.dtype) -> int:
        """How many nodes a pair of versines of type `dtype` takes."""
        return self.nodes or _NODES.get(dtype, _MOST_NODES)

    def numbers(self, side: Mapping[str, Tensor]) -> Tensor:
        """What generated code needs of one side, `(numbers, S)`, from a result of `moments`.

        Ray by ray `RAY_NUMBERS`, then `SIDE_NUMBERS`. The weight of a ray is by how much the slope
        of psi along the unit circle changes there, over sqrt(E psi^2).
        """
        scales, rays, norm = side["scales"], side["rays"], side["norm"]
        jumps = _constant(self.cones.jumps, scales) * scales / norm
        weights = (jumps * _normals(rays)).sum(1)
        of_rays = [rays[:, 0], rays[:, 1], _angle(rays), weights]
        gains, slopes = scales / norm, side["slopes"]
        of_side = torch.cat([gains, slopes, gains * slopes])
        return torch.cat([torch.stack(of_rays, dim=1).flatten(0, 1), of_side])

    def pair(
        self,
        left: Mapping[str, Tensor],
        right: Mapping[str, Tensor],
        versine1: Tensor,
        versine2: Tensor,
        *,
        other: PiecewiseLinearOfTwo | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(versine_out, A1, A2): 1 - K / (sd sd) and the second moments of the derivatives.

        left, right: results of `moments`, shaped to broadcast against the versines in their
            trailing dimensions.
        versine1, versine2: 1 - correlation of (g1, g1') and of (g2, g2'), in [0, 2].
        other: the right side's function, where it is not this one.

        versine_out keeps its relative accuracy near 0, and is exactly 0 where the inputs and the
        ratios of standard deviations coincide. Elementwise operations and a sort of 2 L numbers,
        no branches on data. Memory: about a hundred float64 temporaries of 16384 pairs.
        """
        compute = partial(self._pair, self if other is None else other)
        return in_pieces(compute, (left, right), _NEEDED, versine1, versine2)

    def _pair(
        self,
        other: PiecewiseLinearOfTwo,
        left: Mapping[str, Tensor],
        right: Mapping[str, Tensor],
        versines: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        dtype = torch.promote_types(versines[0].dtype, versines[1].dtype)
        given = torch.stack([v.double() for v in versines]).clamp(0.0, 2.0)
        reflection = torch.where(given > 1, -1.0, 1.0).double()
        acute = torch.where(given > 1, 2 - given, given)
        # Adding 0 turns -0 into 0: the negative first axis is at the angle pi, not -pi.
        reflected = right["rays"] * reflection + 0.0
        sign = reflection[0] * reflection[1]
        at_start = _slopes_at_start(
            left["slopes"] * right["slopes"],
            (_constant(self.cones.jumps, reflection), _constant(other.cones.jumps, reflection)),
            (left["rays"], reflected),
            sign,
        )
        path = _path((self.cones.jumps, other.cones.jumps), (left["rays"], reflected), acute)
        lost, lost_later = _integrate(path, self.nodes_for(dtype))
        sign = sign / (4 * math.pi**2)
        slopes = at_start - sign * lost
        gains = left["scales"] * right["scales"] * reflection / (left["norm"] * right["norm"])
        pieces = [_scaled(self.cones, left), _scaled(other.cones, right, reflection)]
        start = 0.5 * _distance(pieces)
        versine_out = start + (gains * (acute * at_start - sign * lost_later)).sum(0)
        return versine_out.to(dtype), slopes[0].to(dtype), slopes[1].to(dtype)


class _Scaled(NamedTuple):
    """A function of (z1, z2), reflected and of norm 1: its gradient at the angle -pi, its rays."""

    first: Tensor
    rays: Tensor
    jumps: Tensor


def _scaled(cones: Cones, side: Mapping[str, Tensor], reflection: Tensor | None = None) -> _Scaled:
    """One side's function of (z1, z2), divided by its norm where the side has one."""
    scales = side["scales"]
    norm = side.get("norm", torch.ones_like(scales[0]))
    beside = [_constant((gradient,), scales)[0] for gradient in cones.beside]
    jumps = _constant(cones.jumps, scales) * scales / norm
    if reflection is None:
        return _Scaled(beside[0] * scales / norm, side["rays"], jumps)
    as_is = torch.where(reflection[1] > 0, beside[0], beside[1])
    turned = torch.where(reflection[1] > 0, beside[3], beside[2])
    first = torch.where(reflection[0] > 0, as_is, turned) * scales * reflection / norm
    # Reflected, the circle is run through in the other direction.
    turn = reflection * (reflection[0] * reflection[1])
    return _Scaled(first, side["rays"] * reflection + 0.0, jumps * turn)


def _distance(functions: Sequence[_Scaled]) -> Tensor:
    """E |psi - psi'|^2 at t = 0, or E psi^2 of one function.

    Where z' is z, both are functions of an angle times the radius: an integral over the sectors
    between the rays of both, in each of which the difference is linear.
    """
    first, jumps = functions[0].first, [functions[0].jumps]
    for other in functions[1:]:
        first, jumps = first - other.first, [*jumps, -other.jumps]
    shape = first.shape
    angles = torch.cat([_angle(f.rays).expand(len(f.rays), *shape[1:]) for f in functions])
    angles, order = angles.sort(dim=0)
    steps = torch.cat([j.expand(len(j), *shape) for j in jumps])
    steps = steps.gather(0, order.unsqueeze(1).expand_as(steps))
    return _sectors(angles, torch.cat([first[None], first + steps.cumsum(0)])) / math.pi


def _constant(rows: _Rows, like: Tensor) -> Tensor:
    """Numbers (L, 2) with trailing dimensions for those of `like` (2, ...)."""
    values = torch.tensor(rows, dtype=torch.float64, device=like.device)
    return values.reshape(len(rows), 2, *[1] * (like.ndim - 1))


def _path(jumps: tuple[_Rows, _Rows], rays: tuple[Tensor, Tensor], acute: Tensor) -> _Path:
    theta = 2 * torch.asin((acute.clamp_min(_LEAST_VERSINE) / 2).sqrt())
    pairs = []
    for e, jump in zip(rays[0], jumps[0], strict=True):
        for f, other in zip(rays[1], jumps[1], strict=True):
            products = (jump[0] * other[0], jump[1] * other[1])
            if products != (0.0, 0.0):
                b1, b2 = e[0] * f[0], e[1] * f[1]
                apart = (e[0] * f[1] - e[1] * f[0]).square()
                squares = b1.square(), b2.square()
                pairs.append(_TwoRays(b1, b2, apart, 2 * b1 * b2, *squares, products))
    return _Path((theta[0], theta[1]), pairs)


def _angle(rays: Tensor) -> Tensor:
    return torch.atan2(rays[:, 1], rays[:, 0])


def _normals(rays: Tensor) -> Tensor:
    return torch.stack([-rays[:, 1], rays[:, 0]], dim=1)


def _mean_slopes(first: Tensor, jumps: Tensor, rays: Tensor) -> Tensor:
    """E d_i psi (2, ...): the gradient at the angle -pi, and what the rays beyond add."""
    share = (math.pi - _angle(rays)) / (2 * math.pi)
    return first + (jumps * share.unsqueeze(1)).sum(0)


def _slopes_at_start(
    means: Tensor, jumps: tuple[Tensor, Tensor], rays: tuple[Tensor, Tensor], sign: Tensor
) -> Tensor:
    """A_i at t = 0, (2, ...), from products of means and from jumps (L, 2, ...) of the derivatives.

    Functions on the circle that are constant but for jumps are sums of sawtooth functions, whose
    correlation is half of the second Bernoulli polynomial.
    """
    total = means
    for angle, jump in zip(_angle(rays[0]), jumps[0], strict=True):
        for other_angle, other_jump in zip(_angle(rays[1]), jumps[1], strict=True):
            turn = (angle - other_angle).abs() / (2 * math.pi)
            total = total + jump * other_jump * (sign * (turn * (turn - 1) + 1 / 6) / 2)
    return total


def _sectors(angles: Tensor, pieces: Tensor) -> Tensor:
    """sum over sectors of the integral of (piece . e)^2 over directions e in them.

    angles: sorted, (M, ...). pieces: (M + 1, 2, ...), the first from -pi, the last to pi.
    """
    ends = torch.full_like(angles[:1], math.pi)
    low, high = torch.cat([-ends, angles]), torch.cat([angles, ends])
    width, middle = high - low, (high + low) / 2
    sine = torch.sin(width)
    along = pieces[:, 0] * torch.cos(middle) + pieces[:, 1] * torch.sin(middle)
    return (0.5 * pieces.square().sum(1) * (width - sine) + sine * along.square()).sum(0)


def _integrate(path: _Path, nodes: int) -> tuple[Tensor, Tensor]:
    """Integrals over t of -dA_i/dt, and of that times cos(t theta_i) - cos(theta_i): (2, ...)."""
    theta1, theta2 = path.angles
    scale = _closeness(path)
    reach = torch.asinh(1 / scale)
    unit, weights = (
        torch.from_numpy(x).to(theta1.device).reshape(-1, *[1] * theta1.ndim)
        for x in np.polynomial.legendre.leggauss(nodes)
    )
    # Nodes go together as far as the cache holds them.
    together = max(1, MOST_PAIRS // max(1, theta1.numel()))
    lost = later = torch.zeros_like(theta1)
    for x, weight in zip(unit.split(together), weights.split(together), strict=True):
        stretched = reach * ((x + 1) / 2)
        t = scale * torch.sinh(stretched)
        rates = _rates(path, t) * ((weight / 2) * reach * scale * torch.cosh(stretched))
        # cos(t theta) - cos(theta), without cancellation.
        left_over = torch.stack(
            [2 * torch.sin((1 + t) * a / 2) * torch.sin((1 - t) * a / 2) for a in (theta1, theta2)]
        )
        lost, later = lost + rates.sum(1), later + (rates * left_over).sum(1)
    return lost, later


def _closeness(path: _Path) -> Tensor:
    """The least scale in t at which the integrand varies, at most 10."""
    theta1, theta2 = path.angles
    least = torch.full_like(theta1, 10.0)
    for two in path.pairs:
        speed = (two.b1 * theta2).square() + (two.b2 * theta1).square()
        speed = speed + 0.5 * two.twice.abs() * (theta1.square() + theta2.square())
        scale = (two.apart / speed.clamp_min(1e-60)).sqrt()
        least = torch.where(two.apart > _SAME_RAY**2, torch.minimum(least, scale), least)
    # The nodes only have to be near where they serve best.
    return least.detach().clamp_min(1e-9)


def _rates(path: _Path, t: Tensor) -> Tensor:
    """-dA_i/dt at nodes t (N, ...): (2, N, ...), over the reflections' sign / (4 pi^2)."""
    theta1, theta2 = path.angles
    sin1, cos1 = torch.sin(t * theta1), torch.cos(t * theta1)
    sin2, cos2 = torch.sin(t * theta2), torch.cos(t * theta2)
    square1, square2 = sin1.square(), sin2.square()
    half1, half2 = 2 * torch.sin(t * theta1 / 2).square(), 2 * torch.sin(t * theta2 / 2).square()
    apart = half1 + half2 - half1 * half2  # 1 - cos1 cos2
    sines, push1, push2 = sin1 * sin2, theta1 * sin1, theta2 * sin2
    cross1, cross2 = -cos1 * square2, -cos2 * square1
    totals = [torch.zeros_like(sines), torch.zeros_like(sines)]
    for two in path.pairs:
        # With acute angles no two of these terms cancel.
        near = two.apart + two.twice * apart
        root = (near + two.square1 * square2 + two.square2 * square1).sqrt()
        quadrant = torch.atan2(sines * root, two.b1 * cross1 + two.b2 * cross2)
        rate = (push1 * two.b2 + push2 * two.b1) * quadrant / root
        for i, jump in enumerate(two.jumps):
            if jump != 0:
                totals[i] = totals[i] + jump * rate
    return torch.stack(totals)
