"""Training error and its honest relatives along a path of ridges, and the ridge they choose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.generalization.held_out import held_out_residuals
from tangency.analysis.generalization.ridge_regression import (
    RidgeRegression,
    Ridges,
    ridge_regression,
    ridge_values,
)
from tangency.analysis.generalization.risk_estimates import risk_estimate
from tangency.analysis.matrix import ArrayLike, Kernel, kernel_matrix
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Criterion", "RidgePath", "ridge_path"]

Criterion: TypeAlias = Literal["leave_one_out", "gcv"]

POINTS = 40
"""Ridges on the default path, even in their logarithm."""

LOWEST = 1e-8
"""The least ridge of the default path over the largest eigenvalue."""


@dataclass(frozen=True, eq=False, repr=False)
class RidgePath:
    """Errors of kernel ridge regression along a path of ridges.

    All errors are mean squared: mean over examples, sum over outputs.

    Attributes:
        ridges: (R,), float64.
        train_error: (R,) on the training set.
        leave_one_out: (R,) error on each example of the model fitted to the others.
        gcv: (R,) generalised cross-validation, which equals the kernel alignment risk estimate.
        degrees_of_freedom: (R,) tr K (K + ridge)^-1: how many modes are fitted.
    """

    ridges: Tensor
    train_error: Tensor
    leave_one_out: Tensor
    gcv: Tensor
    degrees_of_freedom: Tensor

    def best(self, criterion: Criterion = "leave_one_out") -> float:
        """The ridge of the path with the least estimate of the test error."""
        if criterion not in ("leave_one_out", "gcv"):
            raise InvalidInput(f"criterion is {criterion!r}, not 'leave_one_out' or 'gcv'.")
        return float(self.ridges[int(getattr(self, criterion).argmin())])

    def to_dict(self) -> dict[str, Tensor | float]:
        """All attributes and both choices by name."""
        return {
            "ridges": self.ridges,
            "train_error": self.train_error,
            "leave_one_out": self.leave_one_out,
            "gcv": self.gcv,
            "degrees_of_freedom": self.degrees_of_freedom,
            "best_by_leave_one_out": self.best(),
            "best_by_gcv": self.best("gcv"),
        }

    def figure(self) -> Figure:
        """The errors against the ridge.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure(
            "Choosing the ridge", "ridge", "mean squared error", x_axis="log"
        )
        shown = self.ridges > 0
        curves = (
            (self.leave_one_out, "leave-one-out"),
            (self.gcv, "GCV = kernel alignment risk"),
            (self.train_error, "training"),
        )
        for (values, name), colour in zip(curves, drawing.PALETTE, strict=False):
            drawing.line(figure, self.ridges[shown], values.cpu()[shown], name, colour)
        if self.best() > 0:
            drawing.vertical(figure, self.best(), "least leave-one-out error")
        return figure

    def __repr__(self) -> str:
        at = int(self.leave_one_out.argmin())
        return (
            f"RidgePath({len(self.ridges)} ridges, {float(self.ridges.min()):.3g} to "
            f"{float(self.ridges.max()):.3g}; least leave-one-out error "
            f"{float(self.leave_one_out[at]):.4g} at ridge {self.best():.4g} with "
            f"{float(self.degrees_of_freedom[at]):.4g} degrees of freedom; GCV chooses "
            f"{self.best('gcv'):.4g})"
        )


def ridge_path(K: Kernel, y: ArrayLike, ridges: Ridges | None = None) -> RidgePath:
    """Training, leave-one-out and generalised cross-validation error along a path of ridges.

    Args:
        K: (n, n) or (n, n, out, out).
        y: (n,) or (n, out), real; y - f_0 for outputs that start at f_0.
        ridges: (R,); by default 40 from 1e-8 of the largest eigenvalue (or from where rounding
            ends, if that is larger) to the largest eigenvalue.

    Raises:
        InvalidInput: a bad kernel, targets that do not fit, a negative ridge, a kernel that is not
            positive semi-definite with the ridge added, or one of zeros.
        SingularKernel: as for `leave_one_out`, if a ridge is zero.
    """
    kernel = kernel_matrix(K, "K")
    values = _default(kernel.eigensystem.values, kernel.eigensystem.tolerance)
    if ridges is not None:
        values, _ = ridge_values(ridges, "ridges")
    fit = ridge_regression(kernel, y, values)
    singles = list(torch.arange(kernel.examples, device=kernel.matrix.device)[:, None])
    errors = [_errors(fit, ridge, singles) for ridge in values.tolist()]
    train, held_out, gcv, freedom = torch.tensor(errors, dtype=torch.float64).T
    result = kernel.result
    return RidgePath(values, result(train), result(held_out), result(gcv), result(freedom))


def _errors(fit: RidgeRegression, ridge: float, singles: list[Tensor]) -> list[float]:
    """Training, leave-one-out, GCV error and degrees of freedom."""
    factors = fit.residual_factors(ridge)
    train = (factors[:, None] * fit.projections).square().sum() / fit.kernel.examples
    left_out = held_out_residuals(fit, ridge, singles).square().sum(dim=1).mean()
    freedom = (fit.eigenvalues * fit.inverse(ridge)).sum()
    return [float(train), float(left_out), risk_estimate(fit, ridge), float(freedom)]


def _default(eigenvalues: Tensor, tolerance: float) -> Tensor:
    largest = float(eigenvalues[0])
    if not largest > tolerance:
        raise InvalidInput("K has no positive eigenvalue: there is nothing to fit by.")
    lowest = max(LOWEST * largest, 10 * tolerance)
    exponents = torch.linspace(math.log(lowest), math.log(largest), POINTS, dtype=torch.float64)
    return exponents.exp()
