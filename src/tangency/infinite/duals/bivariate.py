r"""Moments of truncated powers of two correlated normal variables.

    T_mn(a, b; rho) = E[(x - a)_+^m (y - b)_+^n] / (m! n!),    a, b >= 0,

for standard normal x, y of correlation rho = 1 - versine. T_00 is the orthant probability, from
Owen's function (D. B. Owen, Annals of Mathematical Statistics 27, 1956); the others follow by
integration by parts. Absolute accuracy is some 1e-15 at every correlation, +1 and -1 included,
since the correlation enters through its versine only.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tangency.infinite.duals.quadrature import normal_pdf
from tangency.infinite.roots import root

__all__ = ["orthant_probability", "truncated_moments", "truncated_products"]

_OWEN_NODES = 20
# Stands for 0 where a ratio 0 / 0 has the limit that equal tiny numbers give.
_TINY = 1e-100


def _upper_tail(h: Tensor) -> Tensor:
    return 0.5 * torch.erfc(h / math.sqrt(2))


def _owen_t(h: Tensor, rise: Tensor, run: Tensor) -> Tensor:
    """T(h, rise / run) for h >= 0, run >= 0, with rise = a h tau and run = h tau for some tau > 0.

    T(h, a) = 1 / (2 pi) int_0^atan(a) exp(-h^2 / (2 cos^2 t)) dt. Slopes above 1 are brought
    below 1 by T(h, a) + T(a h, 1 / a) = (Q(h) + Q(a h)) / 2 - Q(h) Q(a h) (a > 0, Q = 1 - Phi).
    """
    steep = rise.abs() > run
    # a h = h rise / run, where h / run = 1 / tau is finite by the floors of the caller.
    other = rise.abs() / (run / h)
    angle = torch.atan2(torch.minimum(rise.abs(), run), torch.maximum(rise.abs(), run))
    height = torch.where(steep, other, h)
    nodes, weights = np.polynomial.legendre.leggauss(_OWEN_NODES)
    integral = torch.zeros_like(angle)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        cosine = torch.cos(angle * (0.5 * (node + 1)))
        integral = integral + weight * torch.exp(-0.5 * (height / cosine) ** 2)
    value = integral * angle / (4 * math.pi)
    near, far = _upper_tail(h), _upper_tail(other)
    return torch.sign(rise) * torch.where(steep, 0.5 * (near + far) - near * far - value, value)


class _Orthant(torch.autograd.Function):
    """P(x > a, y > b), whose derivatives are closed forms (Plackett 1954)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, versine: Tensor) -> Tensor:
        """The probability, by Owen's T function."""
        ctx.save_for_backward(a, b, versine)
        a, b = a.clamp_min(_TINY), b.clamp_min(_TINY)
        tau = torch.sqrt(versine * (2 - versine)).clamp_min(_TINY)
        from_a = _owen_t(a, (b - a) + versine * a, a * tau)
        from_b = _owen_t(b, (a - b) + versine * b, b * tau)
        return 0.5 * (_upper_tail(a) + _upper_tail(b)) - from_a - from_b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """By the bivariate density, taken as 0 where the two coincide (a cusp)."""
        a, b, versine = ctx.saved_tensors
        tau = root(versine * (2 - versine))
        apart = tau > 1e-12
        safe = torch.where(apart, tau, 1.0)
        exponent = ((a - b).square() + 2 * versine * a * b) / (2 * safe.square())
        density = torch.where(apart, torch.exp(-exponent) / (2 * math.pi * safe), 0.0)
        by_a = -normal_pdf(a) * _upper_tail(_over((b - a) + versine * a, tau))
        by_b = -normal_pdf(b) * _upper_tail(_over((a - b) + versine * b, tau))
        parts = (by_a, by_b, -density)
        inputs = (a, b, versine)
        first, second, third = (
            (gradient * part).sum_to_size(tensor.shape)
            for part, tensor in zip(parts, inputs, strict=True)
        )
        return first, second, third


def orthant_probability(a: Tensor, b: Tensor, versine: Tensor) -> Tensor:
    """P(x > a, y > b) for a, b >= 0 and correlation 1 - versine; float64, broadcasting."""
    return cast(Tensor, _Orthant.apply(a, b, versine))  # type: ignore[no-untyped-call]


def _over(shift: Tensor, tau: Tensor) -> Tensor:
    """shift / tau, very large (without derivative) where tau is 0."""
    apart = tau > 0
    return torch.where(apart, shift / torch.where(apart, tau, 1.0), shift.detach() / _TINY)


def truncated_moments(a: Tensor, order: int) -> list[Tensor]:
    """E[(z - a)_+^n] / n! for n = 0 .. order."""
    return _scaled_moments(a, torch.ones_like(a), order)


def _scaled_moments(shift: Tensor, tau: Tensor, order: int) -> list[Tensor]:
    """E[(tau z - shift)_+^n] / n!, n = 0 .. order; tau may be 0."""
    ratio = _over(shift, tau)
    moments = [_upper_tail(ratio)]
    before = tau * normal_pdf(ratio)
    for n in range(1, order + 1):
        moments.append((before - shift * moments[-1]) / n)
        before = tau**2 * moments[-2]
    return moments


def truncated_products(
    a: Tensor, b: Tensor, versine: Tensor, order: int
) -> dict[tuple[int, int], Tensor]:
    """T_mn for m, n = 0 .. order, all float64 and broadcasting, a, b >= 0, versine in [0, 2].

    By Stein's lemma m T_mn = T_(m-2)n + rho T_(m-1)(n-1) - a T_(m-1)n, with the boundary values
    T_(-1)n = density(a) E[(y - b)_+^n | x = a] / n!, and the same in n.
    """
    rho = 1 - versine
    tau = root(versine * (2 - versine))
    at_a = [normal_pdf(a) * e for e in _scaled_moments((b - a) + versine * a, tau, order)]
    at_b = [normal_pdf(b) * e for e in _scaled_moments((a - b) + versine * b, tau, order)]
    table = {(0, 0): orthant_probability(a, b, versine)}
    for n in range(order + 1):
        table[-1, n], table[n, -1] = at_a[n], at_b[n]
    for n in range(1, order + 1):
        table[0, n] = (table[0, n - 2] + rho * at_a[n - 1] - b * table[0, n - 1]) / n
    for m in range(1, order + 1):
        for n in range(order + 1):
            higher = table[m - 2, n] + rho * table[m - 1, n - 1] - a * table[m - 1, n]
            table[m, n] = higher / m
    return table
