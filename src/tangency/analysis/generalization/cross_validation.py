"""Leave-one-out and k-fold cross-validation of kernel ridge regression in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from tangency.analysis.matrix import ArrayLike, Kernel
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["CrossValidation", "k_fold", "leave_one_out"]


@dataclass(frozen=True, eq=False, repr=False)
class CrossValidation:
    """Predictions for examples that were held out, for one ridge or many.

    Attributes:
        ridge: () or (R,), float64: the ridge(s) asked for.
        predictions: (n, out) output on each example of the model fitted without its fold; with a
            leading R for many ridges; without `out` if the targets were (n,).
        residuals: targets minus predictions, the same shape.
        error: () or (R,) mean squared error: mean over examples, sum over outputs. (The loss of
            the rest of Tangency is half of it.)
        folds: (n,) number of the fold of each example; for leave-one-out, its own number.
    """

    ridge: Tensor
    predictions: Tensor
    residuals: Tensor
    error: Tensor
    folds: Tensor

    @property
    def best_ridge(self) -> float:
        """The ridge of least error."""
        return float(self.ridge.reshape(-1)[int(self.error.reshape(-1).argmin())])

    @property
    def is_leave_one_out(self) -> bool:
        """Whether every example is a fold of its own."""
        return int(self.folds.max()) + 1 == len(self.folds)

    def to_dict(self) -> dict[str, Tensor | float]:
        """All attributes and the best ridge by name."""
        return {
            "ridge": self.ridge,
            "predictions": self.predictions,
            "residuals": self.residuals,
            "error": self.error,
            "folds": self.folds,
            "best_ridge": self.best_ridge,
        }

    def figure(self) -> Figure:
        """Error against the ridge, or, for one ridge, the size of each example's residual.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        name = self._name
        if self.ridge.dim():
            figure = drawing.new_figure(name, "ridge", "mean squared error", x_axis="log")
            positive = self.ridge > 0
            drawing.line(figure, self.ridge[positive], self.error[positive.cpu()], name)
            if self.best_ridge > 0:
                drawing.vertical(figure, self.best_ridge, "least error")
            return figure
        figure = drawing.new_figure(name, "example, by size of residual", "held-out residual")
        sizes = self.residuals.reshape(len(self.folds), -1).norm(dim=1).sort(descending=True).values
        drawing.points(figure, torch.arange(1, len(sizes) + 1), sizes, "residual")
        return figure

    @property
    def _name(self) -> str:
        return "leave-one-out" if self.is_leave_one_out else f"{int(self.folds.max()) + 1}-fold"

    def __repr__(self) -> str:
        head = f"CrossValidation({self._name} over {len(self.folds)} examples"
        if not self.ridge.dim():
            return f"{head}, ridge {float(self.ridge):.4g}: error {float(self.error):.4g})"
        return (
            f"{head}, {len(self.ridge)} ridges: least error {float(self.error.min()):.4g} at ridge "
            f"{self.best_ridge:.4g})"
        )


def leave_one_out(K: Kernel, y: ArrayLike, ridge: Ridges = 0.0) -> CrossValidation:
    """What kernel ridge regression on the other n - 1 examples says about each example.

    f_{-i}(x_i) = y_i - (G_ii)^-1 (G y)_i with G = (K + ridge)^-1 (Rasmussen & Williams 2006, eq.
    5.12), where G_ii is the (out, out) block of example i for a kernel (n, n, out, out). One
    eigendecomposition serves all ridges. Without ridge it is the limit of zero ridge, minimum-norm
    interpolation, also for singular kernels (duplicated examples).

    For outputs that start at f_0, pass y - f_0.

    Args:
        K: (n, n), acting on every output alike, or (n, n, out, out).
        y: (n,) or (n, out), real.
        ridge: one ridge, or many, (R,): as in `GradientFlow`, (K + ridge)^-1.

    Raises:
        InvalidInput: a bad kernel, targets that do not fit, a negative ridge, or a kernel that is
            not positive semi-definite with the ridge added.
        SingularKernel: without ridge, a singular kernel whose eigenvalues fall to the rounding
            error without a gap.
    """
    ridges, is_scalar = ridge_values(ridge)
    fit = ridge_regression(K, y, ridges)
    return _validate(fit, ridges, is_scalar, torch.arange(fit.kernel.examples))


def k_fold(
    K: Kernel, y: ArrayLike, ridge: Ridges = 0.0, folds: int | Tensor = 10, seed: int = 0
) -> CrossValidation:
    """k-fold cross-validation of kernel ridge regression without refitting.

    f_{-S}(x_S) = y_S - (G_SS)^-1 (G y)_S for the examples S of a fold. Arguments, limits and
    errors as for `leave_one_out`.

    Args:
        K: (n, n) or (n, n, out, out).
        y: (n,) or (n, out), real.
        ridge: one ridge, or many, (R,).
        folds: how many folds of (nearly) equal size, drawn at random by `seed`; or (n,) integers,
            the fold of each example (groups that must not be torn apart).
        seed: of the random folds.

    Raises:
        InvalidInput: also for fewer than 2 or more than n folds.
        SingularKernel: as for `leave_one_out`.
    """
    ridges, is_scalar = ridge_values(ridge)
    fit = ridge_regression(K, y, ridges)
    return _validate(fit, ridges, is_scalar, _assignment(folds, fit.kernel.examples, seed))


def _validate(
    fit: RidgeRegression, ridges: Tensor, is_scalar: bool, assignment: Tensor
) -> CrossValidation:
    place = assignment.to(fit.kernel.matrix.device)
    order = place.argsort(stable=True)
    folds = list(order.split(torch.bincount(place).tolist()))
    held_out = [held_out_residuals(fit, ridge, folds) for ridge in ridges.tolist()]
    residuals = held_out[0] if is_scalar else torch.stack(held_out)
    return CrossValidation(
        ridge=ridges[0] if is_scalar else ridges,
        predictions=fit.shaped(fit.labels.values - residuals),
        residuals=fit.shaped(residuals),
        error=fit.kernel.result(residuals.square().sum(dim=-1).mean(dim=-1)),
        folds=assignment,
    )


def _assignment(folds: int | Tensor, n: int, seed: int) -> Tensor:
    """(n,) number of the fold of each example, without gaps."""
    if isinstance(folds, int):
        if not 2 <= folds <= n:
            raise InvalidInput(f"folds is {folds}, but must lie between 2 and n = {n}.")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        assignment = torch.empty(n, dtype=torch.int64)
        assignment[order] = torch.arange(n) % folds
        return assignment
    given = torch.as_tensor(folds)
    if given.is_floating_point() or given.is_complex() or tuple(given.shape) != (n,):
        raise InvalidInput(
            f"folds has shape {tuple(given.shape)} and dtype {given.dtype}, but must be a number "
            f"of folds or one integer for each of the {n} examples."
        )
    values, numbers = torch.unique(given.cpu(), return_inverse=True)
    if len(values) < 2:
        raise InvalidInput("folds puts all examples into one fold: nothing is left to fit.")
    result: Tensor = numbers
    return result
