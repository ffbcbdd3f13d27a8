"""What the dual of an activation with a closed form must provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.infinite.duals.coincidence import near_coincidence
from tangency.infinite.roots import root

__all__ = ["Dual", "NearCoincidence", "SmoothDual"]


@dataclass(frozen=True)
class NearCoincidence:
    """One-dimensional Gaussian moments of phi(x), x of variance q.

    Attributes:
        energy: M = E phi^2.
        energy_slope: dM / dq.
        slope_energy: N = E phi'^2.
        slope_energy_slope: dN / dq.
        curvature: q E phi''^2.
    """

    energy: Tensor
    energy_slope: Tensor
    slope_energy: Tensor
    slope_energy_slope: Tensor
    curvature: Tensor

    def radial_metric(self, q: Tensor) -> Tensor:
        """[E(z phi')^2 E phi^2 - (E z phi phi')^2] / (E phi^2)^2 for x = sqrt(q) z.

        By Stein's lemma, E(z phi')^2 = N + 2 q N' and E z phi phi' = sqrt(q) M'.
        """
        along = self.slope_energy + 2 * q * self.slope_energy_slope
        safe = torch.where(self.energy > 0, self.energy, 1.0)
        metric = (along * self.energy - q * self.energy_slope.square()) / safe.square()
        return torch.where(self.energy > 0, metric, 0.0).clamp_min(0)


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


class SmoothDual(Dual):
    """A dual given by its kernels as functions of variances and covariance."""

    def side(self, q: Tensor) -> dict[str, Tensor]:
        """What `kernels` needs of one side of variance q; "variance" is always there."""
        return {"variance": q}

    @abstractmethod
    def kernels(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], c: Tensor, gap: Tensor
    ) -> tuple[Tensor, Tensor]:
        """kappa = E[phi(u) phi(v)] and kappa_dot = E[phi'(u) phi'(v)] = d kappa / d c.

        c is the covariance of u and v, and gap = q1 q2 - c^2, computed without cancellation.
        """

    def moments(self, sd: Tensor) -> dict[str, Tensor]:
        wide = sd.double()
        near = self.near(wide.square())
        norm = root(near.energy.clamp_min(0))
        inverse = torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1.0), 0.0)
        entries = {
            **self.side(wide.square()),
            "sd_in": wide,
            "sd": norm,
            "inverse": inverse,
            "gain": wide * inverse,
            "radial_metric": near.radial_metric(wide.square()),
            "curvature": near.curvature,
        }
        return {name: value.to(sd.dtype) for name, value in entries.items()}

    @abstractmethod
    def near(self, q: Tensor) -> NearCoincidence:
        """What happens next to full correlation, for one side of variance q."""

    def pair(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], versine: Tensor
    ) -> tuple[Tensor, Tensor]:
        scale = left["sd_in"] * right["sd_in"]
        c = scale * (1 - versine)
        gap = scale.square() * (versine * (2 - versine))
        kappa, kappa_dot = self.kernels(left, right, c, gap)
        far = 1 - kappa * (left["inverse"] * right["inverse"])
        return near_coincidence(left, right, versine, far, kappa_dot), kappa_dot
