"""Geometry against direct computations, and its inequalities where they must hold."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tangency import InfiniteKernel, Init
from tangency.analysis import spectrum
from tangency.analysis.geometry import Geometry, geometry, kernel_distances
from tangency.errors import InvalidInput


def cluster_features(sizes, spread, p=30, seed=0):
    """Groups of examples around random centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(sizes), p))
    rows = [c + spread * rng.normal(size=(m, p)) for c, m in zip(centres, sizes, strict=True)]
    return np.concatenate(rows)


def full_kernel(n, out, p, seed=0):
    J = np.random.default_rng(seed).normal(size=(n, out, p))
    return np.einsum("iap,jbp->ijab", J, J), J


def test_distances_are_those_of_the_features():
    phi = np.random.default_rng(0).normal(size=(6, 4))
    phi[3] = 0
    K = phi @ phi.T
    direct = np.linalg.norm(phi[:, None] - phi, axis=2)
    assert np.allclose(kernel_distances(K), direct, atol=1e-7)
    unit = phi / np.maximum(np.linalg.norm(phi, axis=1, keepdims=True), 1e-300)
    direct = np.linalg.norm(unit[:, None] - unit, axis=2)
    direct[3] = direct[:, 3] = math.sqrt(2)
    direct[3, 3] = 0
    assert np.allclose(kernel_distances(K, normalized=True), direct, atol=1e-7)


def test_distances_of_a_full_kernel_are_means_over_outputs():
    K, J = full_kernel(5, 3, 7)
    squares = ((J[:, None] - J) ** 2).sum(axis=3).mean(axis=2)
    assert np.allclose(kernel_distances(K) ** 2, squares, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    spread=st.sampled_from([1e-4, 1e-2, 0.3]),
    threshold=st.sampled_from([0.05, 0.5, 1.2]),
    seed=st.integers(0, 1000),
)
def test_near_duplicates_force_small_eigenvalues(sizes, spread, threshold, seed):
    phi = cluster_features(sizes, spread, seed=seed)
    if len(phi) < 2:
        return
    K, y = phi @ phi.T, np.random.default_rng(seed + 1).normal(size=(len(phi), 2))
    found = geometry(K, y, threshold=threshold)
    values = np.linalg.eigvalsh(K)
    rounding = found.tolerance
    pairs = found.duplicates
    if len(pairs.pairs):
        assert values[0] <= float(pairs.eigenvalue_bounds.min()) + rounding
        if found.targets.rkhs_norm < math.inf:
            assert found.targets.rkhs_norm >= float(found.conflict.max()) * (1 - 1e-6)
    assert values[: pairs.collapsed].sum() <= pairs.scatter + len(phi) * rounding


def test_pairs_groups_and_scatter_by_hand():
    # Three points on a line of features, two near each other, and one far off in two copies.
    phi = np.array([[10.0, 0], [10.0, 0.2], [10.0, 0.41], [0, 5.0], [0, 5.0], [7.0, -7.0]])
    found = geometry(phi @ phi.T, threshold=0.03)
    pairs = found.duplicates
    assert pairs.pairs.tolist() == [[3, 4], [0, 1], [1, 2]]  # 0 and 2 are 0.04 apart
    assert np.allclose(pairs.distances, [0, 0.2, 0.21], atol=1e-6)
    assert [group.tolist() for group in pairs.groups] == [[0, 1, 2], [3, 4]]
    assert pairs.scatter == pytest.approx((0.2**2 + 0.21**2 + 0.41**2) / 3, rel=1e-6)
    assert pairs.collapsed == 3
    assert found.nearest.tolist() == [1, found.nearest[1], 1, 4, 3, found.nearest[5]]
    assert float(found.separation[3]) == 0
    assert found.condition_number == math.inf
    assert "examples 3 and 4" in repr(found)


def test_the_pair_bound_is_attained_by_two_points():
    phi = np.array([[1.0, 0.0, 0.1], [1.0, 0.0, -0.1]])
    found = geometry(phi @ phi.T, np.array([1.0, -1.0]), threshold=0.5)
    assert float(found.eigenvalues[-1]) == pytest.approx(0.02)
    assert float(found.duplicates.eigenvalue_bounds[0]) == pytest.approx(0.02)
    assert found.targets.rkhs_norm == pytest.approx(100)  # (y_i - y_j)^2 / d^2 = 4 / 0.04
    assert float(found.conflict[0]) == pytest.approx(100)


def test_novelty_is_the_distance_from_the_span_of_the_others():
    phi = np.random.default_rng(1).normal(size=(7, 9))
    phi[5] = phi[2]
    found = geometry(phi @ phi.T)
    for i in range(7):
        others = np.delete(phi, i, axis=0)
        left = phi[i] - others.T @ np.linalg.lstsq(others.T, phi[i], rcond=None)[0]
        expected = (left @ left) / (phi[i] @ phi[i])
        assert float(found.novelty[i]) == pytest.approx(expected, abs=1e-9)


def test_participation_is_the_share_in_the_trace_of_the_inverse():
    phi = cluster_features([1, 1, 2, 1], 0.01)
    K = phi @ phi.T
    inverse = np.linalg.inv(K)
    found = geometry(K)
    assert np.allclose(found.participation, np.diag(inverse) / np.trace(inverse), rtol=1e-6)
    assert sorted(found.culprits[:2].tolist()) == [2, 3]
    assert float(found.participation[2] + found.participation[3]) > 0.99


def test_novelty_and_participation_of_a_full_kernel():
    n, out = 4, 2
    K, J = full_kernel(n, out, 12)
    found = geometry(K)
    flat = J.reshape(n * out, -1)
    inverse = np.linalg.inv(flat @ flat.T)
    shares = np.diag(inverse).reshape(n, out).sum(axis=1)
    assert np.allclose(found.participation, shares / shares.sum(), rtol=1e-8)
    for i in range(n):
        others = np.delete(J, i, axis=0).reshape(-1, 12)
        left = J[i] - (others.T @ np.linalg.lstsq(others.T, J[i].T, rcond=None)[0]).T
        expected = (left**2).sum() / (J[i] ** 2).sum()
        assert float(found.novelty[i]) == pytest.approx(expected, rel=1e-7)


def test_the_norm_beside_that_of_noise():
    rng = np.random.default_rng(2)
    phi = rng.normal(size=(12, 20)) * np.arange(1, 21.0) ** -1
    K = phi @ phi.T
    y = np.stack([K[:, 0], phi[:, 1]], axis=1)
    found = geometry(K, y).targets
    inverse = np.linalg.inv(K)
    assert found.rkhs_norm == pytest.approx(np.trace(y.T @ inverse @ y), rel=1e-8)
    assert found.rkhs_norm == pytest.approx(spectrum(K, y).rkhs_norm, rel=1e-8)
    noise = rng.normal(size=(12, 20_000))
    noise *= np.linalg.norm(y) / np.linalg.norm(noise, axis=0)
    sampled = np.einsum("ia,ij,ja->a", noise, inverse, noise).mean()
    assert found.noise_norm == pytest.approx(sampled, rel=0.05)
    assert found.norm_ratio == pytest.approx(found.rkhs_norm / found.noise_norm, rel=1e-9)
    assert found.norm_ratio < 0.1


def test_the_norm_ratio_of_a_singular_kernel_is_the_limit():
    phi = np.random.default_rng(3).normal(size=(10, 6))
    K, y = phi @ phi.T, np.random.default_rng(4).normal(size=10)
    found = geometry(K, y).targets
    assert found.rkhs_norm == found.noise_norm == math.inf
    ridged = np.linalg.inv(K + 1e-8 * np.eye(10))
    expected = (y @ ridged @ y) / (y @ y / 10 * np.trace(ridged))
    assert found.norm_ratio == pytest.approx(expected, rel=1e-6)
    smooth = geometry(K, phi[:, 0]).targets
    assert smooth.rkhs_norm < math.inf
    assert smooth.norm_ratio == 0


def test_hopeless_modes_are_those_that_gradient_descent_leaves():
    Q = np.linalg.qr(np.random.default_rng(5).normal(size=(4, 4)))[0]
    values = np.array([8.0, 1.0, 0.1, 0.01])
    K, y = Q * values @ Q.T, Q @ np.array([2.0, 1.0, 1.0, 3.0])
    K = (K + K.T) / 2
    found = geometry(K, y, budget=100).targets  # 100 steps at rate n / lambda_max = 0.5
    assert found.learning_rate == pytest.approx(0.5)
    # n / (0.5 lambda) = 1, 8, 80, 800 steps.
    assert found.hopeless_modes == 1
    assert found.hopeless_power == pytest.approx(9 / 15)
    f = np.zeros(4)
    for _ in range(100):
        f = f - 0.5 / 4 * K @ (f - y)
    left = (Q.T @ (f - y)) ** 2
    assert left[3] > 9 * math.exp(-2)
    assert left[2] < math.exp(-2)
    slow = geometry(K, y, budget=100, learning_rate=0.05).targets
    assert slow.hopeless_modes == 2
    duplicated = np.ones((3, 3))
    assert geometry(duplicated, np.array([1.0, -1.0, 0.0])).targets.hopeless_power == pytest.approx(
        1
    )


def test_degenerate_kernels():
    zero = geometry(np.zeros((3, 3)), np.ones(3))
    assert zero.labels is None
    assert zero.targets.rkhs_norm == math.inf
    assert zero.novelty.tolist() == [0, 0, 0]
    flat = geometry(np.ones((3, 3)), np.zeros(3))
    assert flat.targets.norm_ratio == 0
    for result in (zero, flat):
        for values in (result.separation, result.novelty, result.participation, result.conflict):
            assert not bool(values.isnan().any())
        assert repr(result)
    tiny = geometry(1e-200 * np.eye(3), np.ones(3))
    assert tiny.novelty.tolist() == pytest.approx([1, 1, 1])
    assert tiny.targets.norm_ratio == pytest.approx(1)


def test_printing_figure_and_dtype():
    phi = cluster_features([3, 2, 4], 0.05).astype(np.float32)
    y = np.random.default_rng(6).normal(size=(9, 2))
    found = geometry(phi @ phi.T, y)
    text = repr(found)
    for word in ("separation", "near-duplicates", "RKHS norm", "hopeless", "suspicious labels"):
        assert word in text
    assert found.novelty.dtype == torch.float32
    assert len(found.figure().data) == 2
    without = geometry(phi @ phi.T)
    assert "RKHS" not in repr(without)
    assert len(without.figure().data) == 1
    assert found.to_dict()["duplicates"]["collapsed"] == found.duplicates.collapsed
    assert without.to_dict()["targets"] is None
    assert isinstance(found, Geometry)
    assert "groups" in repr(found.duplicates)


def test_bad_arguments():
    with pytest.raises(InvalidInput, match="at least two"):
        geometry(np.eye(1))
    with pytest.raises(InvalidInput, match="threshold"):
        geometry(np.eye(3), threshold=2.0)
    with pytest.raises(InvalidInput, match="budget"):
        geometry(np.eye(3), np.ones(3), budget=0)
    with pytest.raises(InvalidInput, match="learning_rate"):
        geometry(np.eye(3), np.ones(3), learning_rate=-1.0)
    with pytest.raises(InvalidInput, match="semi-definite"):
        geometry(np.diag([1.0, -1.0]))
    with pytest.raises(InvalidInput, match="one-hot"):
        geometry(np.eye(3), np.array([0, 1, 2]))


def test_two_clusters_of_a_relu_network():
    """The norm of noisy labels grows like one over the clusters' size, that of clean ones not."""
    layers = nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 1)
    kernel = InfiniteKernel(
        nn.Sequential(*layers).double(), torch.zeros(2, 1).double(), init=Init(weight=2.0, bias=1.0)
    )
    inside = torch.tensor([-1, -0.7, 0, 0.25, 1.0], dtype=torch.float64)
    clean = torch.tensor([-1.0] * 5 + [1.0] * 5, dtype=torch.float64)
    noisy = clean + torch.tensor([0.1, -0.2, 0.3, 0.0, -0.1] * 2)
    noisy_norms, clean_norms, bounds = [], [], []
    for size in (1e-3, 1e-4):  # where the kink outweighs the smooth part of the kernel
        x = torch.cat([size * inside - 1, size * inside + 1])[:, None]
        found = geometry(kernel.ntk(x), noisy, threshold=0.5)
        noisy_norms.append(found.targets.rkhs_norm)
        bounds.append(float(found.conflict.max()))
        clean_norms.append(geometry(kernel.ntk(x), clean).targets.rkhs_norm)
        assert [sorted(group.tolist()) for group in found.duplicates.groups] == [
            [0, 1, 2, 3, 4],
            [5, 6, 7, 8, 9],
        ]
    assert noisy_norms[1] / noisy_norms[0] == pytest.approx(10, rel=0.05)
    assert bounds[1] / bounds[0] == pytest.approx(10, rel=0.05)
    assert clean_norms[1] <= clean_norms[0] < 0.1
    apart = torch.linspace(-4, 4, 10, dtype=torch.float64)[:, None]
    loose = geometry(kernel.ntk(apart), noisy)
    assert loose.targets.rkhs_norm < 0.05 * noisy_norms[0]
