"""GCV and KARE from their definitions, against each other and against the true risk."""

import numpy as np
import pytest
import torch
from tests.analysis.generalization.populations import gaussian_errors

from tangency.analysis.generalization import (
    generalized_cross_validation,
    kernel_alignment_risk,
    leave_one_out,
    ridge_path,
)
from tangency.errors import InvalidInput


def sample(n: int = 11, p: int = 15, out: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(n, p))
    return phi @ phi.T, rng.normal(size=(n, out))


def test_gcv_is_its_definition_with_the_hat_matrix():
    K, y = sample()
    n, ridges = len(K), [0.05, 1.0, 40.0]
    found = generalized_cross_validation(K, y, ridges)
    for value, ridge in zip(found.tolist(), ridges, strict=True):
        rest = np.eye(n) - K @ np.linalg.inv(K + ridge * np.eye(n))
        direct = ((rest @ y) ** 2).sum() / n / (np.trace(rest) / n) ** 2
        assert value == pytest.approx(direct, rel=1e-9)


def test_kare_is_the_formula_of_the_paper():
    K, y = sample()
    n, ridge = len(K), 0.7
    inverse = np.linalg.inv(K / n + ridge / n * np.eye(n))
    direct = (np.trace(y.T @ inverse @ inverse @ y) / n) / (np.trace(inverse) / n) ** 2
    assert float(kernel_alignment_risk(K, y, ridge)) == pytest.approx(direct, rel=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 2.0])
def test_kare_is_gcv(ridge):
    K, y = sample()
    assert float(kernel_alignment_risk(K, y, ridge)) == pytest.approx(
        float(generalized_cross_validation(K, y, ridge)), rel=1e-12
    )


@pytest.mark.parametrize("p", [15, 6])  # 6: five null modes, least squares
def test_zero_ridge_is_the_limit(p):
    K, y = sample(p=p)
    small, zero = (float(generalized_cross_validation(K, y, r)) for r in (1e-6, 0.0))
    assert zero == pytest.approx(small, rel=1e-5)
    if p == 6:  # residual sum of squares / n over (1 - p/n)^2
        vectors = np.linalg.eigh(K)[1][:, :5]
        left = ((vectors.T @ y) ** 2).sum() / 11 / (1 - 6 / 11) ** 2
        assert zero == pytest.approx(left, rel=1e-9)


def test_a_full_kernel_that_does_not_mix_outputs_gives_the_same():
    K, y = sample(n=6)
    full = np.einsum("ij,ab->ijab", K, np.eye(2))
    for estimate in (generalized_cross_validation, kernel_alignment_risk):
        assert float(estimate(full, y, 0.3)) == pytest.approx(float(estimate(K, y, 0.3)), rel=1e-9)


@pytest.mark.parametrize(("ridge", "noise"), [(0.0, 0.0), (3.0, 0.2)])
def test_kare_estimates_the_risk_of_gaussian_features(ridge, noise):
    """The claim of Jacot et al. (2020): no factor is missing."""
    rng = np.random.default_rng(1)
    eigenvalues = np.arange(1, 301.0) ** -1.5
    coefficients = np.arange(1, 301.0) ** -1.0
    n, repeats = 60, 200
    risk = gaussian_errors(eigenvalues, coefficients, n, ridge, noise, repeats, seed=2)[0]
    estimates = np.empty(repeats)
    for repeat in range(repeats):
        phi = rng.normal(size=(n, 300))
        y = phi @ coefficients + np.sqrt(noise) * rng.normal(size=n)
        estimates[repeat] = float(kernel_alignment_risk(phi * eigenvalues @ phi.T, y, ridge))
    spread = np.sqrt((estimates.var() + risk.var()) / repeats)
    assert abs(estimates.mean() - risk.mean()) < 3 * spread + 0.02 * risk.mean()
    assert spread < 0.03 * risk.mean()  # so that a factor would be seen


def test_ridge_path_is_its_parts():
    K, y = sample()
    ridges = np.array([0.0, 0.1, 2.0, 100.0])
    path = ridge_path(K, y, ridges)
    assert torch.allclose(path.leave_one_out, leave_one_out(K, y, ridges).error, rtol=1e-10)
    assert torch.allclose(path.gcv, generalized_cross_validation(K, y, ridges), rtol=1e-10)
    for row, ridge in enumerate(ridges):
        hat = K @ np.linalg.inv(K + ridge * np.eye(len(K)))
        train = ((y - hat @ y) ** 2).sum() / len(K)
        assert float(path.train_error[row]) == pytest.approx(train, rel=1e-9, abs=1e-18)
        assert float(path.degrees_of_freedom[row]) == pytest.approx(np.trace(hat), rel=1e-9)
    assert path.best() == ridges[int(path.leave_one_out.argmin())]
    assert path.best("gcv") == ridges[int(path.gcv.argmin())]


def test_the_path_finds_the_ridge_that_fits_the_noise():
    """For targets drawn from the Gaussian process itself the best ridge is the noise variance."""
    rng = np.random.default_rng(5)
    noise, found = 3.0, []
    for _ in range(10):
        phi = rng.normal(size=(150, 200))
        K = phi @ phi.T / 10
        y = np.linalg.cholesky(K + noise * np.eye(150)) @ rng.normal(size=(150, 8))
        found.append(ridge_path(K, y).best())
    assert np.exp(np.log(found).mean()) == pytest.approx(noise, rel=0.25)


def test_printing_figure_and_bad_arguments():
    K, y = sample()
    path = ridge_path(K, y)
    assert len(path.ridges) == 40
    assert "least leave-one-out error" in repr(path)
    assert {"gcv", "best_by_gcv"} <= set(path.to_dict())
    assert [trace.name for trace in path.figure().data][2] == "training"
    with pytest.raises(InvalidInput, match="criterion"):
        path.best("aic")
    with pytest.raises(InvalidInput, match="nothing to fit"):
        ridge_path(np.zeros((3, 3)), np.ones(3))
    with pytest.raises(InvalidInput, match="ridges"):
        ridge_path(K, y, [-1.0])
