"""Stochastic Lanczos quadrature against exact spectra, and with spectra that break Lanczos."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from tests.random_state import numpy_state

import tangency as tg
from tangency.analysis import SpectralDensity, spectral_density, spectrum
from tangency.errors import InvalidInput, MissingDependency

pytest.importorskip("curvlinops")


def with_eigenvalues(values: np.ndarray, seed: int = 0) -> np.ndarray:
    n = len(values)
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    K = Q @ np.diag(values) @ Q.T
    return (K + K.T) / 2


DECADES = np.logspace(0, -6, 400)


def test_counts_follow_the_exact_histogram():
    found = spectral_density(with_eigenvalues(DECADES), steps=80, probes=20)
    for threshold in (0.3, 0.1, 1e-2, 1e-3):
        count, error = found.count(threshold)
        exact = (threshold < DECADES).sum()
        # Beside chance, a threshold between two nodes smooths over their distance.
        assert abs(count - exact) < 4 * error + 0.03 * exact
        assert error < 0.1 * len(DECADES)


def test_the_curve_is_the_density_per_decade():
    found = spectral_density(with_eigenvalues(DECADES), steps=80, probes=20)
    values, density = found.curve(width=0.15)
    total = torch.trapezoid(density, values.log10())
    assert float(total) == pytest.approx(400 - found.null, rel=1e-3)
    inside = (values > 3e-3) & (values < 0.5)
    assert float(density[inside].mean()) == pytest.approx(400 / 6, rel=0.12)


def test_smooth_sums_are_right_within_their_errors():
    K = with_eigenvalues(DECADES)
    exact = spectrum(K)
    scores = []
    for seed in range(20):
        found = spectral_density(K, steps=40, probes=8, seed=seed)
        trace, error = found.sum_of(lambda values: values)
        scores.append((trace - DECADES.sum()) / error)
        for ridge in (1e-2, 1e-1):
            value, error = found.effective_dimension(ridge)
            scores.append((value - exact.effective_dimension(ridge)) / error)
    # Student's t with 7 degrees of freedom has standard deviation 1.18.
    assert 0.8 < math.sqrt(np.mean(np.square(scores))) < 1.7
    assert abs(np.mean(scores)) < 0.6


def test_the_trace_has_the_error_that_gaussian_probes_give():
    """v^T K v / |v|^2 N has variance 2 (|K|_F^2 - tr^2 / N) N / (N + 2) / ... : by simulation."""
    values = np.concatenate([np.full(5, 10.0), np.ones(95)])
    v = np.random.default_rng(0).normal(size=(20000, 100)) ** 2
    single = (100 * (v @ values) / v.sum(axis=1)).std()
    found = spectral_density(with_eigenvalues(values), steps=5, probes=400)
    trace, error = found.sum_of(lambda nodes: nodes)
    assert error == pytest.approx(single / 20, rel=0.15)
    assert abs(trace - values.sum()) < 4 * error


@pytest.mark.parametrize("steps", [1, 2, 3, 64])
def test_spectra_that_break_lanczos(steps):
    """Krylov spaces that end early: exact answers, never NaN."""
    eye = spectral_density(3 * np.eye(50), steps=steps)
    assert eye.count(2.999)[0] == pytest.approx(50)
    assert eye.count(3.001)[0] == 0
    zero = spectral_density(np.zeros((20, 20)), steps=steps)
    assert zero.null == pytest.approx(20)
    assert len(zero.curve()[0]) == 0
    one = spectral_density(np.ones((1, 1)), steps=steps)
    assert one.sum_of(lambda v: v)[0] == pytest.approx(1)
    # The trace is the mean of Rayleigh quotients, whatever the number of steps.
    two = spectral_density(np.diag([1.0] * 30 + [2.0] * 10), steps=steps, probes=50)
    trace, error = two.sum_of(lambda v: v)
    assert abs(trace - 50) < 4 * error
    for found in (eye, zero, one, two):
        assert bool(torch.isfinite(found.nodes).all())
        assert torch.allclose(found.weights.sum(dim=1), torch.tensor(float(found.size)).double())


def test_null_space_of_a_low_rank_kernel():
    found = spectral_density(
        with_eigenvalues(np.array([5.0, 4, 3, 2, 1] + [0.0] * 195)), probes=100
    )
    count, error = found.count(0.5)
    assert abs(count - 5) < 4 * error
    assert found.null == pytest.approx(200 - count, abs=1e-6)


def test_negative_eigenvalues_are_reported():
    found = spectral_density(with_eigenvalues(np.array([5.0] * 30 + [-1.0] * 10)), probes=50)
    count, error = found.count(0)
    assert found.negative == pytest.approx(40 - count)
    assert abs(found.negative - 10) < 4 * error
    assert "eigenvalues are negative" in repr(found)
    assert "negative" not in repr(spectral_density(np.eye(4)))


def test_operators_and_matrices_agree():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
    x = torch.randn(25, 3, dtype=torch.float64)
    kernel = tg.EmpiricalKernel(model.double())
    K = kernel.ntk(x)
    whole = spectral_density(K, steps=8, probes=3)
    for given in (kernel.operator(x), aslinearoperator(K.numpy())):
        part = spectral_density(given, steps=8, probes=3)
        assert torch.allclose(part.nodes, whole.nodes, atol=1e-8 * float(whole.nodes.max()))
        assert torch.allclose(part.weights, whole.weights, atol=1e-6)
    single = spectral_density(K.float(), steps=8, probes=3)
    assert torch.allclose(single.nodes, whole.nodes, atol=1e-4 * float(whole.nodes.max()))


def test_a_kernel_that_fits_no_memory():
    n = 50_000  # 19 GiB
    values = np.arange(1, n + 1.0) ** -1
    operator = LinearOperator((n, n), matvec=lambda v: values * v.ravel())
    found = spectral_density(operator, steps=60, probes=5)
    dimension, error = found.effective_dimension(1e-2)
    assert abs(dimension - (values / (values + 1e-2)).sum()) < 4 * error


def test_nothing_global_is_touched_and_seeds_repeat():
    K = with_eigenvalues(np.arange(1, 31.0))
    before, torch_before = numpy_state(), torch.get_rng_state()
    first, again, other = (spectral_density(K, steps=5, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.nodes, again.nodes)
    assert not torch.equal(first.nodes, other.nodes)
    assert numpy_state() == before
    assert torch.equal(torch.get_rng_state(), torch_before)
    # Each probe is another vector.
    assert not torch.equal(first.nodes[0], first.nodes[1])


def test_bad_input_is_refused(monkeypatch):
    for arguments, message in (({"steps": 0}, "steps is 0"), ({"probes": 0}, "probes is 0")):
        with pytest.raises(InvalidInput, match=message):
            spectral_density(np.eye(3), **arguments)
    with pytest.raises(InvalidInput, match="not symmetric"):
        spectral_density(aslinearoperator(np.triu(np.ones((4, 4)))))
    found = spectral_density(np.eye(3))
    with pytest.raises(InvalidInput, match="width"):
        found.curve(0.0)
    with pytest.raises(InvalidInput, match="ridge"):
        found.effective_dimension(0.0)
    monkeypatch.setitem(sys.modules, "curvlinops.papyan2020traces.spectrum", None)
    with pytest.raises(MissingDependency, match=r"tangency\[curvature\]"):
        spectral_density(np.eye(3))


def test_dictionary_text_and_figure():
    found = spectral_density(with_eigenvalues(DECADES), probes=1)
    assert isinstance(found, SpectralDensity)
    assert found.count(0.1)[1] == math.inf  # one probe has no scatter
    assert set(found.to_dict()) == {"nodes", "weights", "size", "floor"}
    assert "400 eigenvalues (1 probes, 64 steps)" in repr(found)
    pytest.importorskip("plotly")
    figure = found.figure(DECADES)
    histogram = figure.data[0]
    assert sum(histogram.y[1::2]) * 0.2 == pytest.approx(400)
