"""Leave-one-out and k-fold against direct refits on what is left."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangency.analysis import GradientFlow, kernel_matrix
from tangency.analysis.generalization import CrossValidation, k_fold, leave_one_out
from tangency.errors import InvalidInput, SingularKernel


def features(n: int, p: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, p))


def refit(K: np.ndarray, y: np.ndarray, held: np.ndarray, ridge: float) -> np.ndarray:
    """Predictions for the examples `held` of the model fitted to the others, (m, ...)."""
    kept = np.setdiff1d(np.arange(len(K)), held)
    flow = GradientFlow(K[np.ix_(kept, kept)], y[kept], ridge=ridge)
    return flow.predict(math.inf, K[np.ix_(held, kept)]).test.numpy()


@pytest.mark.parametrize("ridge", [0.0, 0.3, 20.0])
@pytest.mark.parametrize("shape", [(9,), (9, 3)])
def test_leave_one_out_is_n_refits(ridge, shape):
    K = features(9, 12) @ features(9, 12).T
    y = np.random.default_rng(1).normal(size=shape)
    found = leave_one_out(K, y, ridge)
    direct = np.concatenate([refit(K, y, np.array([i]), ridge) for i in range(9)])
    assert np.allclose(found.predictions.numpy(), direct, rtol=1e-9, atol=1e-11)
    assert np.allclose(found.residuals.numpy(), y - direct, rtol=1e-9, atol=1e-11)
    error = ((y - direct) ** 2).reshape(9, -1).sum(axis=1).mean()
    assert float(found.error) == pytest.approx(error, rel=1e-10)


def full_kernel(n: int, out: int, p: int, seed: int = 0) -> np.ndarray:
    J = np.random.default_rng(seed).normal(size=(n, out, p))
    return np.einsum("iap,jbp->ijab", J, J)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("p", [30, 13])  # 13: rank below n * out = 21, so null modes
def test_a_full_kernel_holds_out_all_outputs_of_an_example(ridge, p):
    n, out = 7, 3
    K, y = full_kernel(n, out, p), np.random.default_rng(2).normal(size=(n, out))
    found = leave_one_out(K, y, ridge).predictions.numpy()
    for i in range(n):
        kept = np.delete(np.arange(n), i)
        flat = K[np.ix_(kept, kept)].transpose(0, 2, 1, 3).reshape(out * (n - 1), -1)
        inverse = np.linalg.pinv(flat + ridge * np.eye(len(flat)), rcond=1e-11, hermitian=True)
        cross = K[i, kept].transpose(1, 0, 2).reshape(out, -1)
        assert np.allclose(found[i], cross @ inverse @ y[kept].reshape(-1), rtol=1e-8, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(4, 10),
    rank=st.integers(2, 14),
    folds=st.integers(2, 4),
    ridge=st.sampled_from([0.0, 1e-2, 3.0]),
    seed=st.integers(0, 1000),
)
def test_k_fold_is_k_refits_also_of_singular_kernels(n, rank, folds, ridge, seed):
    phi = features(n, rank, seed)
    K, y = phi @ phi.T, np.random.default_rng(seed + 1).normal(size=(n, 2))
    found = k_fold(K, y, ridge, folds=folds, seed=seed)
    for fold in range(folds):
        held = np.flatnonzero(found.folds.numpy() == fold)
        kept = np.setdiff1d(np.arange(n), held)
        inverse = np.linalg.pinv(
            K[np.ix_(kept, kept)] + ridge * np.eye(len(kept)), rcond=1e-11, hermitian=True
        )
        direct = K[np.ix_(held, kept)] @ inverse @ y[kept]
        scale = np.abs(direct).max() + 1
        assert np.allclose(found.predictions.numpy()[held], direct, atol=1e-5 * scale)


def test_k_fold_of_a_full_kernel():
    n, out, ridge = 6, 2, 0.1
    K, y = full_kernel(n, out, 20), np.random.default_rng(3).normal(size=(n, out))
    folds = torch.tensor([7, 7, 3, 3, 3, 9])
    found = k_fold(K, y, ridge, folds=folds)
    assert found.folds.tolist() == [1, 1, 0, 0, 0, 2]
    for label in (3, 7, 9):
        held = np.flatnonzero(folds.numpy() == label)
        assert np.allclose(found.predictions[held], refit(K, y, held, ridge), rtol=1e-8, atol=1e-9)


def test_many_ridges_are_those_one_by_one():
    K, y = features(8, 10) @ features(8, 10).T, np.random.default_rng(4).normal(size=(8, 2))
    ridges = [0.0, 0.1, 1.0, 30.0]
    for validate in (leave_one_out, lambda *a: k_fold(*a, folds=3)):
        many = validate(K, y, ridges)
        assert many.predictions.shape == (4, 8, 2)
        assert many.error.shape == (4,)
        for row, ridge in enumerate(ridges):
            one = validate(K, y, ridge)
            assert torch.allclose(many.predictions[row], one.predictions, rtol=1e-12)
            assert float(many.error[row]) == pytest.approx(float(one.error), rel=1e-12)
        assert many.best_ridge == ridges[int(many.error.argmin())]


def test_n_folds_are_leave_one_out():
    K, y = features(6, 9) @ features(6, 9).T, np.random.default_rng(5).normal(size=6)
    one, many = leave_one_out(K, y, 0.2), k_fold(K, y, 0.2, folds=6)
    assert torch.allclose(one.predictions, many.predictions, rtol=1e-12)
    assert many.is_leave_one_out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("agree", [True, False])
def test_duplicated_examples_without_ridge(dtype, agree):
    phi = features(7, 11).astype(dtype)
    phi[4] = phi[1]
    phi[6] = phi[1]
    y = np.random.default_rng(6).normal(size=7)
    if agree:
        y[4] = y[6] = y[1]
    K = phi @ phi.T
    found = leave_one_out(K, y)
    direct = []
    for i in range(7):
        kept = np.delete(np.arange(7), i)
        part = K[np.ix_(kept, kept)].astype(float)
        inverse = np.linalg.pinv(part, rcond=1e-6, hermitian=True)
        direct.append(K[i, kept].astype(float) @ inverse @ y[kept])
    assert np.allclose(
        found.predictions.numpy(), direct, atol=1e-4 if dtype == np.float32 else 1e-9
    )
    # A duplicate says what its twins say: their mean.
    assert float(found.predictions[1]) == pytest.approx((y[4] + y[6]) / 2, abs=1e-4)


def test_the_limit_of_zero_ridge_is_continuous():
    phi = features(12, 5)  # more examples than features: 7 null modes
    K, y = phi @ phi.T, np.random.default_rng(7).normal(size=12)
    small, zero = leave_one_out(K, y, 1e-7), leave_one_out(K, y, 0.0)
    assert torch.allclose(small.predictions, zero.predictions, atol=1e-6)
    # Ordinary least squares: the residual over one minus the leverage.
    hat = phi @ np.linalg.solve(phi.T @ phi, phi.T)
    press = (y - hat @ y) / (1 - np.diag(hat))
    assert np.allclose(zero.residuals.numpy(), press, rtol=1e-9)


def test_a_spectrum_that_falls_into_rounding_is_refused_without_ridge():
    x = np.linspace(0, 1, 40)
    K = np.exp(-((x[:, None] - x) ** 2))  # eigenvalues fall below 1e-16 without a gap
    y = np.sin(5 * x)
    with pytest.raises(SingularKernel, match="Pass a ridge above"):
        leave_one_out(K, y)
    with pytest.raises(SingularKernel):
        k_fold(K, y)
    assert float(leave_one_out(K, y, 1e-8).error) < 1e-6


def test_one_example_and_a_kernel_of_zeros_predict_nothing():
    assert float(leave_one_out(np.eye(1), np.array([3.0])).predictions) == 0
    assert leave_one_out(np.zeros((3, 3)), np.ones(3)).predictions.tolist() == [0, 0, 0]


def test_the_eigendecomposition_is_shared_and_dtypes_follow():
    kernel = kernel_matrix(torch.eye(4) * 2)
    found = leave_one_out(kernel, torch.ones(4))
    assert "eigensystem" in kernel.__dict__
    assert found.predictions.dtype == torch.float32
    assert found.ridge.dtype == torch.float64


@pytest.mark.parametrize("folds", [1, 5, torch.zeros(4, dtype=torch.int64), torch.zeros(4)])
def test_bad_folds(folds):
    with pytest.raises(InvalidInput, match="fold"):
        k_fold(np.eye(4), np.ones(4), 0.1, folds=folds)


@pytest.mark.parametrize("ridge", [-1.0, math.nan, math.inf, "a", [], [[1.0]]])
def test_bad_ridges(ridge):
    with pytest.raises(InvalidInput, match="ridge"):
        leave_one_out(np.eye(3), np.ones(3), ridge)


def test_indefinite_kernels_and_integer_targets_are_refused():
    indefinite = np.diag([2.0, 1.0, -0.5])
    with pytest.raises(InvalidInput, match="positive semi-definite"):
        leave_one_out(indefinite, np.ones(3))
    assert bool(leave_one_out(indefinite, np.ones(3), 1.0).predictions.isfinite().all())
    with pytest.raises(InvalidInput, match="one-hot"):
        leave_one_out(np.eye(3), np.array([0, 1, 2]))


def test_printing_and_figures():
    K, y = features(6, 9) @ features(6, 9).T, np.ones(6)
    one, many = leave_one_out(K, y, 0.1), k_fold(K, y, [0.1, 1.0], folds=3)
    assert "leave-one-out over 6 examples" in repr(one)
    assert "3-fold" in repr(many)
    assert "best_ridge" in many.to_dict()
    assert len(one.figure().data) == 1
    assert len(many.figure().data[0].x) == 2
    assert isinstance(one, CrossValidation)
