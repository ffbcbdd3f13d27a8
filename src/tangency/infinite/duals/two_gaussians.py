"""The dual of a pointwise function psi(g1, g2) of two independent centred Gaussians.

For two sides with Gaussians (g1, g2) and (g1', g2'), where g1, g1' are independent of g2, g2':

    K = E[psi(g1, g2) psi(g1', g2')],    A_m = E[d_m psi(g1, g2) d_m psi(g1', g2')],

so that the neural tangent kernel of psi is A_1 T_1 + A_2 T_2 with the kernels T_m of g_m and g_m'.
Functions of three and more Gaussians have no deterministic rule here: if they are linear on cones
in k variables, their moments are k - 1 nested integrals over pairs of faces, too many to be
cheaper than sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from tangency.infinite.duals.two_gaussians_cones import FunctionOfTwo, find_cones
from tangency.infinite.duals.two_gaussians_piecewise import PiecewiseLinearOfTwo
from tangency.infinite.duals.two_gaussians_series import SmoothOfTwo

__all__ = ["DualOfTwo", "dual_of_two"]


class DualOfTwo(Protocol):
    """Second moments of psi and of its derivatives, over pairs of two sides."""

    def moments(self, sd1: Tensor, sd2: Tensor) -> dict[str, Tensor]:
        """What `pair` needs of one side (standard deviations of shape S), by name.

        Among them, of shape S in float64: "sd" = sqrt(E psi^2), "mean", "slope_1" and "slope_2"
        (E of the derivatives), "slope_energy_1" and "slope_energy_2" (E of their squares).
        """

    def pair(
        self,
        left: Mapping[str, Tensor],
        right: Mapping[str, Tensor],
        versine1: Tensor,
        versine2: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(1 - K / (sd sd), A_1, A_2), elementwise with broadcasting."""


def dual_of_two(function: FunctionOfTwo, *, dimensions: int = 0) -> DualOfTwo:
    """The rule for psi: exact to rounding where it is linear on cones, else a Hermite series.

    function: psi, called in float64 on two tensors of one shape (nodes, *S); differentiable by
        `torch.func.jvp`.
    dimensions: the number of dimensions of S, where psi relies on it (constants per example).

    The series refuses functions with kinks when its `moments` are asked for.
    """
    cones = find_cones(function, dimensions=dimensions)
    return (
        SmoothOfTwo(function, uniform=dimensions == 0)
        if cones is None
        else PiecewiseLinearOfTwo(cones)
    )
