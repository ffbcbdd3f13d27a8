"""The one-dimensional rule against moments known exactly."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import integrate

from tangency.infinite.duals.coincidence import coincidence_terms, radial_metric
from tangency.infinite.duals.quadrature import (
    gaussian_rule,
    hermite_coefficients,
    hermite_functions,
)


def test_normal_moments() -> None:
    rule = gaussian_rule(torch.tensor([1.0]))
    for power in range(0, 21, 2):
        exact = math.prod(range(1, power, 2))
        assert float(rule.mean(rule.nodes**power)) == pytest.approx(exact, rel=1e-13)


def test_hermite_functions_are_orthonormal() -> None:
    rule = gaussian_rule(torch.tensor([30.0]))
    weighted = hermite_functions(rule, 513)
    gram = (weighted / rule.weights.flatten()) @ weighted.T
    # The highest degrees reach beyond |z| = 12, where no function of interest has weight.
    assert (gram - torch.eye(513)).abs()[:4, :256].max() < 1e-12
    coefficients = hermite_coefficients(rule, torch.exp(0.5 * rule.nodes), 20)
    for degree in range(20):
        exact = math.exp(0.125) * 0.5**degree / math.sqrt(math.factorial(degree))
        assert float(coefficients[degree]) == pytest.approx(exact, abs=1e-14)


@pytest.mark.parametrize("sd", [1e-8, 0.1, 1.0, 30.0])
def test_tanh_energy(sd: float) -> None:
    rule = gaussian_rule(torch.tensor([sd], dtype=torch.float64))
    exact = (
        2
        * sum(
            integrate.quad(
                lambda z: math.tanh(sd * z) ** 2 * math.exp(-z * z / 2),
                p,
                q,
                epsabs=0,
                epsrel=1e-12,
            )[0]
            for p, q in ((0, 0.02), (0.02, 0.2), (0.2, 1), (1, 4), (4, 12))
        )
        / math.sqrt(2 * math.pi)
    )
    assert float(rule.mean(torch.tanh(sd * rule.nodes) ** 2)) == pytest.approx(exact, rel=1e-12)


def test_panels_split_at_kinks() -> None:
    sd = torch.tensor([0.0, 0.01, 0.7, 30.0], dtype=torch.float64)
    rule = gaussian_rule(sd, kinks=(0.3,))
    place = 0.3 / sd
    exact = sd * (
        torch.exp(-(place**2) / 2) / math.sqrt(2 * math.pi)
        - place * 0.5 * torch.erfc(place / math.sqrt(2))
    )
    got = rule.mean(F.relu(rule.nodes * sd - 0.3))
    assert got[1:].tolist() == pytest.approx(exact[1:].tolist(), rel=1e-12, abs=1e-18)
    assert float(got[0]) == 0.0


def test_coincidence_terms_of_the_sine() -> None:
    """E cos^2, E z^2 cos^2 and E z sin cos are elementary."""
    s = torch.tensor([0.2, 1.0, 2.0], dtype=torch.float64)
    decay = torch.exp(-2 * s**2)
    energy, stretch = (1 - decay) / 2, (1 + (1 - 4 * s**2) * decay) / 2
    along = s * decay
    exact = (stretch * energy - along**2) / energy**2
    assert radial_metric(torch.sin, s).tolist() == pytest.approx(exact.tolist(), rel=1e-12)
    bends = coincidence_terms(torch.sin, s)["curvature"]
    assert bends.tolist() == pytest.approx((s**2 * energy).tolist(), rel=1e-12)
