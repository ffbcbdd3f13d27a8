"""Spectra on the circle and the sphere against closed forms, the literature and sampled kernels."""

import math

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangency.analysis import HarmonicSpectrum, gegenbauer, harmonic_spectrum, power_law_tail
from tangency.analysis.spectrum.harmonics import multiplicity
from tangency.errors import InvalidInput


def kappa0(t: torch.Tensor) -> torch.Tensor:
    """E[phi'(u) phi'(v)] of ReLU, times two: the arc-cosine kernel of degree 0."""
    return (math.pi - torch.arccos(t)) / math.pi


def kappa1(t: torch.Tensor) -> torch.Tensor:
    """E[phi(u) phi(v)] of ReLU, times two: the arc-cosine kernel of degree 1."""
    a = torch.arccos(t)
    return (torch.sin(a) + (math.pi - a) * t) / math.pi


def relu_ntk(t: torch.Tensor) -> torch.Tensor:
    """The NTK of one hidden layer without biases (Bietti & Mairal 2019)."""
    return t * kappa0(t) + kappa1(t)


@pytest.mark.parametrize("d", [2, 3, 5, 20, 784])
def test_the_exponential_kernel_in_closed_form(d):
    """Gamma(d/2) 2^(d/2 - 1) I_{k + d/2 - 1}(1) (Minh, Niyogi & Yao 2006)."""
    found = harmonic_spectrum(torch.exp, d, 8)
    with mpmath.workdps(30):
        half = mpmath.mpf(d) / 2
        exact = [
            float(mpmath.gamma(half) * 2 ** (half - 1) * mpmath.besseli(k + half - 1, 1))
            for k in range(9)
        ]
    gaps = (found.eigenvalues - torch.tensor(exact, dtype=torch.float64)).abs()
    assert bool((gaps <= found.accuracy).all())
    assert float(found.accuracy.max()) < 1e-14
    if d <= 20:
        assert np.allclose(found.eigenvalues[:6].numpy(), exact[:6], rtol=1e-8)
        assert found.captured == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("d", [3, 5])
@pytest.mark.parametrize("kernel", [kappa0, kappa1, relu_ntk])
def test_against_adaptive_quadrature_in_the_cosine(d, kernel):
    found = harmonic_spectrum(kernel, d, 7)

    def integral(function):
        return scipy.integrate.quad(
            lambda t: function(t) * (1 - t * t) ** ((d - 3) / 2), -1, 1, epsabs=1e-13, epsrel=1e-12
        )[0]

    for k in range(8):
        scale = scipy.special.eval_gegenbauer(k, (d - 2) / 2, 1.0)

        def weighted(t, k=k, scale=scale):
            value = float(kernel(torch.tensor(t, dtype=torch.float64)))
            return value * scipy.special.eval_gegenbauer(k, (d - 2) / 2, t) / scale

        exact = integral(weighted) / integral(lambda t: 1.0)
        assert float(found.eigenvalues[k]) == pytest.approx(exact, abs=1e-11)


def test_a_linear_kernel_has_degree_one_only():
    found = harmonic_spectrum(lambda t: t, 6, 5)
    assert np.allclose(found.eigenvalues.numpy(), [0, 1 / 6, 0, 0, 0, 0], atol=1e-15)
    assert found.learning_times()[2:].tolist() == [math.inf] * 4
    assert found.captured == pytest.approx(1)


def test_the_circle_without_biases_in_closed_form():
    """The first layer's NTK t (pi - a) / (2 pi) (Basri et al. 2019): odd frequencies
    from three on vanish, the even ones are (k^2 + 1) / (pi^2 (k^2 - 1)^2).
    """
    found = harmonic_spectrum(lambda t: t * kappa0(t) / 2, 2, 60)
    k = np.arange(61.0)
    exact = np.where(k % 2 == 0, (k**2 + 1) / (math.pi**2 * (k**2 - 1) ** 2 + (k == 1)), 0)
    exact[1] = 1 / 8
    assert np.allclose(found.eigenvalues.numpy(), exact, atol=1e-15)
    assert bool((found.eigenvalues[3::2].abs() <= found.accuracy[3::2]).all())


@pytest.mark.parametrize("d", [2, 3, 4, 6])
def test_relu_networks_decay_as_in_the_literature(d):
    """Bietti & Mairal 2019: odd degrees vanish from three on; even ones, and the
    arc-cosine kernel of degree 1, fall like k^-d and k^-(d + 2).
    """
    found = harmonic_spectrum(relu_ntk, d, 400)
    assert bool((found.eigenvalues[3::2].abs() <= found.accuracy[3::2]).all())
    assert bool((found.eigenvalues[2:100:2] > found.accuracy[2:100:2]).all())
    for kernel, exponent in ((relu_ntk, d), (kappa1, d + 2)):
        even = harmonic_spectrum(kernel, d, 400).eigenvalues[2::2]
        slope = math.log(float(even[24] / even[49])) / math.log(100 / 50)
        # Corrections of relative order (d / k)^2 and d / k are left at these degrees.
        assert slope == pytest.approx(exponent, rel=0.05)
        assert power_law_tail(even, 10, 60).exponent == pytest.approx(exponent, rel=0.1)


@pytest.mark.parametrize("d", [2, 3])
def test_depth_keeps_the_decay_and_fills_in_the_odd_degrees(d):
    """Bietti & Bach 2021: two hidden layers and more fall like k^-d at all degrees."""

    def deep_ntk(t):
        covariance, ntk = t, t
        for _ in range(2):
            ntk = kappa1(covariance) + ntk * kappa0(covariance)
            covariance = kappa1(covariance).clamp(max=1)
        return ntk

    found = harmonic_spectrum(deep_ntk, d, 400)
    assert bool((found.eigenvalues[:200] > found.accuracy[:200]).all())
    for first in (2, 1):
        values = found.eigenvalues[first::2]
        slope = math.log(float(values[49] / values[99])) / math.log((198 + first) / (98 + first))
        assert slope == pytest.approx(d, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(
    d=st.integers(2, 12),
    powers=st.lists(st.just(0.0) | st.floats(1e-6, 3), min_size=1, max_size=7),
)
def test_trace_and_positivity_of_power_series(d, powers):
    """Schoenberg: positive power series are kernels; their eigenvalues are positive and sum to
    kappa(1), each with its multiplicity.
    """

    def kernel(t):
        return sum(c * t**k for k, c in enumerate(powers))

    found = harmonic_spectrum(kernel, d, len(powers) + 2)
    assert bool((found.eigenvalues >= -found.accuracy).all())
    total = float(found.multiplicity @ found.eigenvalues)
    assert total == pytest.approx(sum(powers), rel=1e-9, abs=1e-9)
    assert found.diagonal == pytest.approx(sum(powers))


@given(d=st.integers(2, 40), k=st.integers(0, 30))
def test_multiplicities_count_harmonic_polynomials(d, k):
    """Homogeneous polynomials of degree k, less those of degree k - 2 (times |x|^2)."""
    smaller = math.comb(d + k - 3, k - 2) if k >= 2 else 0
    assert multiplicity(d, k) == math.comb(d + k - 1, k) - smaller


@pytest.mark.parametrize("d", [2, 3, 7])
def test_gegenbauer_polynomials(d):
    t = torch.linspace(-1, 1, 9, dtype=torch.float64)
    found = gegenbauer(d, [0, 1, 5, 30], t)
    for row, k in zip(found, (0, 1, 5, 30), strict=True):
        if d == 2:
            exact = scipy.special.eval_chebyt(k, t.numpy())
        else:
            index = (d - 2) / 2
            exact = scipy.special.eval_gegenbauer(k, index, t.numpy())
            exact = exact / scipy.special.eval_gegenbauer(k, index, 1.0)
        assert np.allclose(row.numpy(), exact, atol=1e-12)


@pytest.mark.parametrize("d", [2, 3])
def test_sampled_kernel_matrices_tend_to_these_eigenvalues(d):
    found = harmonic_spectrum(relu_ntk, d, 40)
    errors = []
    for n in (100, 1600):
        x = np.random.default_rng(d).normal(size=(n, d))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        K = relu_ntk(torch.from_numpy(np.clip(x @ x.T, -1, 1))).numpy()
        sampled = np.linalg.eigvalsh(K)[::-1][:9] / n
        errors.append(np.abs(sampled / found.expanded(9).numpy() - 1).max())
    assert errors[1] < 0.12
    assert errors[1] < errors[0] / 2  # 1 / sqrt(n): a fourth, on average


def test_a_regular_grid_on_the_circle_is_exact_up_to_aliasing():
    n = 256
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    K = torch.exp(torch.cos(angles[:, None] - angles)).numpy()
    exact = harmonic_spectrum(torch.exp, 2, 10).expanded(15).numpy()
    assert np.allclose(np.linalg.eigvalsh(K)[::-1][:15] / n, exact, atol=1e-14)


def test_kinks_are_seen_in_the_accuracy():
    """|t| has a kink inside: the circle's coefficients are 2 (-1)^(k/2+1) / (pi (k^2 - 1))."""
    found = harmonic_spectrum(torch.abs, 2, 6)
    exact = np.array([2, 0, 2 / 3, 0, -2 / 15, 0, 2 / 35]) / math.pi
    gaps = np.abs(found.eigenvalues.numpy() - exact)
    assert gaps.max() > 1e-9
    assert (gaps <= 3 * found.accuracy.numpy()).all()
    finer = harmonic_spectrum(torch.abs, 2, 6, nodes=4096)
    assert np.abs(finer.eigenvalues.numpy() - exact).max() < gaps.max() / 20


def test_degrees_times_and_expansion():
    found = harmonic_spectrum(torch.exp, 3, [4, 0, 2])
    assert found.degrees.tolist() == [0, 2, 4]
    whole = harmonic_spectrum(torch.exp, 3, 4)
    assert torch.allclose(found.eigenvalues, whole.eigenvalues[::2], atol=1e-15)
    assert whole.multiplicity.tolist() == [1, 3, 5, 7, 9]
    times = whole.learning_times(learning_rate=0.5, fraction=0.01)
    assert torch.allclose(times, math.log(100) / (0.5 * whole.eigenvalues))
    one, two, three = whole.eigenvalues[:3].tolist()
    assert whole.expanded(6).tolist() == [one, two, two, two, three, three]
    with pytest.raises(InvalidInput, match="hold 25"):
        whole.expanded(26)
    for arguments, message in (((0.0,), "learning_rate"), ((1.0, 1.0), "fraction")):
        with pytest.raises(InvalidInput, match=message):
            whole.learning_times(*arguments)


@pytest.mark.parametrize(
    ("kernel", "d", "degrees", "message"),
    [
        (torch.exp, 1, 3, "dimension is 1"),
        (torch.exp, 2, [], "degrees is"),
        (torch.exp, 2, [-1], "degrees is"),
        (lambda t: t[:3], 2, 3, "returned"),
        (lambda t: 1.0, 2, 3, "returned float"),
        (lambda t: t.log(), 2, 3, "NaN or infinity"),
    ],
)
def test_bad_input_is_refused(kernel, d, degrees, message):
    with pytest.raises(InvalidInput, match=message):
        harmonic_spectrum(kernel, d, degrees)
    with pytest.raises(InvalidInput, match="nodes is 1"):
        harmonic_spectrum(torch.exp, 2, 3, nodes=1)


def test_dictionary_text_and_figure():
    found = harmonic_spectrum(relu_ntk, 2, 9)
    assert isinstance(found, HarmonicSpectrum)
    assert found.to_dict()["dimension"] == 2
    assert "the circle" in repr(found)
    assert "sphere in 5 dimensions" in repr(harmonic_spectrum(relu_ntk, 5, 3))
    pytest.importorskip("plotly")
    drawn = {trace.name: trace for trace in found.figure().data}
    assert drawn["odd"].x == (1,)  # the others vanish
    assert drawn["even"].x == (2, 4, 6, 8)
    assert drawn["even"].y[0] == pytest.approx(float(found.eigenvalues[2]), rel=1e-4)
