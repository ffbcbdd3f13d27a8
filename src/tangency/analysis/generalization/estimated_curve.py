"""Learning curves estimated from one kernel matrix and its labels, without fitting to parts.

In eigenlearning, n examples with a ridge have an effective regularisation kappa and a test error
that depend on the population. A sample of m > n examples stands at the same kappa with a larger
ridge x = ridge + (m - n) kappa, and there both can be read off the kernel matrix (Jacot et al.
2020; Wei, Hu & Steinhardt 2022): with T = tr (K + x)^-1, T2 = tr (K + x)^-2, Q = y^T (K + x)^-2 y,

    kappa = 1 / T,      m - sum_i L_i^2 = T^2 / T2,      sum_i (1 - L_i)^2 v_i^2 + noise = Q / T2.

So x solves (x - ridge) T(x) = m - n, and

    test error(n) = n (Q / T2) / (n - m + T^2 / T2).

At n = m this is the kernel alignment risk estimate.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq

from tangency.analysis.generalization.learning_curve import LearningCurve, Numbers, curve_points
from tangency.analysis.generalization.ridge_regression import RidgeRegression, ridge_regression
from tangency.analysis.matrix import ArrayLike, Kernel
from tangency.errors import InvalidInput

__all__ = ["estimated_learning_curve"]

ROUNDING = 1e-12
"""A difference of numbers of size m that is smaller, relative to m, is nothing."""


def estimated_learning_curve(
    K: Kernel, y: ArrayLike, sizes: Numbers, ridge: Numbers = 0.0, noise: Numbers = 0.0
) -> LearningCurve:
    """Test and train error for n of m examples, on average, from the kernel matrix of all m.

    It predicts what `measured_learning_curve` measures, at the cost of one eigendecomposition, for
    test examples that are not among the m. The noise of the labels is seen in them, and counts in
    the test error.

    The assumption is that of eigenlearning, features as good as Gaussian, and nothing is
    assumed of the spectrum. As from n few examples, a curve from a small sample is noisy.

    Args:
        K: (m, m); of a kernel (m, m, out, out), pass the mean over outputs.
        y: (m,) or (m, out), real.
        sizes: numbers of examples n, at most m.
        ridge: as in (K + ridge)^-1, with K not divided by n.
        noise: variance of noise to be added to the labels, summed over outputs, beyond what they
            have. One of sizes, ridge and noise may be a vector, or several of one length.

    Raises:
        InvalidInput: a bad kernel, targets that do not fit, a kernel that is not positive
            semi-definite with the ridge added, or numbers out of range.
    """
    points, along = curve_points(sizes, ridge, noise)
    n, ridges, noises = points
    if not bool((points.isfinite() & (points >= 0)).all()) or bool((n == 0).any()):
        raise InvalidInput("sizes must be positive and finite, ridge and noise not negative.")
    fit = ridge_regression(K, y, ridges)
    if fit.kernel.outputs is not None:
        raise InvalidInput(
            f"K has shape {fit.kernel.shape}: the theory is for a kernel that acts on every output "
            "alike. Pass its mean over outputs, (m, m)."
        )
    if float(n.max()) > fit.kernel.examples:
        raise InvalidInput(
            f"sizes goes up to {float(n.max()):g}, but a sample of {fit.kernel.examples} examples "
            "can speak for no more than itself. See tangency.scaling_law for what lies beyond."
        )
    rows = [_point(fit, *point) for point in points.T.tolist()]
    kappa, learnability, test, train = torch.tensor(rows, dtype=torch.float64).T
    return LearningCurve(n, ridges, noises, kappa, learnability, test, train, along)


def _point(
    fit: RidgeRegression, n: float, ridge: float, noise: float
) -> tuple[float, float, float, float]:
    """kappa, target learnability, test and train error."""
    m = fit.kernel.examples
    power = fit.projections.square().sum(dim=1)
    x = _sample_ridge(fit, n, ridge)
    # Without ridge and with more examples than modes, the null modes outweigh all others.
    null = fit.null(ridge)
    singular = bool(null.any()) and x <= ridge
    weights = null.double() if singular else 1 / (fit.eigenvalues + x)
    scale = float(weights.max())
    weights = weights / scale  # so that squares cannot overflow
    trace, squares = float(weights.sum()), float(weights.square().sum())
    kappa = 0.0 if singular else 1 / (scale * trace)
    missed = float(weights.square() @ power) / squares + noise
    spare = n - m + trace**2 / squares
    test = 0.0 if missed == 0 else math.inf
    if spare > ROUNDING * m:
        test = n * missed / spare
    fitted = max(n - m + trace, 0.0) if singular else ridge / kappa
    train = (fitted / n) ** 2 * test if fitted > ROUNDING * m else 0.0
    total = float(power.sum())
    unlearned = m * float(weights @ power) / (trace * total) if total > 0 else 0.0
    return kappa, 1 - unlearned, test, train


def _sample_ridge(fit: RidgeRegression, n: float, ridge: float) -> float:
    """x with (x - ridge) tr (K + x)^-1 = m - n; the ridge itself where there is none above it."""
    values = torch.where(fit.null(ridge), 0.0, fit.eigenvalues + ridge).cpu().numpy()
    positive = values[values > 0]
    wanted = len(positive) - n  # null modes give 1 each, to both sides
    if wanted <= 0:
        return ridge
    # z = x - ridge: sum z / (l + z) grows with z; bounds follow from z << l and from l = l_max.
    lowest = wanted / float((1 / positive).sum())
    highest = wanted * float(positive.max()) / n

    def excess(log_z: float) -> float:
        z = math.exp(log_z)
        return float((z / (positive + z)).sum()) - wanted

    ends = math.log(lowest) - 1e-9, math.log(highest) + 1e-9
    return ridge + math.exp(float(brentq(excess, *ends, xtol=1e-14, rtol=1e-15)))
