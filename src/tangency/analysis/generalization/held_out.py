"""Residuals of examples that are held out, without refitting.

With G = (K + ridge)^-1 and alpha = G y, the model fitted without the rows S misses them by

    y_S - f_{-S}(x_S) = (G_SS)^-1 alpha_S

(Allen 1974 for one example; Rasmussen & Williams 2006, eq. 5.12; for blocks by the inverse of a
partitioned matrix). As ridge -> 0 with null modes, G = P / ridge + K^+ + O(ridge), with P the
projector on the null modes, and the expression has a limit: in the range of P_SS only P counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tangency.analysis.generalization.ridge_regression import RidgeRegression
from tangency.errors import SingularKernel

__all__ = ["held_out_residuals"]

NO_GAP = 1e-3
"""Squared error of null modes from which on they are not known well enough for the limit."""


def held_out_residuals(fit: RidgeRegression, ridge: float, folds: list[Tensor]) -> Tensor:
    """(n, out) residuals of each example when its fold is held out.

    Args:
        fit: the regression on all examples.
        ridge: one ridge.
        folds: indices of the examples of each fold; together every example once.

    Raises:
        SingularKernel: without ridge, eigenvalues pass into zero without a gap, so that the limit
            of zero ridge is not known.
    """
    threshold = _null_threshold(fit, ridge)
    columns = fit.kernel.flatten(fit.labels.values)
    single = all(len(fold) == 1 for fold in folds)
    if fit.kernel.outputs is None and single:
        residuals = _one_by_one(fit, ridge, threshold)
    elif single and not bool(fit.null(ridge).any()):
        residuals = _blocks_at_once(fit, ridge)
    else:
        residuals = torch.empty_like(columns)
        for fold in folds:
            rows = _rows(fold, fit.kernel.outputs)
            residuals[rows] = _block(fit, ridge, rows, threshold)
    return fit.kernel.unflatten(residuals)


def _null_threshold(fit: RidgeRegression, ridge: float) -> float:
    """Diagonal entry of P below which an example has no part in the null modes.

    Entries of K that are wrong by the tolerance turn null modes by at most tolerance / gap, where
    the gap is the smallest eigenvalue that is not null (Davis & Kahan); P has its square.
    """
    null = fit.null(ridge)
    if not bool(null.any()) or bool(null.all()):
        return 0.0
    gap = float((fit.eigenvalues + ridge)[~null].min())
    threshold = (10 * fit.system.tolerance / gap) ** 2
    if threshold > NO_GAP:
        raise SingularKernel(
            f"K is singular, and its eigenvalues fall to the rounding error "
            f"{fit.system.tolerance:.3g} without a gap, so that what a held-out example would be "
            f"predicted without a ridge cannot be known. Pass a ridge above {gap:.3g}, or compute "
            "the kernel in float64."
        )
    return threshold


def _one_by_one(fit: RidgeRegression, ridge: float, threshold: float) -> Tensor:
    """(n, columns) leave-one-out residuals, all at once."""
    squares = fit.system.vectors.square()
    weights = fit.inverse(ridge)
    residuals = fit.system.vectors @ (weights[:, None] * fit.projections)
    null = fit.null(ridge).double()
    own = squares @ null
    spanned = own > threshold  # by the other examples
    diagonal = squares @ weights
    residuals = residuals / torch.where(diagonal > 0, diagonal, 1.0)[:, None]
    if bool(spanned.any()):
        limit = fit.system.vectors @ (null[:, None] * fit.projections)
        limit = limit / torch.where(spanned, own, 1.0)[:, None]
        residuals = torch.where(spanned[:, None], limit, residuals)
    return residuals


def _blocks_at_once(fit: RidgeRegression, ridge: float) -> Tensor:
    """(n * out, 1) residuals of examples with several outputs, for K + ridge without null modes."""
    weights = fit.inverse(ridge)
    rows = fit.system.vectors.reshape(fit.kernel.examples, -1, len(weights))
    alpha = rows @ (weights[:, None] * fit.projections)
    return _solve((rows * weights) @ rows.mT, alpha).reshape(-1, 1)


def _block(fit: RidgeRegression, ridge: float, rows: Tensor, threshold: float) -> Tensor:
    """(len(rows), columns) residuals of rows that are held out together."""
    vectors = fit.system.vectors[rows]
    weights = fit.inverse(ridge)
    inverse = (vectors * weights) @ vectors.mT
    alpha = vectors @ (weights[:, None] * fit.projections)
    null = fit.null(ridge)
    if not bool(null.any()):
        return _solve(inverse, alpha)
    shares, basis = torch.linalg.eigh(vectors[:, null] @ vectors[:, null].mT)
    spanned = shares > max(threshold, 10 * len(rows) * torch.finfo(shares.dtype).eps)
    inside, outside = basis[:, spanned], basis[:, ~spanned]
    part = inside.mT @ (vectors[:, null] @ fit.projections[null])
    residuals: Tensor = inside @ (part / shares[spanned][:, None])
    left = outside.mT @ (alpha - inverse @ residuals)
    residuals += outside @ _solve(outside.mT @ inverse @ outside, left)
    return residuals


def _solve(matrix: Tensor, columns: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve(matrix, columns)
    return solution


def _rows(examples: Tensor, outputs: int | None) -> Tensor:
    """Rows of the flattened kernel that belong to `examples`."""
    if outputs is None:
        return examples
    return (examples[:, None] * outputs + torch.arange(outputs, device=examples.device)).reshape(-1)
