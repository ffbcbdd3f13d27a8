"""The dual of an activation that is given by its kernel as one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tangency.infinite.duals.dual import NearCoincidence, SmoothDual

__all__ = ["ClosedForm", "KernelFunction"]

KernelFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""E[phi(u) phi(v)] of the variances q1, q2 and the covariance c of u and v, elementwise."""


@dataclass(frozen=True)
class ClosedForm(SmoothDual):
    """kappa(q1, q2, c) = E[phi(u) phi(v)]; derivatives by automatic differentiation.

    E[phi' phi'] is the derivative in c (Price's theorem); what happens next to coincidence follows
    from derivatives along q1 = q2 = c.
    """

    kernel: KernelFunction

    def kernels(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], c: Tensor, gap: Tensor
    ) -> tuple[Tensor, Tensor]:
        q1, q2 = left["variance"], right["variance"]
        return _with_slope(lambda covariance: self.kernel(q1, q2, covariance), c)

    def near(self, q: Tensor) -> NearCoincidence:
        def slope(at: Tensor) -> Tensor:
            return _with_slope(lambda c: self.kernel(at, at, c), at)[1]

        def bend(at: Tensor) -> Tensor:
            return _with_slope(lambda c: _with_slope(lambda d: self.kernel(at, at, d), c)[1], at)[1]

        energy, energy_slope = _with_slope(lambda at: self.kernel(at, at, at), q)
        slope_energy, slope_energy_slope = _with_slope(slope, q)
        return NearCoincidence(
            energy=energy,
            energy_slope=energy_slope,
            slope_energy=slope_energy,
            slope_energy_slope=slope_energy_slope,
            # E phi''^2 does not exist if phi has a kink.
            curvature=torch.nan_to_num(q * bend(q), nan=torch.inf, posinf=torch.inf),
        )


def _with_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """An elementwise function and its derivative."""
    value, slope = torch.func.jvp(function, (x,), (torch.ones_like(x),))
    return value, slope
