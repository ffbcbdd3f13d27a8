"""How well kernel regression generalises on the data of a study: foretold, and measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tangency.analysis import GradientFlow, KernelMatrix, kernel_matrix
from tangency.analysis.generalization import (
    CrossValidation,
    LearningCurve,
    MeasuredLearningCurve,
    estimated_learning_curve,
    leave_one_out,
    measured_learning_curve,
)
from tangency.datasets import Dataset
from tangency.diagnosis import TrainingCheck

__all__ = ["Generalization", "generalize"]

SIZES = 8
"""Numbers of training examples on the learning curve."""

FEWEST = 8
"""The smallest of them."""

RIDGES = 13
"""Ridges on the path, from 1e-4 to 1e2 of the mean eigenvalue."""


@dataclass(frozen=True, eq=False)
class Generalization:
    """Errors of regression with one kernel of the network.

    Attributes:
        kernel: which: "infinite NTK" where there is one, else "empirical NTK".
        predicted: learning curve, from the training kernel and targets alone.
        measured: errors on the test examples after regression on parts of the training set.
        held_out: leave-one-out errors on the training set along a path of ridges.
        test_error: (R,) mean squared errors on the test examples at the same ridges.
        accuracy: leave-one-out share of training examples answered rightly at the best ridge;
            None without classes.
        test_accuracy: share of test examples answered rightly at the same ridge.
    """

    kernel: str
    predicted: LearningCurve
    measured: MeasuredLearningCurve
    held_out: CrossValidation
    test_error: Tensor
    accuracy: float | None
    test_accuracy: float | None

    @property
    def best(self) -> int:
        """Index of the ridge with the least leave-one-out error."""
        return int(self.held_out.error.argmin())

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name, the parts as dictionaries of their own."""
        return {
            "kernel": self.kernel,
            "predicted": self.predicted.to_dict(),
            "measured": self.measured.to_dict(),
            "held_out": self.held_out.to_dict(),
            "test_error": self.test_error,
            "accuracy": self.accuracy,
            "test_accuracy": self.test_accuracy,
        }


def generalize(check: TrainingCheck, data: Dataset, seed: int = 0) -> Generalization:
    """Learning curve and leave-one-out of the infinite NTK, or else of the empirical one.

    Raises:
        TangencyError: a kernel that analyses refuse.
    """
    name, train, cross = "infinite NTK", check.ntk_infinite, check.ntk_infinite_test_train
    if train is None:
        name, train, cross = "empirical NTK", check.ntk, check.ntk_test_train
    assert cross is not None
    kernel = kernel_matrix(train)
    unit = float(kernel.matrix.diagonal().mean())
    ridges = unit * torch.logspace(-4, 2, RIDGES, dtype=torch.float64)
    held_out = leave_one_out(kernel, data.y_train, ridges)
    outputs = [_outputs(kernel, cross, data, float(ridge)) for ridge in ridges]
    best = int(held_out.error.argmin())
    n = kernel.examples
    ridge = float(ridges[best])
    return Generalization(
        kernel=name,
        predicted=estimated_learning_curve(kernel, data.y_train, _sizes(n, most=4 * SIZES), ridge),
        measured=measured_learning_curve(
            kernel,
            data.y_train,
            [int(size) for size in _sizes(n, most=SIZES)],
            ridge,
            seed=seed,
            K_test_train=cross,
            y_test=data.y_test,
        ),
        held_out=held_out,
        test_error=torch.stack([_squared_error(found, data.y_test) for found in outputs]),
        accuracy=_accuracy(held_out.predictions[best], data.labels_train),
        test_accuracy=_accuracy(outputs[best], data.labels_test),
    )


def _sizes(largest: int, most: int) -> list[float]:
    """Whole numbers from `FEWEST` to `largest`, even in the logarithm."""
    low = min(FEWEST, largest)
    spread = torch.logspace(math.log10(low), math.log10(largest), most, dtype=torch.float64)
    return sorted(set(spread.round().tolist()))


def _outputs(kernel: KernelMatrix, cross: Tensor, data: Dataset, ridge: float) -> Tensor:
    flow = GradientFlow(kernel, data.y_train, ridge=ridge)
    outputs = flow.predict(math.inf, K_test_train=cross).test
    assert outputs is not None
    return outputs


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over examples, sum over outputs."""
    return (outputs.double().cpu() - targets.double().cpu()).square().sum(dim=1).mean()


def _accuracy(outputs: Tensor, labels: Tensor | None) -> float | None:
    if labels is None:
        return None
    return float((outputs.argmax(dim=1).cpu() == labels).double().mean())
