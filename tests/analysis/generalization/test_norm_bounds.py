"""Norm-based bounds: their parts against definitions, and that they hold where they must."""

import math

import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve

from tangency.analysis.generalization import norm_bounds
from tangency.errors import InvalidInput


def arora_kernel(x: np.ndarray) -> np.ndarray:
    """The kernel H of Arora et al. (2019) for rows of norm 1: the first layer's NTK."""
    cosines = np.clip(x @ x.T, -1, 1)
    return cosines * (math.pi - np.arccos(cosines)) / (2 * math.pi)


def sphere(n: int, d: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_the_measure_of_arora_et_al():
    x = sphere(40, 5)
    H, y = arora_kernel(x), np.stack([x[:, 0], np.sign(x[:, 1])], axis=1)
    found = norm_bounds(H, y)
    direct = np.sqrt(2 * np.diag(y.T @ cho_solve(cho_factor(H), y)) / 40)
    assert np.allclose(found.arora, direct, rtol=1e-8)
    # Their kernel has trace n / 2, and then twice the complexity is their term.
    assert np.trace(H) == pytest.approx(20)
    radius_at_norm = 2 * found.norm * math.sqrt(20) / 40
    assert np.allclose(radius_at_norm, direct, rtol=1e-8)
    assert bool((found.radius >= found.norm).all())
    assert bool((found.radius <= 2**0.25 * found.norm * (1 + 1e-12)).all())


def test_a_linear_function_has_the_norm_that_they_prove():
    """Their theorem 6.1 with p = 1: sqrt(y^T H^-1 y) is at most 3 |beta| for y = beta . x."""
    x = sphere(150, 6, seed=1)
    beta = np.array([1.0, -2.0, 0.5, 0.0, 0.3, 1.0])
    norm = float(norm_bounds(arora_kernel(x), x @ beta).norm)
    assert 0.3 * np.linalg.norm(beta) < norm <= 3 * np.linalg.norm(beta)


@pytest.mark.parametrize("ridge", [0.0, 0.6])
def test_norm_and_training_loss_are_those_of_the_fit(ridge):
    rng = np.random.default_rng(2)
    phi, y = rng.normal(size=(9, 12)), rng.normal(size=9)
    K = phi @ phi.T
    alpha = np.linalg.solve(K + ridge * np.eye(9), y)
    found = norm_bounds(K, y, ridge)
    assert float(found.norm) == pytest.approx(np.linalg.norm(phi.T @ alpha), rel=1e-8)
    loss = np.minimum(1, np.abs(K @ alpha - y)).mean()
    assert float(found.train_loss) == pytest.approx(loss, rel=1e-8, abs=1e-12)


def test_the_complexity_bounds_that_of_the_ball():
    """sup over |f| <= B of mean_i s_i f(x_i) is B sqrt(s^T K s) / n for random signs s."""
    rng = np.random.default_rng(3)
    phi = rng.normal(size=(50, 80))
    found = norm_bounds(phi @ phi.T, rng.normal(size=50))
    signs = rng.choice([-1.0, 1.0], size=(4000, 50))
    true = float(found.radius) * np.linalg.norm(signs @ phi, axis=1).mean() / 50
    assert true <= float(found.complexity) <= 1.02 * true  # tight for a nearly flat kernel


def test_the_parts_add_up():
    n, confidence = 64, 0.9
    found = norm_bounds(4 * np.eye(n), np.full(n, 1.5), confidence=confidence)
    # |f|^2 = y^T K^-1 y = 64 * 2.25 / 4 = 36: B = 2^(11/4).
    assert float(found.norm) == pytest.approx(6)
    assert float(found.radius) == pytest.approx(2**2.75)
    level = 0.1 / (4 * 144)
    expected = 2 * 2**2.75 * math.sqrt(4 * n) / n + 3 * math.sqrt(math.log(2 / level) / (2 * n))
    assert float(found.bound) == pytest.approx(expected, rel=1e-9)
    assert bool(found.vacuous)
    # The levels of all balls and of the zero function together stay below 1 - confidence.
    j = np.arange(-10_000, 10_001)
    assert (1 / (4 * (abs(j) + 1.0) ** 2)).sum() + 1 / 4 < 1


def test_the_bound_holds_and_can_be_below_one():
    """A smooth target of a smooth kernel and many examples: the test loss, measured."""
    n, rng = 1500, np.random.default_rng(4)
    x, x_test = rng.uniform(-1, 1, size=n), rng.uniform(-1, 1, size=4000)

    def kernel(a, b):
        return 1 + a[:, None] * b

    y = 0.4 * x + 0.05 * rng.choice([-1.0, 1.0], size=n)
    y_test = 0.4 * x_test + 0.05 * rng.choice([-1.0, 1.0], size=4000)
    ridge = 1.0
    found = norm_bounds(kernel(x, x), y, ridge)
    alpha = np.linalg.solve(kernel(x, x) + ridge * np.eye(n), y)
    test = np.minimum(1, np.abs(kernel(x_test, x) @ alpha - y_test)).mean()
    assert test < float(found.bound) < 1
    assert not bool(found.vacuous)
    assert "not vacuous" in repr(found)


def test_random_labels_have_the_larger_bound():
    x = sphere(120, 8, seed=5)
    true = np.sign(x[:, 0])
    shuffled = np.random.default_rng(6).permutation(true)
    found = norm_bounds(arora_kernel(x), np.stack([true, shuffled], axis=1))
    assert float(found.arora[1]) > 1.5 * float(found.arora[0])
    assert bool(found.vacuous.all())  # said plainly: neither is worth anything here


def test_singular_kernels():
    phi = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    torn = norm_bounds(phi @ phi.T, np.array([1.0, -1.0, 2.0]))
    assert float(torn.arora) == math.inf  # no function goes through both
    assert float(torn.norm) == pytest.approx(2)  # but the fit, their mean, has a norm
    assert float(torn.train_loss) == pytest.approx(2 / 3)
    zero = norm_bounds(np.zeros((3, 3)), np.ones(3))
    assert float(zero.norm) == 0
    assert float(zero.train_loss) == 1
    nothing = norm_bounds(np.eye(3), np.zeros(3))
    assert math.isfinite(float(nothing.bound))


def test_printing_figure_and_bad_arguments():
    found = norm_bounds(np.eye(4), np.ones((4, 2)))
    assert "vacuous for 2 of 2 outputs" in repr(found)
    assert set(found.to_dict()) >= {"bound", "vacuous", "arora"}
    assert len(found.figure().data) == 4
    for confidence in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(InvalidInput, match="confidence"):
            norm_bounds(np.eye(2), np.ones(2), confidence=confidence)
    with pytest.raises(InvalidInput, match="one output"):
        norm_bounds(np.einsum("ij,ab->ijab", np.eye(3), np.eye(2)), np.ones((3, 2)))
