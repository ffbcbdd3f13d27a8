"""The learning curve from one kernel matrix: against the population's, and against fits."""

import math

import numpy as np
import pytest
import torch

from tangency.analysis.generalization import (
    Population,
    eigenlearning,
    estimated_learning_curve,
    kernel_alignment_risk,
    learning_curve,
    measured_learning_curve,
    population,
)
from tangency.errors import InvalidInput

RANKS = np.arange(1, 801.0)


def sample(b: float, a: float, m: int = 400, noise: float = 0.0, out: int = 4, seed: int = 1):
    """Kernel matrix and targets of Gaussian features, and the population they are from."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(m, len(RANKS)))
    signs = rng.choice([-1.0, 1.0], size=(len(RANKS), out))
    coefficients = RANKS[:, None] ** (-a / 2) * signs
    y = phi @ coefficients + math.sqrt(noise / out) * rng.normal(size=(m, out))
    exact = Population(RANKS**-b, (coefficients**2).sum(axis=1))
    return phi * RANKS**-b @ phi.T, y, exact


@pytest.mark.parametrize(
    ("b", "a", "ridge", "noise"), [(1.4, 1.8, 0.0, 0.0), (1.4, 1.8, 0.5, 0.3), (2.0, 1.6, 0.1, 0.0)]
)
def test_it_is_the_curve_of_the_population(b, a, ridge, noise):
    K, y, exact = sample(b, a, noise=noise)
    sizes = [20, 50, 100, 200, 300]
    found = estimated_learning_curve(K, y, sizes, ridge)
    true = learning_curve(exact, sizes, ridge, noise)
    assert np.allclose(found.kappa, true.kappa, rtol=0.04)
    assert np.allclose(found.test_error, true.test_error, rtol=0.1)
    assert np.allclose(found.train_error, true.train_error, rtol=0.1)
    assert np.allclose(
        found.learnability * (exact.total_power + noise),
        true.learnability * exact.total_power,
        rtol=0.04,
    )


def test_it_is_what_kernel_regression_measures():
    K, y, _ = sample(1.4, 1.8, noise=0.2)
    sizes, ridge = [20, 60, 150, 300], 0.05
    found = estimated_learning_curve(K, y, sizes, ridge)
    measured = measured_learning_curve(K, y, sizes, ridge, repeats=10, seed=3)
    assert np.allclose(found.test_error, measured.test_error, rtol=0.08)
    assert np.allclose(found.train_error, measured.train_error, rtol=0.12)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_all_examples_are_the_kernel_alignment_risk(ridge):
    K, y, _ = sample(1.4, 1.8, m=50)
    found = estimated_learning_curve(K, y, 50, ridge)
    assert float(found.test_error) == pytest.approx(
        float(kernel_alignment_risk(K, y, ridge)), rel=1e-9
    )


def test_the_equation_for_the_samples_ridge():
    """kappa = 1 / tr (K + x)^-1 with x = ridge + (m - n) kappa, by direct inversion."""
    K, y, _ = sample(1.2, 2.0, m=30)
    for n, ridge in ((3.0, 0.0), (12.5, 0.2), (29.9, 1e-6)):
        kappa = float(estimated_learning_curve(K, y, n, ridge).kappa)
        x = ridge + (30 - n) * kappa
        assert np.trace(np.linalg.inv(K + x * np.eye(30))) == pytest.approx(1 / kappa, rel=1e-9)


def test_equal_eigenvalues_in_a_sample():
    """Of the identity nothing is learned about the others: the error is the power."""
    y = np.random.default_rng(0).normal(size=20)
    for ridge in (0.0, 2.0):
        found = estimated_learning_curve(3 * np.eye(20), y, [5, 20], ridge)
        assert np.allclose(found.test_error, (y**2).mean(), rtol=1e-9)


def test_more_examples_than_modes_is_least_squares():
    rng = np.random.default_rng(2)
    modes, m, noise = 15, 400, 0.5
    phi = rng.normal(size=(m, modes))
    y = phi @ rng.normal(size=modes) + math.sqrt(noise) * rng.normal(size=m)
    found = estimated_learning_curve(phi @ phi.T, y, [10, 15, 40, 400])
    assert found.test_error[1] == math.inf  # the peak
    assert found.kappa[2:].tolist() == [0, 0]
    variance = ((y - phi @ np.linalg.lstsq(phi, y, rcond=None)[0]) ** 2).sum() / (m - modes)
    assert float(found.test_error[2]) == pytest.approx(variance / (1 - modes / 40), rel=1e-8)
    assert float(found.train_error[2]) == pytest.approx(variance * (1 - modes / 40), rel=1e-8)
    exact = eigenlearning(Population(np.ones(modes), np.zeros(modes)), 40, noise=variance)
    assert float(found.test_error[2]) == pytest.approx(exact.test_error, rel=1e-8)
    nearly = estimated_learning_curve(phi @ phi.T, y, [10, 40, 400], ridge=1e-6)
    assert np.allclose(nearly.test_error, found.test_error[[0, 2, 3]], rtol=1e-4)


def test_added_noise_and_curves_along_the_ridge():
    K, y, exact = sample(1.4, 1.8)
    clean = estimated_learning_curve(K, y, 60, 0.3, noise=[0.0, 1.0])
    true = learning_curve(exact, 60, 0.3, noise=[0.0, 1.0])
    assert np.allclose(clean.test_error, true.test_error, rtol=0.1)
    along = estimated_learning_curve(K, y, 60, ridge=[0.1, 1.0, 10.0])
    assert along.along == "ridge"
    assert bool((along.kappa.diff() > 0).all())


def test_a_sample_taken_for_the_distribution_is_refused_where_it_is_biased():
    K, y, _ = sample(1.4, 1.8)
    task = population(K, y)
    direct, naive = estimated_learning_curve(K, y, 40), eigenlearning(task, 40)
    # The claim of the refusal: too small by about n / m = 0.1.
    assert naive.test_error / float(direct.test_error) == pytest.approx(0.9, abs=0.01)
    with pytest.raises(InvalidInput, match="estimated_learning_curve"):
        eigenlearning(task, 41)


def test_degenerate_kernels_give_no_nan():
    y = np.array([1.0, -1.0, 0.5])
    for K in (np.zeros((3, 3)), np.ones((3, 3)), np.diag([1.0, 1e-300, 0.0])):
        for ridge in (0.0, 1e-300, 1.0):
            found = estimated_learning_curve(K, y, [0.5, 1, 2, 3], ridge)
            for values in (found.test_error, found.train_error, found.kappa, found.learnability):
                assert not bool(values.isnan().any())
    zero = estimated_learning_curve(np.eye(3), np.zeros(3), [1, 3])
    assert zero.test_error.tolist() == [0, 0]
    assert torch.equal(zero.learnability, torch.ones(2, dtype=torch.float64))


def test_bad_arguments():
    K, y = np.eye(4), np.ones(4)
    for sizes in (5, 0, -1, math.nan):
        with pytest.raises(InvalidInput, match="sizes"):
            estimated_learning_curve(K, y, sizes)
    with pytest.raises(InvalidInput, match="ridge"):
        estimated_learning_curve(K, y, 2, -1.0)
    with pytest.raises(InvalidInput, match="alike"):
        estimated_learning_curve(np.einsum("ij,ab->ijab", K, np.eye(2)), np.ones((4, 2)), 2)
    with pytest.raises(InvalidInput, match="semi-definite"):
        estimated_learning_curve(np.diag([1.0, -1.0]), np.ones(2), 1)
