"""The dual of an activation that is given by its kernel as one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tangency.infinite.duals.dual import Dual
from tangency.infinite.roots import root

__all__ = ["ClosedForm", "KernelFunction"]

KernelFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""E[phi(u) phi(v)] of the variances q1, q2 and the covariance c of u and v, elementwise."""

_LEAST_VERSINE = 1e-14
"""Where the slope is taken for inputs that coincide: there, a kink makes it a 0 / 0."""


@dataclass(frozen=True)
class ClosedForm(Dual):
    """kappa(q1, q2, c) = E[phi(u) phi(v)], and its derivative in c (Price's theorem).

    In float64 throughout, since a given function can only be subtracted from its value at
    coincidence: the versine has an absolute error of 1e-16, whatever the type of the data.
    """

    kernel: KernelFunction

    def _norm(self, sd: Tensor) -> Tensor:
        q = sd.square()
        return root(self.kernel(q, q, q).clamp_min(0))

    def moments(self, sd: Tensor) -> dict[str, Tensor]:
        return {"sd_in": sd, "sd": self._norm(sd.double()).to(sd.dtype)}

    def pair(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], versine: Tensor
    ) -> tuple[Tensor, Tensor]:
        s1, s2 = left["sd_in"].double(), right["sd_in"].double()

        def kappa(versine: Tensor) -> Tensor:
            return self.kernel(s1.square(), s2.square(), s1 * s2 * (1 - versine))

        def by_covariance(c: Tensor) -> Tensor:
            return self.kernel(s1.square(), s2.square(), c)

        wide = versine.double()
        norms = self._norm(s1) * self._norm(s2)
        alike = torch.where(norms > 0, kappa(wide) / torch.where(norms > 0, norms, 1.0), 0.0)
        c = s1 * s2 * (1 - wide.clamp_min(_LEAST_VERSINE))
        slope: Tensor = torch.func.jvp(by_covariance, (c,), (torch.ones_like(c),))[1]
        return (1 - alike).clamp_min(0).to(versine.dtype), slope.to(versine.dtype)
