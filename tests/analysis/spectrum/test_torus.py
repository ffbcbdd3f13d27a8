"""Spectra on the torus against products of known coefficients and circulant matrices."""

import math

import numpy as np
import pytest
import scipy.special
import torch

from tangency.analysis import TorusSpectrum, harmonic_spectrum, torus_spectrum
from tangency.errors import InvalidInput


def exponential(differences: torch.Tensor) -> torch.Tensor:
    """The Gaussian kernel of (cos a_1, sin a_1, ...), up to a factor."""
    return differences.cos().sum(dim=1).exp()


def relu(differences: torch.Tensor) -> torch.Tensor:
    """A ReLU NTK of inputs (cos a_1, sin a_1, ...) / sqrt(p)."""
    t = differences.cos().mean(dim=1)
    angle = torch.arccos(t.clamp(-1, 1))
    return (2 * t * (math.pi - angle) + torch.sin(angle)) / math.pi


def test_a_product_kernel_has_products_for_eigenvalues():
    """exp(cos a) has Fourier coefficients I_k(1) (Abramowitz & Stegun 9.6.34)."""
    found = torus_spectrum(exponential, 2, 3)
    assert len(found.frequencies) == 49
    for frequency, value in zip(found.frequencies.tolist(), found.eigenvalues, strict=True):
        exact = math.prod(scipy.special.iv(abs(k), 1.0) for k in frequency)
        assert float(value) == pytest.approx(exact, abs=1e-14)
    assert bool((found.eigenvalues.diff() <= 0).all())
    assert found.of(1, -2) == pytest.approx(scipy.special.iv(1, 1) * scipy.special.iv(2, 1))
    assert found.diagonal == pytest.approx(math.exp(2))
    assert torus_spectrum(exponential, 2, 8).captured == pytest.approx(1, abs=1e-8)


def test_one_angle_is_the_circle():
    circle = harmonic_spectrum(lambda t: relu(torch.arccos(t)[:, None]), 2, 8)
    found = torus_spectrum(relu, 1, 8, points=2**14)
    for k in range(9):
        value = float(circle.eigenvalues[k])
        assert found.of(k) == pytest.approx(value, abs=1e-8)
        assert found.of(-k) == pytest.approx(found.of(k), abs=1e-14)
    gaps = [abs(found.of(k) - float(circle.eigenvalues[k])) for k in range(9)]
    assert max(gaps) <= found.accuracy


def test_on_the_grid_they_are_the_eigenvalues_of_the_matrix():
    axis = 2 * math.pi * torch.arange(12, dtype=torch.float64) / 12
    grid = torch.cartesian_prod(axis, axis)
    differences = (grid[:, None] - grid).reshape(-1, 2)
    sampled = np.linalg.eigvalsh(relu(differences).reshape(144, 144).numpy())[::-1] / 144
    found = torus_spectrum(relu, 2, 2, points=12)
    # The slowest frequencies asked for are not the largest eigenvalues in general: compare those
    # that are.
    assert np.allclose(found.eigenvalues[:9].numpy(), sampled[:9], atol=1e-14)


def test_random_points_tend_to_these_eigenvalues():
    n = 1500
    a = 2 * math.pi * torch.rand(n, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    K = relu((a[:, None] - a).reshape(-1, 2)).reshape(n, n).numpy()
    sampled = np.linalg.eigvalsh(K)[::-1][:9] / n
    assert np.allclose(sampled, torus_spectrum(relu, 2, 4).eigenvalues[:9].numpy(), rtol=0.12)


def test_learning_times():
    found = torus_spectrum(exponential, 1, 3)
    expected = math.log(10) / (0.5 * found.eigenvalues)
    assert torch.allclose(found.learning_times(0.5, 0.1), expected)
    constant = torus_spectrum(lambda a: torch.ones(len(a), dtype=torch.float64), 1, 2)
    assert constant.learning_times()[1:].tolist() == [math.inf] * 4
    for arguments, message in (((0.0,), "learning_rate"), ((1.0, 1.0), "fraction")):
        with pytest.raises(InvalidInput, match=message):
            found.learning_times(*arguments)


@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        (exponential, {"dimension": 0, "largest": 1}, "too small"),
        (exponential, {"dimension": 1, "largest": -1}, "too small"),
        (exponential, {"dimension": 1, "largest": 4, "points": 16}, "at least 4"),
        (exponential, {"dimension": 6, "largest": 5}, "points is"),
        (lambda a: a, {"dimension": 1, "largest": 1}, "one value for each row"),
        (lambda a: a[:, 0].log(), {"dimension": 1, "largest": 1}, "NaN or infinity"),
        (lambda a: a[:, 0].sin(), {"dimension": 1, "largest": 1}, "not even"),
    ],
)
def test_bad_input_is_refused(kernel, arguments, message):
    with pytest.raises(InvalidInput, match=message):
        torus_spectrum(kernel, **arguments)


def test_dictionary_text_and_figure():
    found = torus_spectrum(exponential, 2, 2)
    assert isinstance(found, TorusSpectrum)
    assert found.to_dict()["accuracy"] == found.accuracy
    assert "25 frequencies in 2 angles" in repr(found)
    with pytest.raises(InvalidInput, match="2 angles"):
        found.of(1)
    with pytest.raises(InvalidInput, match="beyond"):
        found.of(3, 0)
    pytest.importorskip("plotly")
    drawn = found.figure().data[0]
    assert len(drawn.x) == 24
    assert "(1, 0)" in drawn.text
