"""Closed-form duals of smooth activations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.infinite.duals.dual import Dual, SmoothDual

__all__ = ["Cos", "Erf", "Exp", "Gelu", "Sin"]


@dataclass(frozen=True)
class Erf(SmoothDual):
    """phi = erf (Williams 1997, eq. 11)."""

    def kappa(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        return (2 / math.pi) * torch.atan2(2 * c, self._root(q1, q2, c))

    def kappa_dot(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        return (4 / math.pi) / self._root(q1, q2, c)

    @staticmethod
    def _root(q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        return ((1 + 2 * q1) * (1 + 2 * q2) - 4 * c.square()).sqrt()

    def mean(self, sd: Tensor) -> Tensor | None:
        return torch.zeros_like(sd)


@dataclass(frozen=True)
class Gelu(SmoothDual):
    """phi(x) = x Phi(x), the exact GELU (Tsuchida et al. 2021, theorem 1)."""

    def kappa(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        a = (1 + q1) * (1 + q2)
        gap = a - c.square()
        root = gap.sqrt()
        inside = (c.square() + q1 * q2 * gap) / (a * root) + c * torch.atan2(c, root)
        return c / 4 + inside / (2 * math.pi)

    def kappa_dot(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        a = (1 + q1) * (1 + q2)
        gap = a - c.square()
        root = gap.sqrt()
        inside = torch.atan2(c, root) + c / root * (1 / gap + (1 - q1 * q2) / a + 1)
        return 0.25 + inside / (2 * math.pi)

    def mean(self, sd: Tensor) -> Tensor | None:
        q = sd.square()
        return q / (2 * math.pi * (1 + q)).sqrt()


class _Trigonometric(SmoothDual):
    """cos(u - v) and cos(u + v) have Gaussian arguments."""

    sign: float

    def _parts(self, q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        middle = (q1 + q2) / 2
        return torch.exp(c - middle), torch.exp(-c - middle)

    def kappa(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        minus, plus = self._parts(q1, q2, c)
        return (minus + self.sign * plus) / 2

    def kappa_dot(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        minus, plus = self._parts(q1, q2, c)
        return (minus - self.sign * plus) / 2


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
        half_distance = (s1 - s2).square() / 2 + s1 * s2 * versine
        kappa = torch.exp((left["variance"] + right["variance"]) - half_distance)
        return -torch.expm1(-half_distance), kappa

    def mean(self, sd: Tensor) -> Tensor | None:
        return torch.exp(sd.square() / 2)
