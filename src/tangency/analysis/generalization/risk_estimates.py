"""Test error estimated from the training set alone: generalised cross-validation and KARE."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tangency.analysis.generalization.ridge_regression import (
    RidgeRegression,
    Ridges,
    ridge_regression,
    ridge_values,
)
from tangency.analysis.matrix import ArrayLike, Kernel

__all__ = ["generalized_cross_validation", "kernel_alignment_risk", "risk_estimate"]


def generalized_cross_validation(K: Kernel, y: ArrayLike, ridge: Ridges = 0.0) -> Tensor:
    """Estimate of the mean squared test error of kernel ridge regression.

    GCV = (1/n) |(I - A) y|^2 / ((1/N) tr(I - A))^2 with A = K (K + ridge)^-1 (Golub, Heath & Wahba,
    Technometrics 21 (1979), p. 216, whose n lambda is `ridge`): leave-one-out with every G_ii
    replaced by their mean. N is n, or n * out for a kernel (n, n, out, out). Sum over outputs.

    At zero ridge it is 0/0, and its limit is returned:
    n y^T K^-2 y / (tr K^-1)^2, or n |P y|^2 / (tr P)^2 for a singular K with projector P on its
    null modes.

    Args:
        K: (n, n) or (n, n, out, out).
        y: (n,) or (n, out), real; y - f_0 for outputs that start at f_0.
        ridge: one ridge, or many, (R,).

    Returns:
        () or (R,).

    Raises:
        InvalidInput: a bad kernel, targets that do not fit, a negative ridge, or a kernel that is
            not positive semi-definite with the ridge added.
    """
    return _estimates(K, y, ridge)


def kernel_alignment_risk(K: Kernel, y: ArrayLike, ridge: Ridges = 0.0) -> Tensor:
    """Kernel alignment risk estimator (KARE) of the mean squared test error.

    (1/n) y^T (K/n + l)^-2 y / ((1/n) tr (K/n + l)^-1)^2 with l = ridge / n (Jacot, Simsek,
    Spadaro, Hongler & Gabriel, NeurIPS 2020, definition of rho). Multiplied out, this is
    `generalized_cross_validation` exactly, at every ridge: ridge^2 cancels between the two parts
    of the latter. The two differ in where they come from: the former averages leave-one-out, the
    latter is derived from the test error of kernels with Gaussian-like features. On real data it
    tends to be too small where the ridge is near zero; `leave_one_out` assumes nothing.

    Arguments, limits at zero ridge and errors as for `generalized_cross_validation`.
    """
    return _estimates(K, y, ridge)


def _estimates(K: Kernel, y: ArrayLike, ridge: Ridges) -> Tensor:
    ridges, is_scalar = ridge_values(ridge)
    fit = ridge_regression(K, y, ridges)
    found = [risk_estimate(fit, value) for value in ridges.tolist()]
    estimates = torch.tensor(found, dtype=torch.float64)
    return fit.kernel.result(estimates[0] if is_scalar else estimates)


def risk_estimate(fit: RidgeRegression, ridge: float) -> float:
    """The estimate at one ridge."""
    null = fit.null(ridge)
    # Where K + ridge is singular, null modes outweigh all others in both traces.
    weights = null.double() if bool(null.any()) else fit.inverse(ridge)
    weights = weights / weights.max()  # so that squares cannot overflow
    missed = float((weights[:, None] * fit.projections).square().sum())
    total = float(weights.sum())
    rows = len(weights)
    return missed / fit.kernel.examples * math.pow(rows / total, 2)
