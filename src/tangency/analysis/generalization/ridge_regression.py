"""Kernel ridge regression in the eigenbasis: what the analyses of generalisation share.

alpha = (K + ridge)^-1 y, outputs K alpha: the limit of `GradientFlow` with the same ridge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor

from tangency.analysis.matrix import (
    ArrayLike,
    Eigensystem,
    Kernel,
    KernelMatrix,
    Targets,
    kernel_matrix,
)
from tangency.analysis.matrix import targets as check_targets
from tangency.analysis.numbers import as_numbers
from tangency.errors import InvalidInput

__all__ = ["RidgeRegression", "Ridges", "ridge_regression", "ridge_values"]

Ridges: TypeAlias = float | Sequence[float] | Tensor | npt.NDArray[Any]
"""One ridge, or many in one dimension; in units of kernel eigenvalues."""


@dataclass(frozen=True, eq=False)
class RidgeRegression:
    """Kernel ridge regression for all ridges, on one eigendecomposition.

    Attributes:
        kernel: the training kernel, N = n or n * out rows.
        labels: the targets, (n, out).
        system: eigenvalues and modes of the kernel.
        eigenvalues: (N,) those of the system, with what cannot be told from zero set to zero.
        projections: (N, columns) targets in the eigenmodes.
    """

    kernel: KernelMatrix
    labels: Targets
    system: Eigensystem
    eigenvalues: Tensor
    projections: Tensor

    def null(self, ridge: float) -> Tensor:
        """(N,) True where eigenvalue + ridge cannot be told from zero."""
        return self.eigenvalues + ridge <= self.system.tolerance

    def inverse(self, ridge: float) -> Tensor:
        """(N,) 1 / (eigenvalue + ridge), zero in null modes: the pseudo-inverse."""
        return torch.where(self.null(ridge), 0.0, 1 / (self.eigenvalues + ridge))

    def residual_factors(self, ridge: float) -> Tensor:
        """(N,) part of each mode that is left as a residual: ridge / (eigenvalue + ridge)."""
        return torch.where(self.null(ridge), 1.0, ridge * self.inverse(ridge))

    def shaped(self, values: Tensor) -> Tensor:
        """Values (..., n, out) as the targets were given, in the kernel's dtype."""
        return self.kernel.result(values[..., 0] if self.labels.is_vector else values)

    def per_output(self, values: Tensor) -> Tensor:
        """Values (out,), or () where the targets were given as (n,), in the kernel's dtype."""
        return self.kernel.result(values[0] if self.labels.is_vector else values)


def ridge_regression(K: Kernel, y: ArrayLike, ridges: Tensor) -> RidgeRegression:
    """Check kernel and targets, and that the kernel is positive with the least of `ridges` added.

    Raises:
        InvalidInput: a bad kernel, targets that do not fit, or a kernel that is not positive
            semi-definite with the ridge added.
    """
    kernel = kernel_matrix(K, "K")
    labels = check_targets(y, kernel, "y")
    system = kernel.eigensystem
    smallest = float(system.values[-1])
    if smallest + float(ridges.min()) < -system.tolerance:
        raise InvalidInput(
            f"K is not positive semi-definite: its smallest eigenvalue is {smallest:.3g} (the "
            f"largest {float(system.values[0]):.3g}), more than rounding explains. Compute the "
            f"kernel in float64, or pass ridges above {-smallest:.3g}."
        )
    return RidgeRegression(
        kernel=kernel,
        labels=labels,
        system=system,
        eigenvalues=torch.where(system.null, 0.0, system.values),
        projections=system.vectors.mT @ kernel.flatten(labels.values),
    )


def ridge_values(ridge: Ridges, name: str = "ridge") -> tuple[Tensor, bool]:
    """The ridges as (R,) in float64, and whether one was given as a scalar.

    Raises:
        InvalidInput: not numbers, empty, more than one dimension, negative, NaN or infinite.
    """
    values, is_scalar = as_numbers(ridge, name)
    for value in values.tolist():
        if not (math.isfinite(value) and value >= 0):
            raise InvalidInput(f"{name} is {value}, but must be zero or positive.")
    return values, is_scalar
