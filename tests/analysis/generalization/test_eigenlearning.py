"""Eigenlearning against simulation, known closed cases, and its conservation law."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.analysis.generalization.populations import gaussian_errors

from tangency.analysis.generalization import (
    Population,
    effective_regularization,
    eigenlearning,
    learning_curve,
    measured_learning_curve,
    population,
)
from tangency.errors import InvalidInput


def power_law(b: float, a: float, modes: int = 400) -> Population:
    ranks = torch.arange(1, modes + 1, dtype=torch.float64)
    return Population(ranks**-b, ranks**-a)


@settings(max_examples=60, deadline=None)
@given(
    modes=st.integers(1, 40),
    examples=st.floats(0.5, 100),
    ridge=st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 1e8]),
    decay=st.floats(0, 12),
    tail=st.sampled_from([0.0, 1e-6, 2.0]),
    scale=st.sampled_from([1e-200, 1e-8, 1.0, 1e100]),
)
def test_conservation_of_learnability(modes, examples, ridge, decay, tail, scale):
    ranks = torch.arange(1, modes + 1, dtype=torch.float64)
    task = Population(scale * ranks**-decay, torch.ones(modes), tail_trace=scale * tail)
    found = eigenlearning(task, examples, scale * ridge)
    total = float(found.learnability.sum())
    assert total <= examples * (1 + 1e-9)
    if found.kappa == 0:
        assert ridge == tail == 0
        assert modes <= examples
        assert total == modes
    else:
        spent = scale * (ridge + tail) / found.kappa
        assert total + spent == pytest.approx(examples, rel=1e-8)
    assert not math.isnan(found.test_error)
    assert not math.isnan(found.train_error)


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 50.0])
def test_equal_eigenvalues_solve_a_quadratic(ridge):
    modes, n, level = 30, 12.0, 0.7
    task = Population(np.full(modes, level), np.ones(modes))
    # n kappa^2 + (n l - M l - ridge) kappa - ridge l = 0
    b = n * level - modes * level - ridge
    kappa = (-b + math.sqrt(b * b + 4 * n * ridge * level)) / (2 * n)
    assert effective_regularization(task, n, ridge) == pytest.approx(kappa, rel=1e-10)


def test_isotropic_ridgeless_regression():
    """Noiseless: a random subspace holds n / M of the target. With noise: 1 / (1 - n/M)."""
    modes, n, noise = 50, 20, 0.3
    task = Population(np.ones(modes), np.full(modes, 1 / modes))
    assert eigenlearning(task, n).test_error == pytest.approx(1 - n / modes, rel=1e-9)
    found = eigenlearning(task, n, noise=noise)
    expected = (1 - n / modes) + noise / (1 - n / modes)
    assert found.test_error == pytest.approx(expected, rel=1e-9)
    assert found.clean_test_error == pytest.approx(expected - noise, rel=1e-9)
    assert found.target_learnability == pytest.approx(n / modes, rel=1e-9)


def test_least_squares_beyond_the_peak():
    modes, n, noise = 20, 80, 0.5
    task = Population(np.linspace(0.1, 2, modes), np.ones(modes), tail_power=0.25)
    found = eigenlearning(task, n, noise=noise)
    assert found.kappa == 0
    assert found.test_error == pytest.approx((noise + 0.25) / (1 - modes / n), rel=1e-12)
    assert found.train_error == pytest.approx((noise + 0.25) * (1 - modes / n), rel=1e-12)
    # The limit of small ridges.
    small = eigenlearning(task, n, ridge=1e-9, noise=noise)
    assert small.test_error == pytest.approx(found.test_error, rel=1e-6)
    assert small.train_error == pytest.approx(found.train_error, rel=1e-6)


def test_double_descent_peaks_where_examples_meet_modes():
    task = power_law(1.0, 2.0, modes=30)
    sizes = np.arange(5, 90, 5.0)
    curve = learning_curve(task, sizes, noise=0.1)
    assert sizes[int(curve.test_error.argmax())] == 30
    assert curve.test_error.max() == math.inf
    assert eigenlearning(task, 30).test_error == 0  # without noise there is no peak
    with_ridge = learning_curve(task, sizes, ridge=0.3, noise=0.1)
    assert bool((with_ridge.test_error < 1.5 * task.total_power).all())


@pytest.mark.parametrize(
    ("n", "ridge", "noise"),
    [(20, 0.0, 0.0), (60, 0.0, 0.3), (60, 2.0, 0.3), (200, 0.5, 0.1), (150, 0.0, 0.1)],
)
def test_gaussian_features_behave_as_predicted(n, ridge, noise):
    modes = 100
    ranks = np.arange(1, modes + 1.0)
    eigenvalues, coefficients = ranks**-1.2, ranks**-0.9
    found = eigenlearning(Population(eigenvalues, coefficients**2), n, ridge, noise)
    test, train = gaussian_errors(eigenvalues, coefficients, n, ridge, noise, repeats=300)
    allowed = 4 / math.sqrt(300)  # and O(1 / n) beyond the theory
    assert found.test_error == pytest.approx(
        test.mean(), abs=allowed * test.std() + 2e-2 * test.mean()
    )
    if ridge or n > modes:
        assert found.train_error == pytest.approx(
            train.mean(), abs=allowed * train.std() + 1e-2 * train.mean()
        )
    assert allowed * test.std() < 0.1 * test.mean()  # a factor of 2 would be seen


def test_a_tail_acts_as_ridge_and_noise():
    whole = power_law(1.5, 1.8, modes=4000)
    cut = Population(
        whole.eigenvalues[:1000],
        whole.power[:1000],
        tail_trace=float(whole.eigenvalues[1000:].sum()),
        tail_power=float(whole.power[1000:].sum()),
    )
    for ridge in (0.0, 0.01):
        exact, lumped = eigenlearning(whole, 50, ridge), eigenlearning(cut, 50, ridge)
        assert lumped.test_error == pytest.approx(exact.test_error, rel=5e-3)
        assert lumped.train_error == pytest.approx(exact.train_error, rel=5e-3)
        # Left out altogether, it would be missed.
        bare = Population(cut.eigenvalues, cut.power)
        assert abs(eigenlearning(bare, 50, ridge).test_error / exact.test_error - 1) > 0.015


def test_population_of_a_sample():
    rng = np.random.default_rng(0)
    m, eigenvalues = 900, np.array([4.0, 2.0, 1.0, 0.5])
    phi = rng.normal(size=(m, 4))
    K = phi * eigenvalues @ phi.T
    y = np.stack([2 * phi[:, 0], 3 * phi[:, 2] + phi[:, 1]], axis=1)
    found = population(K, y)
    assert np.allclose(found.eigenvalues[:4], eigenvalues, rtol=0.12)
    assert np.allclose(found.power[:4], [4, 1, 9, 0], atol=0.7)
    assert float(found.eigenvalues.sum()) == pytest.approx(np.trace(K) / m, rel=1e-9)
    assert found.total_power == pytest.approx((y**2).sum() / m, rel=1e-9)
    cut = population(K, y, modes=2)
    assert cut.tail_trace == pytest.approx(float(found.eigenvalues[2:].sum()), rel=1e-9)
    assert cut.total_power == pytest.approx(found.total_power, rel=1e-9)


def test_curves_along_ridge_and_noise():
    task = power_law(1.5, 2.0)
    ridges = np.geomspace(1e-3, 1e3, 30)
    curve = learning_curve(task, 50, ridge=ridges, noise=1.0)
    assert curve.along == "ridge"
    assert 0 < int(curve.test_error.argmin()) < 29  # neither none nor all
    for row in (0, 13):
        one = eigenlearning(task, 50, ridges[row], 1.0)
        assert float(curve.test_error[row]) == pytest.approx(one.test_error, rel=1e-12)
        assert float(curve.kappa[row]) == pytest.approx(one.kappa, rel=1e-12)
    noisy = learning_curve(task, 50, 0.1, noise=[0.0, 1.0, 2.0])
    assert noisy.along == "noise"
    steps = noisy.test_error.diff()  # linear in the noise
    assert float(steps[0]) == pytest.approx(float(steps[1]), rel=1e-9)


def test_the_best_ridge_of_a_gaussian_prior_is_the_noise():
    """Coefficients of variance lambda_i: kernel regression is Bayesian, with ridge = noise."""
    ranks = torch.arange(1, 401, dtype=torch.float64)
    task = Population(ranks**-1.5, ranks**-1.5)
    noise = 0.2
    best = eigenlearning(task, 100, ridge=noise, noise=noise).test_error
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert eigenlearning(task, 100, factor * noise, noise).test_error > best


def test_measured_curve_is_a_plain_fit():
    rng = np.random.default_rng(4)
    phi, psi = rng.normal(size=(12, 20)), rng.normal(size=(5, 20))
    y, y_test = rng.normal(size=(12, 2)), rng.normal(size=(5, 2))
    K, cross = phi @ phi.T, psi @ phi.T
    found = measured_learning_curve(K, y, [12], 0.4, 1, 0, cross, y_test)
    alpha = np.linalg.solve(K + 0.4 * np.eye(12), y)
    assert float(found.test_error) == pytest.approx(
        ((cross @ alpha - y_test) ** 2).sum(axis=1).mean(), rel=1e-9
    )
    assert float(found.train_error) == pytest.approx(
        ((K @ alpha - y) ** 2).sum(axis=1).mean(), rel=1e-9
    )
    full = np.einsum("ij,ab->ijab", K, np.eye(2))
    wide = np.einsum("ij,ab->ijab", cross, np.eye(2))
    same = measured_learning_curve(full, y, [12], 0.4, 1, 0, wide, y_test)
    assert float(same.test_error) == pytest.approx(float(found.test_error), rel=1e-9)


def test_measured_curve_tests_on_what_was_not_drawn():
    K, y = np.eye(10), np.arange(10.0)
    found = measured_learning_curve(K, y, [9], repeats=40, seed=1)
    # The identity predicts 0 elsewhere: the error is the square of the one left out.
    assert float(found.train_error) == 0
    assert 0 < float(found.test_error) <= 81
    assert float(found.standard_error) > 0
    again = measured_learning_curve(K, y, [9], repeats=40, seed=1)
    assert torch.equal(found.test_error, again.test_error)


def test_printing_and_figures():
    task = power_law(1.5, 2.0, modes=20)
    point = eigenlearning(task, 5)
    curve = learning_curve(task, [2, 5, 10], ridge=0.1)
    measured = measured_learning_curve(np.eye(9), np.ones(9), [2, 4], ridge=1.0)
    assert "kappa" in repr(point)
    assert "exact" in repr(task)
    assert "along sizes" in repr(curve)
    assert "5 repeats" in repr(measured)
    assert point.to_dict()["population"]["power"] is task.power
    assert len(point.figure().data) == 2
    eigenvalues, power = task.figure().data
    assert eigenvalues.y[3] == pytest.approx(float(task.eigenvalues[3]), rel=1e-4)
    assert power.y[3] == pytest.approx(float(task.power[3]), rel=1e-4)
    assert len(curve.figure().data) == 2
    assert len(curve.figure(measured).data) == 4
    assert len(measured.figure().data) == 2
    with pytest.raises(InvalidInput, match="along ridge"):
        learning_curve(task, 5, [0.1, 0.2]).figure(measured)
    assert set(curve.to_dict()) >= {"kappa", "test_error"}
    assert set(measured.to_dict()) >= {"test_error", "standard_error"}


def test_bad_arguments():
    task = power_law(1.5, 2.0, modes=5)
    for examples in (0, -1, math.nan, math.inf):
        with pytest.raises(InvalidInput, match="examples"):
            eigenlearning(task, examples)
    with pytest.raises(InvalidInput, match="ridge"):
        eigenlearning(task, 3, ridge=-1)
    with pytest.raises(InvalidInput, match="noise"):
        eigenlearning(task, 3, noise=math.nan)
    with pytest.raises(InvalidInput, match="lengths"):
        learning_curve(task, [1, 2, 3], ridge=[0.1, 0.2])
    with pytest.raises(InvalidInput, match="sizes"):
        learning_curve(task, "abc")
    with pytest.raises(InvalidInput, match="eigenvalues"):
        Population(torch.tensor([1.0, -1.0]), torch.ones(2))
    with pytest.raises(InvalidInput, match="one length"):
        Population(torch.ones(3), torch.ones(2))
    with pytest.raises(InvalidInput, match="tail_trace"):
        Population(torch.ones(2), torch.ones(2), tail_trace=-1.0)
    with pytest.raises(InvalidInput, match="alike"):
        population(np.einsum("ij,ab->ijab", np.eye(3), np.eye(2)), np.ones((3, 2)))
    with pytest.raises(InvalidInput, match="modes"):
        population(np.eye(3), np.ones(3), modes=4)
    with pytest.raises(InvalidInput, match="positive semi-definite"):
        population(np.diag([1.0, -1.0]), np.ones(2))
    for sizes in ([], [0], [4], [1.5]):
        with pytest.raises(InvalidInput, match="sizes"):
            measured_learning_curve(np.eye(4), np.ones(4), sizes)
    with pytest.raises(InvalidInput, match="belong together"):
        measured_learning_curve(np.eye(4), np.ones(4), [2], K_test_train=np.ones((2, 4)))
