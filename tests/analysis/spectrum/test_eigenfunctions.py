"""Nystrom's eigenfunctions against the modes themselves and eigenfunctions known in closed form."""

import math

import numpy as np
import pytest
import torch

from tangency.analysis import Eigenfunctions, eigenfunctions, kernel_matrix
from tangency.errors import InvalidInput


def sphere(n: int, d: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def fit_error(values: np.ndarray, functions: np.ndarray) -> float:
    """Root mean square of what no combination of the functions explains."""
    rest = values - functions @ np.linalg.lstsq(functions, values, rcond=None)[0]
    return float(np.sqrt(np.mean(rest**2)))


def test_on_the_training_examples_they_are_the_modes():
    features = np.random.default_rng(0).normal(size=(12, 15))
    K = features @ features.T
    found = eigenfunctions(K, K)
    assert found.train.shape == (12, 12)
    assert torch.allclose(found.test, found.train, atol=1e-10)
    assert torch.allclose(found.train.square().mean(dim=0), torch.ones(12).double())
    assert np.allclose(found.eigenvalues.numpy(), np.linalg.eigvalsh(K)[::-1] / 12)


def test_new_points_by_the_formula():
    features = np.random.default_rng(1).normal(size=(9, 20))
    train, test = features[:6], features[6:]
    K, cross = train @ train.T, test @ train.T
    values, vectors = np.linalg.eigh(K)
    found = eigenfunctions(kernel_matrix(K), cross, count=2)
    for i in range(2):
        v = vectors[:, -1 - i]
        expected = np.array(
            [math.sqrt(6) / values[-1 - i] * sum(row[j] * v[j] for j in range(6)) for row in cross]
        )
        sign = np.sign(found.train[:, i].numpy() @ v)
        assert np.allclose(found.test[:, i].numpy(), sign * expected)


def test_on_the_circle_they_are_sines_and_cosines_between_the_points():
    """On a regular grid the matrix is circulant; between its points only aliasing is left."""
    n = 24
    angles, between = 2 * math.pi * np.arange(n) / n, np.linspace(0.05, 6.2, 40)
    K = np.exp(np.cos(angles[:, None] - angles))
    found = eigenfunctions(K, np.exp(np.cos(between[:, None] - angles)), count=7)
    for first, k in ((1, 1), (3, 2), (5, 3)):
        waves = math.sqrt(2) * np.stack([np.cos(k * between), np.sin(k * between)], axis=1)
        pair = found.test[:, first : first + 2].numpy()
        assert fit_error(pair, waves) < 1e-10
        # Also the size: the pair is a rotation of the waves.
        turn = np.linalg.lstsq(waves, pair, rcond=None)[0]
        assert np.allclose(turn.T @ turn, np.eye(2), atol=1e-9)


def test_on_the_sphere_they_converge_to_harmonics():
    """Degree 1: sqrt(3) x_i, under the uniform distribution on the sphere in three dimensions."""
    test = sphere(300, 3, seed=1)
    errors = []
    for n in (100, 1600):
        train = sphere(n, 3, seed=2)
        found = eigenfunctions(np.exp(train @ train.T), np.exp(test @ train.T), count=4)
        pair = found.test[:, 1:4].numpy()
        errors.append(fit_error(pair, np.sqrt(3) * test))
        assert pair.std() == pytest.approx(1, abs=3 / math.sqrt(n))
    assert errors[1] < 0.06
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.5)  # 1 / sqrt(n)


def test_several_outputs():
    features = np.random.default_rng(3).normal(size=(8, 3, 30))  # 8 examples, 3 outputs
    K = np.einsum("iap,jbp->ijab", features, features)
    train, cross = K[:5, :5], K[5:, :5]
    found = eigenfunctions(train, cross, count=4)
    assert found.train.shape == (5, 3, 4)
    assert found.test.shape == (3, 3, 4)
    assert torch.allclose(found.train.square().sum(dim=1).mean(dim=0), torch.ones(4).double())
    values, vectors = np.linalg.eigh(train.transpose(0, 2, 1, 3).reshape(15, 15))
    flat = cross.transpose(0, 2, 1, 3).reshape(9, 15)
    expected = math.sqrt(5) * flat @ vectors[:, -1] / values[-1]
    got = found.test[..., 0].reshape(-1).numpy()
    assert np.allclose(got * np.sign(got @ expected), expected)


def test_modes_without_an_eigenvalue_have_no_eigenfunction():
    x = np.random.default_rng(4).normal(size=(6, 2))
    K = x @ x.T
    assert eigenfunctions(K, K).test.shape == (6, 2)
    for count in (0, 3):
        with pytest.raises(InvalidInput, match="2 eigenvalues of K can be told from zero"):
            eigenfunctions(K, K, count=count)
    with pytest.raises(InvalidInput, match=r"must be \(m, 6\)"):
        eigenfunctions(K, K[:, :4])


def test_dtype_dictionary_text_and_figure():
    K = torch.eye(4) + 1
    found = eigenfunctions(K, K)
    assert isinstance(found, Eigenfunctions)
    assert found.test.dtype == torch.float32
    assert set(found.to_dict()) == {"eigenvalues", "train", "test"}
    assert "4 of them" in repr(found)
    pytest.importorskip("plotly")
    x = torch.tensor([3.0, 1.0, 2.0, 0.0])
    drawn = found.figure(x, count=2).data
    assert len(drawn) == 2
    assert drawn[0].x == (0, 1, 2, 3)
    assert drawn[1].y[0] == pytest.approx(float(found.test[3, 1]), rel=1e-4)
    with pytest.raises(InvalidInput, match="one number for each of the 4 points"):
        found.figure(torch.zeros(3))
