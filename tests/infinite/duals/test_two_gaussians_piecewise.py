"""Functions of two Gaussians that are linear on cones: relu(g2 + relu(g1)) and its cousins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from two_gaussians_by_integration import Bent, bent_dual

from tangency.infinite.duals.piecewise import PiecewiseLinear
from tangency.infinite.duals.two_gaussians_cones import find_cones
from tangency.infinite.duals.two_gaussians_piecewise import PiecewiseLinearOfTwo

RELU = PiecewiseLinear(0.0, 1.0)
BLOCK = Bent(0.0, 1.0, 0.0, 1.0)
FUNCTIONS = {
    "relu": BLOCK,
    "leaky": Bent(0.1, 1.0, 0.2, 1.0),
    "abs": Bent(0.0, 0.7, -1.0, 1.0),
    "relu of abs": Bent(-1.0, 1.0, 0.0, 1.0),
}
# (s1, s2), (s1', s2'), (rho1, rho2)
CASES = [
    ((1.0, 1.0), (1.0, 1.0), (0.6, 0.3)),
    ((1.0, 2.0), (1.5, 0.7), (0.8, 0.95)),
    ((1.0, 1.0), (1.0, 0.5), (-0.7, 0.2)),
    ((0.3, 1.0), (2.0, 1.0), (0.9, -0.5)),
    ((1.0, 1.0), (1.0, 1.0), (0.0, 0.99)),
    ((1.0, 1.0), (1.0, 1.2), (-0.9, -0.95)),
]


@cache
def dual_of(function: Callable[[Tensor, Tensor], Tensor]) -> PiecewiseLinearOfTwo:
    cones = find_cones(function)
    assert cones is not None
    return PiecewiseLinearOfTwo(cones)


def number(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def kernels(
    dual: PiecewiseLinearOfTwo,
    sds: tuple[tuple[float, float], tuple[float, float]],
    rho: tuple[float, float],
    other: PiecewiseLinearOfTwo | None = None,
) -> np.ndarray:
    left = dual.moments(*map(number, sds[0]))
    right = (other or dual).moments(*map(number, sds[1]))
    versine, first, second = dual.pair(
        left, right, number(1 - rho[0]), number(1 - rho[1]), other=other
    )
    return torch.cat([(1 - versine) * left["sd"] * right["sd"], first, second]).numpy()


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nested_integrals(name: str, case: int) -> None:
    *sds, rho = CASES[case]
    function = FUNCTIONS[name]
    truth = bent_dual(function, tuple(sds), rho)
    assert kernels(dual_of(function), tuple(sds), rho) == pytest.approx(truth, abs=2e-9)


@pytest.mark.parametrize("case", range(3))
def test_two_different_functions(case: int) -> None:
    *sds, rho = CASES[case]
    left, right = FUNCTIONS["leaky"], FUNCTIONS["relu of abs"]
    truth = bent_dual(left, tuple(sds), rho, right)
    found = kernels(dual_of(left), tuple(sds), rho, dual_of(right))
    assert found == pytest.approx(truth, abs=2e-9)


def sum_of_two(sds: Tensor, versines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standard deviations and versine of g1 + g2 from those of g1, g2, without cancellation."""
    left, right = sds[0].square().sum(0).sqrt(), sds[1].square().sum(0).sqrt()
    # 1 - c / (q q') by the sine of the angle between (s1, s2) and (s1', s2').
    wedge = ((sds[0, 0] * sds[1, 1] - sds[0, 1] * sds[1, 0]) / (left * right)) ** 2
    cosine = (sds[0] * sds[1]).sum(0) / (left * right)
    return left, right, wedge / (1 + cosine) + (sds[0] * sds[1] * versines).sum(0) / (left * right)


@pytest.mark.parametrize("near", [0, -2, -4, -8])
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-1.0, 1.0), (0.3, 1.0)])
def test_function_of_the_sum(slopes: tuple[float, float], near: int) -> None:
    """phi(g1 + g2) has one Gaussian, and so a closed form; ratios close or not, versines too."""
    generator = torch.Generator().manual_seed(3)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    sds = torch.exp(uniform(2, 2, 200) - 0.5)
    sds[1] = sds[0] * torch.exp((uniform(2, 200) - 0.5) * 10.0**near)
    versines = 2 * uniform(2, 200) * 10.0**near
    one = PiecewiseLinear(*slopes)
    s, t, versine = sum_of_two(sds, versines)
    truth, slope = one.pair(one.moments(s), one.moments(t), versine)

    def function(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(a + b > 0, slopes[1] * (a + b), slopes[0] * (a + b))

    dual = dual_of(function)
    left, right = dual.moments(*sds[0]), dual.moments(*sds[1])
    found, first, second = dual.pair(left, right, *versines)
    torch.testing.assert_close(left["sd"], one.moments(s)["sd"], rtol=1e-13, atol=0)
    torch.testing.assert_close(left["mean"], one.mean(s), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(found, truth, rtol=1e-8, atol=0)
    torch.testing.assert_close(first, slope, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(second, slope, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_price_near_coincidence(name: str) -> None:
    """1 - K / (sd sd) is the integral of the A_m along the versines, to the last digits."""
    dual = dual_of(FUNCTIONS[name])
    side = dual.moments(number(1.0), number(0.6))
    roots, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(12))
    roots, weights = (roots + 1) / 2, weights / 2
    for versines in ((1e-3, 1e-5), (1e-9, 1e-6), (1e-14, 1e-14), (0.0, 1e-11)):
        # Slopes fall as the root of the versine: integrate over the root.
        shares = roots**2
        _, first, second = dual.pair(side, side, *(v * shares for v in versines))
        rate = versines[0] * first + 0.36 * versines[1] * second
        expected = float((2 * roots * weights * rate).sum() / side["sd"].square())
        found = dual.pair(side, side, *map(number, versines))[0]
        assert float(found) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_coincidence(name: str) -> None:
    function = FUNCTIONS[name]
    dual = dual_of(function)
    side = dual.moments(number(0.3, 1.0, 1.0), number(1.0, 1.0, 1e-3))
    versine, first, second = dual.pair(side, side, torch.zeros(3), torch.zeros(3))
    assert versine.tolist() == [0, 0, 0]
    for found, energy in ((first, "slope_energy_1"), (second, "slope_energy_2")):
        torch.testing.assert_close(found.double(), side[energy], rtol=1e-6, atol=0)
    # One-sided integrals over the angle, E r^2 = 2.
    angle = -math.pi + 2 * math.pi * (torch.arange(2**18, dtype=torch.float64) + 0.5) / 2**18
    g1, g2 = 0.3 * torch.cos(angle), torch.sin(angle)
    values = function(g1, g2)
    assert float(side["sd"][0] ** 2) == pytest.approx(float(2 * values.square().mean()), rel=1e-9)
    mean = math.sqrt(math.pi / 2) * float(values.mean())
    assert float(side["mean"][0]) == pytest.approx(mean, rel=1e-9)
    slopes = np.stack([function.outer(function.inner(g1.numpy())[0] + g2.numpy())[1]] * 2)
    slopes[0] *= function.inner(g1.numpy())[1]
    for m, mean_slope in enumerate(slopes.mean(axis=1)):
        assert float(side[f"slope_{m + 1}"][0]) == pytest.approx(mean_slope, abs=2e-5)
        energy = float(side[f"slope_energy_{m + 1}"][0])
        assert energy == pytest.approx((slopes[m] ** 2).mean(), abs=2e-5)


def test_one_gaussian_left() -> None:
    """Where s1 or s2 vanishes, relu(g2 + relu(g1)) is relu(g2) or relu(g1)."""
    dual = dual_of(BLOCK)
    versines = number(0.3, 1.0, 1.7)
    truth, slope = RELU.pair(RELU.moments(number(1.0)), RELU.moments(number(1.0)), versines)
    for zero in (0.0, 1e-12):
        for sds, versine, index in (
            ((1.0, zero), (versines, number(0.2)), 1),
            ((zero, 1.0), (number(0.2), versines), 2),
        ):
            side = dual.moments(*map(number, sds))
            assert float(side["sd"]) == pytest.approx(math.sqrt(0.5), rel=1e-10)
            found = dual.pair(side, side, *versine)
            torch.testing.assert_close(found[0], truth, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(found[index], slope, rtol=1e-10, atol=1e-10)


def test_zero_inputs_are_finite() -> None:
    dual = dual_of(BLOCK)
    zero, one = dual.moments(number(0.0), number(0.0)), dual.moments(number(1.0), number(1.0))
    assert float(zero["sd"]) == 0
    for left, right in ((zero, zero), (zero, one)):
        for versine in itertools.product((0.0, 1.0, 2.0), repeat=2):
            parts = dual.pair(left, right, *map(number, versine))
            assert all(bool(torch.isfinite(part)) for part in parts)


def test_anticorrelation_in_closed_form() -> None:
    """abs(g1 + g2) does not see the sign of both; relu(x) relu(-x) = 0."""
    dual = dual_of(lambda a, b: torch.relu(a + b))
    side = dual.moments(number(0.8), number(1.1))
    versine, first, _ = dual.pair(side, side, number(2.0), number(2.0))
    assert float(versine) == pytest.approx(1, abs=1e-14)
    assert float(first) == pytest.approx(0, abs=1e-14)


@given(
    st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    st.lists(st.floats(0, 2), min_size=2, max_size=2),
    st.sampled_from(sorted(FUNCTIONS)),
)
@settings(max_examples=40, deadline=None)
def test_symmetry_and_cauchy_schwarz(logs: list[float], versines: list[float], name: str) -> None:
    dual = dual_of(FUNCTIONS[name])
    s = [number(math.exp(x)) for x in logs]
    left, right = dual.moments(s[0], s[1]), dual.moments(s[2], s[3])
    given_versines = [number(v) for v in versines]
    found = dual.pair(left, right, *given_versines)
    for a, b in zip(found, dual.pair(right, left, *given_versines), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    assert -1e-12 <= float(found[0]) <= 2 + 1e-12
    for m in (1, 2):
        bound = left[f"slope_energy_{m}"] * right[f"slope_energy_{m}"]
        assert float(found[m].abs()) <= float(bound.sqrt()) * (1 + 1e-7) + 1e-12


def test_monte_carlo() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 1_000_000, generator=generator, dtype=torch.float64)
    rho, sds = (0.9, 0.4), ((1.0, 1.3), (0.8, 1.5))
    g1 = sds[0][0] * z[0], sds[1][0] * (rho[0] * z[0] + math.sqrt(1 - rho[0] ** 2) * z[1])
    g2 = sds[0][1] * z[2], sds[1][1] * (rho[1] * z[2] + math.sqrt(1 - rho[1] ** 2) * z[3])
    u, v = (torch.maximum(a, b - 0.5 * a) for a, b in zip(g1, g2, strict=True))
    upper = [b - 0.5 * a > a for a, b in zip(g1, g2, strict=True)]
    slopes = [(torch.where(up, -0.5, 1.0), up.double()) for up in upper]
    samples = torch.stack([u * v, *(a * b for a, b in zip(*slopes, strict=True))])
    dual = dual_of(lambda a, b: torch.maximum(a, b - 0.5 * a))
    error = (samples.mean(1).numpy() - kernels(dual, sds, rho)) / (samples.std(1).numpy() / 1e3)
    assert np.abs(error).max() < 3.5


def test_float32() -> None:
    generator = torch.Generator().manual_seed(1)
    versines = 10 ** (-6 * torch.rand(2, 300, generator=generator, dtype=torch.float64))
    sds = torch.exp(torch.randn(4, 300, generator=generator, dtype=torch.float64) / 3)
    dual = dual_of(BLOCK)
    left, right = dual.moments(sds[0], sds[1]), dual.moments(sds[2], sds[3])
    narrow = versines.float()
    exact = dual.pair(left, right, *narrow.double())
    for a, b in zip(dual.pair(left, right, *narrow), exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=5e-6, atol=1e-7)


def test_pieces_are_the_whole() -> None:
    generator = torch.Generator().manual_seed(2)
    versines = torch.rand(2, 2, 150, 120, generator=generator, dtype=torch.float64)
    sds = torch.rand(4, 2, 150, generator=generator, dtype=torch.float64)
    dual = dual_of(BLOCK)
    left = dual.moments(sds[0, :, :, None], sds[1, :, :, None])
    right = dual.moments(sds[2, :, None, :120], sds[3, :, None, :120])
    whole = dual.pair(left, right, *versines)
    row = dual.moments(sds[0, 1, 7:8], sds[1, 1, 7:8])
    parts = dual.pair(row, dual.moments(sds[2, 1, :120], sds[3, 1, :120]), *versines[:, 1, 7])
    for a, b in zip(whole, parts, strict=True):
        assert a.shape == (2, 150, 120)
        torch.testing.assert_close(a[1, 7], b, rtol=1e-13, atol=1e-15)


def _outputs(*numbers: Tensor) -> tuple[Tensor, ...]:
    dual = dual_of(FUNCTIONS["leaky"])
    left, right = dual.moments(*numbers[:2]), dual.moments(*numbers[2:4])
    return (*dual.pair(left, right, *numbers[4:]), left["sd"], left["mean"])


@pytest.mark.parametrize("values", [(1.0, 0.7, 1.3, 0.9, 0.3, 0.8), (1.0, 1.0, 1.0, 1.2, 1.6, 0.1)])
def test_derivatives(values: tuple[float, ...]) -> None:
    inputs = tuple(number(v).requires_grad_() for v in values)
    assert torch.autograd.gradcheck(_outputs, inputs, eps=1e-6, atol=1e-6)
    assert torch.autograd.gradgradcheck(_outputs, inputs, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize(
    "values",
    [
        (1.0, 0.7, 1.0, 0.7, 0.0, 0.0),
        (1.0, 0.7, 1.0, 0.7, 0.0, 0.5),
        (1.0, 0.7, 1.1, 0.7, 2.0, 2.0),
        (0.0, 0.0, 1.0, 1.0, 1.0, 1.0),
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    ],
)
def test_derivatives_are_finite(values: tuple[float, ...]) -> None:
    inputs = tuple(number(v).requires_grad_() for v in values)
    outputs = _outputs(*inputs)
    first = torch.autograd.grad(sum(o.sum() for o in outputs), inputs, create_graph=True)
    assert all(bool(torch.isfinite(g).all()) for g in first)
    second = torch.autograd.grad(sum(g.sum() for g in first), inputs, allow_unused=True)
    assert all(bool(torch.isfinite(g).all()) for g in second if g is not None)


def test_slope_of_the_versine_at_coincidence() -> None:
    """Price's theorem there: d versine_out / d versine_m = s_m^2 A_m / E psi^2."""
    dual = dual_of(BLOCK)
    side = dual.moments(number(1.0), number(0.7))
    versines = [number(0.0).requires_grad_() for _ in range(2)]
    versine = dual.pair(side, side, *versines)[0]
    slopes = torch.autograd.grad(versine.sum(), versines)
    for m, (slope, q) in enumerate(zip(slopes, (1.0, 0.49), strict=True), start=1):
        expected = q * side[f"slope_energy_{m}"] / side["sd"] ** 2
        torch.testing.assert_close(slope, expected, rtol=1e-10, atol=0)


def _network(width: int, seed: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs' covariance and NTK of v . relu(W2 h + h), h = relu(W1 x), of one draw."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    d = x.shape[1]
    w1, w2, v = normal(width, d), normal(width, width), normal(width)
    g1 = x @ w1.T / math.sqrt(d)
    h = F.relu(g1)
    total = h @ w2.T / math.sqrt(width) + h
    u = F.relu(total)
    back = (total > 0) * v / math.sqrt(width)
    to_h = (back + back @ w2 / math.sqrt(width)) * (g1 > 0)
    covariance = u @ u.T / width
    ntk = covariance + (back @ back.T) * (h @ h.T) / width + (to_h @ to_h.T) * (x @ x.T) / d
    return covariance, ntk


def test_residual_block_at_finite_width() -> None:
    """K and A1 T1 + A2 T2 beside the mean of randomly drawn networks."""
    x = torch.tensor([[1.0, 0.2, -0.5], [0.7, -0.6, 0.4]], dtype=torch.float64)
    draws = [_network(600, seed, x) for seed in range(60)]
    k1 = x @ x.T / 3
    s1 = k1.diagonal().sqrt()
    versine1 = 1 - k1 / (s1[:, None] * s1)
    # g2 = W2 h has the covariance E h h' and the NTK E h h' + kappa_dot T1.
    relu = RELU.moments(s1)["sd"]
    versine2, kappa_dot = RELU.pair({}, {}, versine1)
    k2 = (1 - versine2) * relu[:, None] * relu
    side = dual_of(BLOCK).moments(s1, relu)
    left = {name: t.unsqueeze(-1) for name, t in side.items()}
    right = {name: t.unsqueeze(-2) for name, t in side.items()}
    versine, first, second = dual_of(BLOCK).pair(left, right, versine1, versine2)
    covariance = (1 - versine) * left["sd"] * right["sd"]
    ntk = covariance + first * k1 + second * (k2 + kappa_dot * k1)
    for drawn, expected in zip(zip(*draws, strict=True), (covariance, ntk), strict=True):
        samples = torch.stack(drawn)
        error = samples.std(0) / math.sqrt(len(draws))
        assert bool(((samples.mean(0) - expected).abs() <= 3 * error + 0.004 * expected).all())
