"""Duals of activations that are linear on each side of zero, and of the step functions.

Cho and Saul (2009), eqs. 3 to 7; written for the versine v = 1 - cos(theta).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.infinite.angles import angle_and_integral
from tangency.infinite.duals.dual import Dual

__all__ = ["PiecewiseLinear", "Step"]


@dataclass(frozen=True)
class PiecewiseLinear(Dual):
    """phi(x) = negative * min(x, 0) + positive * max(x, 0): ReLU is (0, 1), abs (-1, 1)."""

    negative: float
    positive: float

    @property
    def _half_square(self) -> float:
        return (self.negative**2 + self.positive**2) / 2

    @property
    def _bend(self) -> float:
        return (self.positive - self.negative) ** 2 / (2 * math.pi)

    def moments(self, sd: Tensor) -> dict[str, Tensor]:
        return {"sd": sd * math.sqrt(self._half_square)}

    def pair(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], versine: Tensor
    ) -> tuple[Tensor, Tensor]:
        theta, integral = angle_and_integral(versine)
        kappa_dot = self._half_square - self._bend * theta
        return versine - (self._bend / self._half_square) * integral, kappa_dot

    def mean(self, sd: Tensor) -> Tensor | None:
        return sd * ((self.positive - self.negative) / math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Step(Dual):
    """phi(x) = low for x < 0 and high for x > 0: the sign (-1, 1), the Heaviside step (0, 1).

    The derivative vanishes almost everywhere, and back-propagation sees nothing else: kappa_dot is
    zero, as in the empirical NTK (the distributional value is a delta).
    """

    low: float
    high: float

    @property
    def _energy(self) -> float:
        return (self.low**2 + self.high**2) / 2

    def moments(self, sd: Tensor) -> dict[str, Tensor]:
        return {"sd": torch.where(sd > 0, math.sqrt(self._energy), torch.zeros_like(sd))}

    def pair(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], versine: Tensor
    ) -> tuple[Tensor, Tensor]:
        theta, _ = angle_and_integral(versine)
        apart = (self.high - self.low) ** 2 / (2 * math.pi * self._energy)
        return theta * apart, torch.zeros_like(theta)

    def mean(self, sd: Tensor) -> Tensor | None:
        return torch.where(sd > 0, (self.low + self.high) / 2, torch.zeros_like(sd))
