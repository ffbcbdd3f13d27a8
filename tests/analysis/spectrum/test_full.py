"""The spectrum against direct linear algebra and hand-made kernels."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangency.analysis import Spectrum, spectrum
from tangency.errors import InvalidInput


def gram(n: int, rank: int | None = None, seed: int = 0) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(n, rank or n + 3))
    return features @ features.T


def rotation(n: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def test_eigenvalues_match_the_singular_values():
    K = gram(7)
    result = spectrum(K)
    assert np.allclose(result.eigenvalues.numpy(), scipy.linalg.svdvals(K), rtol=1e-10)
    assert result.condition_number == pytest.approx(np.linalg.cond(K), rel=1e-9)


def test_modes_are_columns():
    K = gram(6)
    result = spectrum(torch.from_numpy(K))
    for value, mode in zip(result.eigenvalues, result.modes.T, strict=True):
        assert torch.allclose(torch.from_numpy(K) @ mode, value * mode, atol=1e-12 * K.max())


def test_power_of_a_target_made_of_two_modes():
    Q, values = rotation(5), np.array([8.0, 4.0, 2.0, 1.0, 0.5])
    K = Q @ np.diag(values) @ Q.T
    y = np.stack([3 * Q[:, 1], 4 * Q[:, 3] + 2 * Q[:, 1]], axis=1)
    result = spectrum((K + K.T) / 2, y)
    assert np.allclose(result.power.numpy(), [0, 9 + 4, 0, 16, 0], atol=1e-12)
    expected = np.array([0, 13, 13, 29, 29]) / 29
    assert np.allclose(result.cumulative_power.numpy(), expected, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 8), out=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_power_is_conserved_and_the_norm_is_that_of_a_solve(n, out, seed):
    K = gram(n, seed=seed) + 0.1 * np.eye(n)
    y = np.random.default_rng(seed + 1).normal(size=(n, out))
    result = spectrum(K, y)
    assert float(result.power.sum()) == pytest.approx((y**2).sum(), rel=1e-12)
    norm = np.trace(y.T @ scipy.linalg.solve(K, y, assume_a="pos"))
    assert result.rkhs_norm == pytest.approx(norm, rel=1e-9)
    assert 1 - 1e-9 <= result.effective_rank <= n + 1e-9


def test_full_kernel_lives_on_example_output_pairs():
    n, out, p = 4, 3, 15
    J = np.random.default_rng(0).normal(size=(n, out, p))
    y = np.random.default_rng(1).normal(size=(n, out))
    flat = J.reshape(n * out, p) @ J.reshape(n * out, p).T
    result = spectrum(np.einsum("iap,jbp->ijab", J, J), y)
    assert result.modes.shape == (12, 12)
    assert np.allclose(result.eigenvalues.numpy(), np.linalg.eigvalsh(flat)[::-1], rtol=1e-9)
    norm = y.reshape(-1) @ np.linalg.solve(flat, y.reshape(-1))
    assert result.rkhs_norm == pytest.approx(norm, rel=1e-9)
    assert float(result.power[0]) == pytest.approx(
        (y.reshape(-1) @ np.linalg.eigh(flat)[1][:, -1]) ** 2, rel=1e-9
    )
    # n counts examples, not pairs.
    assert float(result.learning_time[0]) == pytest.approx(n / np.linalg.eigvalsh(flat)[-1])


def test_block_diagonal_full_kernel_equals_the_shared_kernel():
    K = gram(5)
    y = np.random.default_rng(2).normal(size=(5, 2))
    shared, full = spectrum(K, y), spectrum(np.einsum("ij,ab->ijab", K, np.eye(2)), y)
    assert full.rkhs_norm == pytest.approx(shared.rkhs_norm, rel=1e-10)
    assert torch.allclose(full.eigenvalues[::2], shared.eigenvalues)
    pairs = full.power.reshape(-1, 2).sum(dim=1)
    assert torch.allclose(pairs, shared.power)


def test_learning_time_is_seen_in_an_integrated_flow():
    Q, values, n, rate = rotation(3), np.array([6.0, 3.0, 1.5]), 3, 0.2
    K = Q @ np.diag(values) @ Q.T
    result = spectrum((K + K.T) / 2)
    for mode in range(3):
        time = float(result.learning_times(rate, fraction=0.01)[mode])
        residual, step = Q[:, mode].copy(), time / 4000
        for _ in range(4000):  # explicit midpoint
            half = residual - step / 2 * rate / n * K @ residual
            residual = residual - step * rate / n * K @ half
        assert residual @ Q[:, mode] == pytest.approx(0.01, rel=1e-4)
    assert torch.allclose(result.learning_time, 3 / torch.tensor(values))


def test_effective_rank_of_known_spectra():
    assert spectrum(np.eye(6) * 3.0).effective_rank == pytest.approx(6)
    assert spectrum(np.ones((6, 6))).effective_rank == pytest.approx(1)
    p = np.array([0.5, 0.25, 0.25])
    entropy = -(p * np.log(p)).sum()
    assert spectrum(np.diag(10 * p)).effective_rank == pytest.approx(math.exp(entropy))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_duplicated_examples(dtype):
    rng = np.random.default_rng(3)
    features = rng.normal(size=(6, 9)).astype(dtype)
    features[4] = features[1]
    K = features @ features.T
    y = rng.normal(size=6)
    agree = y.copy()
    agree[4] = agree[1]
    result = spectrum(K, agree)
    assert result.rank == 5
    assert result.condition_number == math.inf
    assert result.learning_time[-1] == math.inf
    expected = agree @ np.linalg.pinv(K.astype(float), rcond=1e-5, hermitian=True) @ agree
    assert result.rkhs_norm == pytest.approx(expected, rel=1e-4 if dtype == np.float32 else 1e-9)
    # The same input with two targets: no function goes through both.
    assert spectrum(K, y).rkhs_norm == math.inf


def test_negative_eigenvalues_are_reported():
    result = spectrum(np.diag([3.0, 1.0, -0.25]))
    assert float(result.eigenvalues[-1]) == -0.25
    assert result.negative == 1
    assert "1 eigenvalues below" in repr(result)
    assert "positive semi-definite" in repr(result)
    assert result.learning_time[-1] == math.inf
    tiny = spectrum(np.diag([3.0, 1.0, -1e-17]))
    assert float(tiny.eigenvalues[-1]) == -1e-17
    assert tiny.negative == 0


def test_zero_kernel_and_zero_targets():
    zero = spectrum(np.zeros((3, 3)), np.ones(3))
    assert zero.rkhs_norm == math.inf
    assert zero.effective_rank == 0
    assert zero.condition_number == math.inf
    assert spectrum(np.zeros((3, 3)), np.zeros(3)).rkhs_norm == 0
    assert spectrum(np.eye(3), np.zeros(3)).cumulative_power.tolist() == [1, 1, 1]


def test_dtype_follows_the_kernel_and_the_numbers_are_double():
    K = gram(5)
    result = spectrum(torch.from_numpy(K).float(), torch.ones(5))
    assert result.eigenvalues.dtype == torch.float32
    assert result.power.dtype == torch.float32
    assert result.learning_time.dtype == torch.float32
    exact = np.linalg.eigvalsh(K.astype(np.float32).astype(float))
    assert result.condition_number == pytest.approx(exact[-1] / exact[0], rel=1e-12)


def test_printing_and_dictionary():
    result = spectrum(gram(5), np.ones(5))
    text = repr(result)
    for word in ("5 modes", "condition number", "effective rank", "learning times", "RKHS norm"):
        assert word in text
    assert "RKHS" not in repr(spectrum(gram(5)))
    entries = result.to_dict()
    assert entries["rkhs_norm"] == result.rkhs_norm
    assert torch.equal(entries["cumulative_power"], result.cumulative_power)
    assert spectrum(gram(5)).to_dict()["power"] is None
    assert isinstance(result, Spectrum)


def test_bad_arguments():
    result = spectrum(np.eye(3))
    for fraction in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(InvalidInput, match="fraction"):
            result.learning_times(fraction=fraction)
    for rate in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidInput, match="learning_rate"):
            result.learning_times(rate)
    with pytest.raises(InvalidInput, match="targets"):
        spectrum(np.eye(3), np.zeros(4))


def test_effective_dimension():
    result = spectrum(np.diag([4.0, 1.0, 0.25]))
    assert result.effective_dimension(1.0) == pytest.approx(4 / 5 + 1 / 2 + 1 / 5)
    K, ridge = gram(6), 0.7
    smoother = K @ np.linalg.inv(K + ridge * np.eye(6))
    assert spectrum(K).effective_dimension(ridge) == pytest.approx(np.trace(smoother))
    singular = spectrum(gram(6, rank=2))
    assert singular.effective_dimension(0.0) == singular.rank == 2
    assert singular.effective_dimension(1e-9) == pytest.approx(2)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(InvalidInput, match="ridge"):
            result.effective_dimension(bad)


def test_figure():
    pytest.importorskip("plotly")
    result = spectrum(gram(7, rank=4), np.ones(7))
    eigenvalues, cumulative = result.figure().data
    assert eigenvalues.x == (1, 2, 3, 4)
    assert np.allclose(eigenvalues.y, result.eigenvalues[:4].numpy(), rtol=1e-4)
    assert np.allclose(cumulative.y, result.cumulative_power.numpy(), rtol=1e-4, atol=1e-12)
    assert len(spectrum(gram(7)).figure().data) == 1
