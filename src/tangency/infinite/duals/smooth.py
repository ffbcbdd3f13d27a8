"""Closed-form duals of smooth activations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.infinite.angles import arcsine
from tangency.infinite.duals.dual import Dual, NearCoincidence, SmoothDual

__all__ = ["Cos", "Erf", "Exp", "Gelu", "Sin"]


@dataclass(frozen=True)
class Erf(SmoothDual):
    """phi = erf (Williams 1997, eq. 11)."""

    def side(self, q: Tensor) -> dict[str, Tensor]:
        return {"variance": q, "inverse_root": (1 + 2 * q).rsqrt()}

    def kernels(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], c: Tensor, gap: Tensor
    ) -> tuple[Tensor, Tensor]:
        inverse = left["inverse_root"] * right["inverse_root"]
        determinant = 1 + 2 * left["variance"] + 2 * right["variance"] + 4 * gap
        sine = 2 * c * inverse
        # Beside a small variance the sine is small, and arcsine's absolute accuracy too little.
        small, angle = torch.asin(sine), arcsine(sine, determinant * inverse.square())
        angle = torch.where(sine.abs() < 0.5, small, angle)
        return (2 / math.pi) * angle, (4 / math.pi) * determinant.rsqrt()

    def near(self, q: Tensor) -> NearCoincidence:
        root = (1 + 4 * q).sqrt()
        return NearCoincidence(
            energy=(2 / math.pi) * torch.asin(2 * q / (1 + 2 * q)),
            energy_slope=(4 / math.pi) / ((1 + 2 * q) * root),
            slope_energy=(4 / math.pi) / root,
            slope_energy_slope=(-8 / math.pi) / root**3,
            curvature=(16 / math.pi) * q.square() / root**3,
        )

    def mean(self, sd: Tensor) -> Tensor | None:
        return torch.zeros_like(sd)


@dataclass(frozen=True)
class Gelu(SmoothDual):
    """phi(x) = x Phi(x), the exact GELU (Tsuchida et al. 2021, theorem 1)."""

    def side(self, q: Tensor) -> dict[str, Tensor]:
        return {"variance": q, "inverse_root": (1 + q).rsqrt()}

    def kernels(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], c: Tensor, gap: Tensor
    ) -> tuple[Tensor, Tensor]:
        q1, q2 = left["variance"], right["variance"]
        product = q1 * q2
        inverse = left["inverse_root"] * right["inverse_root"]
        inverse_square = inverse.square()
        determinant = 1 + q1 + q2 + gap
        root = determinant.rsqrt()
        angle = arcsine(c * inverse, determinant * inverse_square)
        inside = (c.square() + product * determinant) * (inverse_square * root) + c * angle
        slope = angle + c * root * (root.square() + (1 - product) * inverse_square + 1)
        return c / 4 + inside * (0.5 / math.pi), 0.25 + slope * (0.5 / math.pi)

    def near(self, q: Tensor) -> NearCoincidence:
        s, r = 1 + q, (1 + 2 * q).sqrt()
        angle, ratio = torch.asin(q / s), q / r**2
        bracket = 1 / r**2 + (1 - q) / s + 1
        curve = 4 * q / (s * r) - 2 * q.square() * (1 / (s**2 * r) + 1 / (s * r**3))
        bend = s / r**3 * bracket - (q / r) * (2 / r**4 + 2 / s**2)
        tau = 2 * math.pi
        return NearCoincidence(
            energy=q / 4 + (2 * q.square() / (s * r) + q * angle) / tau,
            energy_slope=0.25 + (curve + angle + q / (s * r)) / tau,
            slope_energy=0.25 + (angle + q / r * bracket) / tau,
            slope_energy_slope=(1 / (s * r) + bend) / tau,
            curvature=q / (tau * r) * (4 - 4 * ratio + 3 * ratio.square()),
        )

    def mean(self, sd: Tensor) -> Tensor | None:
        q = sd.square()
        return q / (2 * math.pi * (1 + q)).sqrt()


class _Trigonometric(SmoothDual):
    """cos(u - v) and cos(u + v) have Gaussian arguments."""

    sign: float

    def kernels(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], c: Tensor, gap: Tensor
    ) -> tuple[Tensor, Tensor]:
        middle = 0.5 * (left["variance"] + right["variance"])
        # exp(-middle) sinh(c) and cosh(c): expm1 keeps the digits of the sinh where c is small.
        largest, decay = 0.5 * torch.exp(c.abs() - middle), torch.expm1(-2 * c.abs())
        odd, even = torch.copysign(largest * decay, c), largest * (2 + decay)
        return (odd, even) if self.sign < 0 else (even, odd)

    def near(self, q: Tensor) -> NearCoincidence:
        # expm1 keeps the digits of 1 - exp(-2 q), the energy of the sine and of the cosine's slope.
        minus, plus = -0.5 * torch.expm1(-2 * q), 0.5 * (1 + torch.exp(-2 * q))
        energy, slope_energy = (minus, plus) if self.sign < 0 else (plus, minus)
        rate = -self.sign * torch.exp(-2 * q)
        return NearCoincidence(energy, rate, slope_energy, -rate, q * energy)


@dataclass(frozen=True)
class Sin(_Trigonometric):
    """phi = sin."""

    sign = -1.0

    def mean(self, sd: Tensor) -> Tensor | None:
        return torch.zeros_like(sd)


@dataclass(frozen=True)
class Cos(_Trigonometric):
    """phi = cos."""

    sign = 1.0

    def mean(self, sd: Tensor) -> Tensor | None:
        return torch.exp(-sd.square() / 2)


@dataclass(frozen=True)
class Exp(Dual):
    """phi = exp: log-normal moments."""

    def moments(self, sd: Tensor) -> dict[str, Tensor]:
        return {"sd_in": sd, "variance": sd.square(), "sd": sd.square().exp()}

    def pair(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], versine: Tensor
    ) -> tuple[Tensor, Tensor]:
        s1, s2 = left["sd_in"], right["sd_in"]
        half_distance = 0.5 * (s1 - s2).square() + s1 * s2 * versine
        kappa = torch.exp((left["variance"] + right["variance"]) - half_distance)
        return -torch.expm1(-half_distance), kappa

    def mean(self, sd: Tensor) -> Tensor | None:
        return torch.exp(sd.square() / 2)
