"""Scaling laws: known exponents, simulated learning curves, and what is refused."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from tests.analysis.generalization.populations import gaussian_errors

from tangency.analysis.generalization import (
    Population,
    curve_exponent,
    learning_curve,
    population,
    scaling_law,
)
from tangency.errors import InvalidInput


def power_law(b: float, a: float, modes: int = 20_000) -> Population:
    """Infinitely many modes; those after the first `modes` as a tail."""
    ranks = np.arange(1, modes + 1.0)
    tails = (float(scipy.special.zeta(exponent, modes + 1)) for exponent in (b, a))
    return Population(ranks**-b, ranks**-a, *tails)


CASES = [
    (1.5, 1.6, 0.6, "target"),
    (2.0, 2.5, 1.5, "target"),
    (1.2, 3.0, 2.0, "target"),
    (1.2, 4.5, 2.4, "saturation"),
]


@pytest.mark.parametrize(("b", "a", "exponent", "limit"), CASES)
def test_exponents_of_exact_power_laws(b, a, exponent, limit):
    law = scaling_law(power_law(b, a))
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.interval[0] <= exponent + 1e-6
    assert law.interval[1] >= exponent - 1e-6
    assert law.limit == limit
    assert law.ridge_exponent == pytest.approx(min((a - 1) / b, 2), abs=1e-6)


@pytest.mark.parametrize(("b", "a", "exponent", "limit"), CASES)
def test_they_are_those_of_the_predicted_curve(b, a, exponent, limit):
    sizes = np.geomspace(1000, 10_000, 4)
    curve = learning_curve(power_law(b, a, modes=100_000), sizes)
    found = curve_exponent(sizes, curve.test_error)
    # At a - 1 = 2 against 2b = 2.4 the other term has not quite died out: 1.966.
    assert found.exponent == pytest.approx(exponent, rel=0.02)


def test_a_fixed_ridge_slows_the_curve_down():
    sizes = np.geomspace(1e6, 1e8, 6)
    curve = learning_curve(power_law(2.0, 2.5, modes=100_000), sizes, ridge=1e3)
    found = curve_exponent(sizes, curve.test_error)
    assert found.exponent == pytest.approx(0.75, rel=0.05)


@pytest.mark.parametrize(("b", "a", "exponent"), [(1.5, 1.6, 0.6), (1.2, 4.5, 2.4)])
def test_simulated_kernel_regression_has_the_exponent(b, a, exponent):
    ranks = np.arange(1, 2001.0)
    sizes = [16, 32, 64, 128]
    errors = [
        gaussian_errors(ranks**-b, ranks ** (-a / 2), n, 0.0, 0.0, 60, seed=n)[0].mean()
        for n in sizes
    ]
    found = curve_exponent(sizes, errors)
    assert found.exponent == pytest.approx(exponent, abs=0.12)


def test_from_a_sample_with_its_uncertainty():
    """The way users go: kernel matrix, tails, exponent; the interval covers the truth."""
    b, a = 1.5, 2.0
    ranks = np.arange(1, 3001.0)
    covered = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        phi = rng.normal(size=(400, 3000))
        signs = rng.choice([-1.0, 1.0], size=(3000, 3))
        y = phi @ (ranks[:, None] ** (-a / 2) * signs)
        law = scaling_law(population(phi * ranks**-b @ phi.T, y))
        assert law.exponent == pytest.approx(a - 1, abs=0.35)
        assert law.eigenvalues.exponent == pytest.approx(b, abs=0.15)
        covered += law.interval[0] <= a - 1 <= law.interval[1]
    assert covered >= 4


def test_labels_of_noise_have_no_scaling_law():
    rng = np.random.default_rng(1)
    phi = rng.normal(size=(300, 1000))
    K = phi * np.arange(1, 1001.0) ** -1.5 @ phi.T
    with pytest.raises(InvalidInput, match=r"target power .* not faster than 1 / i"):
        scaling_law(population(K, rng.normal(size=300)))


def test_curve_exponent_is_a_regression():
    sizes = torch.tensor([10.0, 20.0, 40.0, 80.0, 160.0, 320.0], dtype=torch.float64)
    found = curve_exponent(sizes, 3 * sizes**-0.7)
    assert found.exponent == pytest.approx(0.7, rel=1e-9)
    assert found.standard_error == pytest.approx(0, abs=1e-7)
    assert found.half_exponents == pytest.approx((0.7, 0.7))
    bent = curve_exponent(sizes, sizes**-0.5 + 0.05)
    assert bent.half_exponents[0] > bent.half_exponents[1]
    assert bent.interval[0] < bent.exponent < bent.interval[1]
    for errors in ([1, 2, 3], [1, 2, 3, -1], [1, 2, 3, math.inf]):
        with pytest.raises(InvalidInput):
            curve_exponent([1, 2, 3, 4], errors)


def test_printing_and_figure():
    law = scaling_law(power_law(1.5, 1.6, modes=300))
    assert "limited by target" in repr(law)
    assert law.to_dict()["power"]["exponent"] == law.power.exponent
    assert len(law.figure().data) == 4
    assert "exponent" in curve_exponent([1, 2, 4, 8], [8, 4, 2, 1]).to_dict()


def test_the_figure_of_an_exponent_shows_its_line():
    sizes = torch.tensor([10.0, 20.0, 40.0, 80.0, 160.0])
    found = curve_exponent(sizes, 3 * sizes**-0.7)
    dots, line = found.figure().data
    assert list(line.y) == pytest.approx(list(dots.y), rel=1e-4)
    assert found.amplitude == pytest.approx(3, rel=1e-5)
    assert "0.7" in repr(found)
