"""What the dual of an activation with a closed form must provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tangency.infinite.duals.coincidence import near_coincidence

__all__ = ["Dual", "SmoothDual", "derivative"]


class Dual(ABC):
    """Second moments of phi(u), phi(v) for jointly Gaussian u, v of versine 1 - correlation."""

    @abstractmethod
    def moments(self, sd: Tensor) -> dict[str, Tensor]:
        """What `pair` needs of one side, by name, of sd's shape; "sd" is sqrt(E phi(u)^2)."""

    @abstractmethod
    def pair(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], versine: Tensor
    ) -> tuple[Tensor, Tensor]:
        """1 - E[phi(u) phi(v)] / (sd sd) and E[phi'(u) phi'(v)], elementwise with broadcasting."""

    def mean(self, sd: Tensor) -> Tensor | None:
        """E[phi(u)], or None where it is left to quadrature."""
        return None


def derivative(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Derivative of an elementwise function at x."""
    slope: Tensor = torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]
    return slope


class SmoothDual(Dual):
    """A dual given by its kernel kappa(q1, q2, c) and kappa_dot = d kappa / d c.

    q1, q2 are the variances and c the covariance of u and v.
    """

    @abstractmethod
    def kappa(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        """E[phi(u) phi(v)]."""

    @abstractmethod
    def kappa_dot(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        """E[phi'(u) phi'(v)]."""

    def moments(self, sd: Tensor) -> dict[str, Tensor]:
        wide = sd.double()
        energy = self._energy(wide).clamp_min(0)
        norm = energy.sqrt()
        entries = {
            "sd_in": wide,
            "variance": wide.square(),
            "sd": norm,
            "inverse": torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1.0), 0.0),
            "radial_metric": self._radial_metric(wide, energy),
            "curvature": self._curvature(wide),
        }
        return {name: value.to(sd.dtype) for name, value in entries.items()}

    def _energy(self, sd: Tensor) -> Tensor:
        q = sd.square()
        return self.kappa(q, q, q)

    def _radial_metric(self, sd: Tensor, energy: Tensor) -> Tensor:
        """[E(z phi')^2 E phi^2 - (E z phi phi')^2] / (E phi^2)^2, by derivatives of kappa."""

        def along_second(s1: Tensor) -> Tensor:
            return derivative(lambda s2: self.kappa(s1.square(), s2.square(), s1 * s2), sd)

        slope_energy = derivative(along_second, sd)
        cross = derivative(self._energy, sd) / 2
        safe = torch.where(energy > 0, energy, 1.0)
        metric = (slope_energy * energy - cross.square()) / safe.square()
        return torch.where(energy > 0, metric, 0.0).clamp_min(0)

    def _curvature(self, sd: Tensor) -> Tensor:
        """q E phi''^2 = q d kappa_dot / d c at full correlation."""
        q = sd.square()
        return q * derivative(lambda c: self.kappa_dot(q, q, c), q)

    def pair(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], versine: Tensor
    ) -> tuple[Tensor, Tensor]:
        q1, q2 = left["variance"], right["variance"]
        c = left["sd_in"] * right["sd_in"] * (1 - versine)
        kappa_dot = self.kappa_dot(q1, q2, c)
        far = 1 - self.kappa(q1, q2, c) * (left["inverse"] * right["inverse"])
        return near_coincidence(left, right, versine, far, kappa_dot), kappa_dot
