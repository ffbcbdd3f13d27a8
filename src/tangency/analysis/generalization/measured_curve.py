"""Measured learning curves: kernel ridge regression on random parts of a large kernel matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.generalization.ridge_regression import ridge_regression, ridge_values
from tangency.analysis.matrix import (
    ArrayLike,
    Kernel,
    KernelMatrix,
    Lazy,
    cross_matrix,
    kernel_matrix,
)
from tangency.analysis.matrix import targets as check_targets
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["MeasuredLearningCurve", "measured_learning_curve"]


@dataclass(frozen=True, eq=False, repr=False)
class MeasuredLearningCurve:
    """Errors of kernel ridge regression on random training sets of growing size.

    Errors are mean squared: mean over examples, sum over outputs.

    Attributes:
        sizes: (S,) numbers of training examples, float64.
        test_error: (S,) mean over the training sets.
        standard_error: (S,) of that mean, over training sets; NaN-free: zero for one repeat.
        train_error: (S,) mean over the training sets.
        ridge: as in (K + ridge)^-1.
        repeats: training sets per size.
    """

    sizes: Tensor
    test_error: Tensor
    standard_error: Tensor
    train_error: Tensor
    ridge: float
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name."""
        return {
            "sizes": self.sizes,
            "test_error": self.test_error,
            "standard_error": self.standard_error,
            "train_error": self.train_error,
            "ridge": self.ridge,
            "repeats": self.repeats,
        }

    def draw(self, figure: Figure) -> None:
        """Add the points to a figure of errors against sizes."""
        drawing.points(
            figure,
            self.sizes,
            self.test_error,
            "test, measured",
            drawing.ACTUAL,
            error=2 * self.standard_error,
        )
        seen = self.train_error > 1e-12 * self.test_error
        if bool(seen.any()):
            drawing.points(
                figure,
                self.sizes[seen],
                self.train_error[seen],
                "train, measured",
                drawing.PALETTE[5],
            )

    def figure(self) -> Figure:
        """Errors against sizes, with bars of two standard errors.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure(
            "Measured learning curve",
            "training examples",
            "mean squared error",
            x_axis="log",
            y_axis="log",
        )
        self.draw(figure)
        return figure

    def __repr__(self) -> str:
        return (
            f"MeasuredLearningCurve(n = {float(self.sizes[0]):g} to {float(self.sizes[-1]):g}, "
            f"{self.repeats} repeats, ridge {self.ridge:.3g}: test error "
            f"{float(self.test_error[0]):.4g} to {float(self.test_error[-1]):.4g})"
        )


def measured_learning_curve(
    K: Kernel,
    y: ArrayLike,
    sizes: Sequence[int],
    ridge: float = 0.0,
    repeats: int = 5,
    seed: int = 0,
    K_test_train: ArrayLike | Lazy | None = None,
    y_test: ArrayLike | None = None,
) -> MeasuredLearningCurve:
    """Fit kernel ridge regression to random parts of a data set, and measure the test error.

    Args:
        K: (n, n) or (n, n, out, out) over all n examples.
        y: (n,) or (n, out), real.
        sizes: numbers of training examples, each between 1 and n (below n without a test set).
        ridge: as in (K + ridge)^-1, the same for all sizes; zero is minimum-norm interpolation
            (the pseudo-inverse of a singular matrix).
        repeats: random training sets per size.
        seed: of the training sets.
        K_test_train: (m, n) or (m, n, out, out) between m test examples and all n; by default the
            examples that are not drawn are the test set.
        y_test: (m,) or (m, out), given if `K_test_train` is.

    Raises:
        InvalidInput: a bad kernel, targets that do not fit, numbers out of range, or one of test
            kernel and test targets without the other.
    """
    kernel = kernel_matrix(K, "K")
    labels = check_targets(y, kernel, "y").values
    ridges, _ = ridge_values(float(ridge))
    _check_sizes(sizes, repeats, kernel.examples - (K_test_train is None))
    test = _test_set(kernel, K_test_train, y_test)
    generator = np.random.default_rng(seed)
    errors = np.empty((len(sizes), repeats, 2))
    for row, size in enumerate(sizes):
        for repeat in range(repeats):
            order = torch.from_numpy(generator.permutation(kernel.examples))
            chosen, rest = order[:size], order[size:]
            errors[row, repeat] = _fit(kernel, labels, ridges, chosen, rest, test)
    spread = errors[..., 1].std(axis=1, ddof=1) if repeats > 1 else np.zeros(len(sizes))
    return MeasuredLearningCurve(
        sizes=torch.tensor([float(size) for size in sizes], dtype=torch.float64),
        test_error=torch.from_numpy(errors[..., 1].mean(axis=1)),
        standard_error=torch.from_numpy(spread / math.sqrt(repeats)),
        train_error=torch.from_numpy(errors[..., 0].mean(axis=1)),
        ridge=float(ridge),
        repeats=repeats,
    )


def _fit(
    kernel: KernelMatrix,
    labels: Tensor,
    ridges: Tensor,
    chosen: Tensor,
    rest: Tensor,
    test: tuple[Tensor, Tensor] | None,
) -> tuple[float, float]:
    """Train and test error of one training set."""
    n, out = kernel.examples, kernel.outputs or 1
    blocks = kernel.matrix.reshape(n, out, n, out)
    own = blocks[chosen][:, :, chosen].reshape(len(chosen) * out, -1)
    part = KernelMatrix(
        own, len(chosen), kernel.outputs, kernel.dtype, kernel.device, kernel.rounding
    )
    fit = ridge_regression(part, labels[chosen], ridges)
    ridge = float(ridges)
    train = (fit.residual_factors(ridge)[:, None] * fit.projections).square().sum() / len(chosen)
    alpha = fit.system.vectors @ (fit.inverse(ridge)[:, None] * fit.projections)
    if test is None:
        cross, wanted = blocks[rest][:, :, chosen].reshape(len(rest) * out, -1), labels[rest]
    else:
        whole, wanted = test
        cross = whole.reshape(-1, n, out)[:, chosen].reshape(len(whole), -1)
    missed = kernel.unflatten(cross @ alpha) - wanted
    return float(train), float(missed.square().sum(dim=1).mean())


def _test_set(
    kernel: KernelMatrix, K_test_train: ArrayLike | Lazy | None, y_test: ArrayLike | None
) -> tuple[Tensor, Tensor] | None:
    if (K_test_train is None) != (y_test is None):
        raise InvalidInput("K_test_train and y_test belong together: pass both, or neither.")
    if K_test_train is None or y_test is None:
        return None
    cross = cross_matrix(K_test_train, kernel)
    return cross, check_targets(y_test, kernel, "y_test", int(K_test_train.shape[0])).values


def _check_sizes(sizes: Sequence[int], repeats: int, most: int) -> None:
    if len(sizes) == 0 or repeats < 1:
        raise InvalidInput("sizes must not be empty, and repeats must be at least 1.")
    for size in sizes:
        if int(size) != size or not 1 <= size <= most:
            raise InvalidInput(f"sizes holds {size}, but must be whole numbers from 1 to {most}.")
