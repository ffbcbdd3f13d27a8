"""Closed-form duals against nested integration, and the identities that tie them together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from dual_by_integration import dual, slope_of
from torch import Tensor, fx

from tangency.infinite.duals.activations import closed_form
from tangency.infinite.duals.coincidence import coincidence_terms
from tangency.infinite.duals.dual import Dual, SmoothDual
from tangency.infinite.duals.piecewise import PiecewiseLinear, Step
from tangency.infinite.duals.quadrature import gaussian_rule
from tangency.infinite.duals.smooth import Cos, Erf, Exp, Gelu, Sin

DOUBLE = torch.float64


@dataclass(frozen=True)
class Form:
    """A dual, its function and the function's kinks."""

    dual: Dual
    function: Callable[[Tensor], Tensor]
    kinks: tuple[float, ...] = ()


FORMS = {
    "relu": Form(PiecewiseLinear(0, 1), F.relu, (0.0,)),
    "leaky relu": Form(PiecewiseLinear(0.1, 1.0), lambda x: F.leaky_relu(x, 0.1), (0.0,)),
    "abs": Form(PiecewiseLinear(-1, 1), torch.abs, (0.0,)),
    "erf": Form(Erf(), torch.erf),
    "gelu": Form(Gelu(), F.gelu),
    "sin": Form(Sin(), torch.sin),
    "cos": Form(Cos(), torch.cos),
    "exp": Form(Exp(), torch.exp),
}
SMOOTH = [name for name, form in FORMS.items() if isinstance(form.dual, SmoothDual)]
# The integration reaches to nine standard deviations, too short for the exponential of 4 x.
SDS = ((0.4, 0.4), (1.0, 1.0), (2.0, 2.0), (0.3, 1.6), (0.1, 0.9), (1e-3, 1.0), (1e-3, 1e-3))
CASES = [(name, sds) for name in FORMS for sds in SDS if name != "exp" or sum(sds) <= 1]
VERSINES = (2.0, 1.7, 1.0, 0.5, 0.1, 1e-4, 1e-8, 0.0)


def evaluated(
    form: Dual, sd1: float, sd2: float, versines: tuple[float, ...], dtype: torch.dtype = DOUBLE
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Versine, kappa_dot and both output standard deviations, in double precision."""
    left, right = (form.moments(torch.tensor([sd], dtype=dtype)) for sd in (sd1, sd2))
    versine, slopes = form.pair(left, right, torch.tensor(versines, dtype=dtype))
    assert versine.dtype is slopes.dtype is dtype
    return versine.double(), slopes.double(), left["sd"].double(), right["sd"].double()


@pytest.mark.parametrize(("name", "sds"), CASES)
def test_against_integration(name: str, sds: tuple[float, float]) -> None:
    """At correlations from -1 to 1, .9999 among them, as accurate as the expansion at its joint."""
    form = FORMS[name]
    truth = torch.tensor([dual(form.function, *sds, t, form.kinks) for t in VERSINES], dtype=DOUBLE)
    energies = [dual(form.function, sd, sd, 0.0, form.kinks) for sd in sds]
    norm = math.sqrt(energies[0][0] * energies[1][0])
    steepness = math.sqrt(energies[0][1] * energies[1][1])
    for dtype, tolerance in ((DOUBLE, 1e-10), (torch.float32, 2e-6)):
        versine, slopes, sd1, sd2 = evaluated(form.dual, *sds, VERSINES, dtype)
        assert float(sd1 * sd2) == pytest.approx(norm, rel=tolerance)
        assert float((versine - 1 + truth[:, 0] / norm).abs().max()) < tolerance
        # phi' of a kinked function jumps: its mean is kappa_dot, also where x = y
        assert float((slopes - truth[:, 1]).abs().max()) < tolerance * steepness


def half_squared_distance(form: Form, sd1: float, sd2: float, versine: float) -> float:
    """1 - E phi(u) phi(v) / norms as half the squared distance of unit vectors: no cancellation.

    The trapezoidal rule is exact to rounding for these entire functions.
    """
    z = torch.arange(-10, 10, 0.04, dtype=DOUBLE)
    weights = torch.exp(-z.square() / 2) * 0.04 / math.sqrt(2 * math.pi)
    rho, tau = 1 - versine, math.sqrt(versine * (2 - versine))
    first, second = (
        form.function(sd1 * z)[:, None],
        form.function(sd2 * (rho * z[:, None] + tau * z)),
    )
    norms = [(weights * form.function(sd * z).square()).sum().sqrt() for sd in (sd1, sd2)]
    difference = first / norms[0] - second / norms[1]
    return float(0.5 * weights @ difference.square() @ weights)


@pytest.mark.parametrize("name", [*SMOOTH, "exp"])
@pytest.mark.parametrize("gap", [0.0, 1e-5])
def test_near_duplicates_in_float32(name: str, gap: float) -> None:
    """Versines of 1e-9, far below the precision of 1 - cosine, keep four digits."""
    form, sd = FORMS[name], 0.7
    given = float(torch.tensor(1e-9))
    sds = (float(torch.tensor(sd)), float(torch.tensor(sd * (1 + gap))))
    truth = half_squared_distance(form, *sds, given)
    versine, *_ = evaluated(form.dual, *sds, (given,), torch.float32)
    assert truth < 1e-8
    assert float(versine) == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_duplicates_are_exact(name: str) -> None:
    for dtype in (torch.float32, DOUBLE):
        for sd in (1e-6, 0.3, 1.0, 5.0):
            versine, *_ = evaluated(FORMS[name].dual, sd, sd, (0.0,), dtype)
            assert float(versine) == 0.0


@pytest.mark.parametrize("name", ["relu", "leaky relu", "abs"])
@pytest.mark.parametrize("versine", [1e-14, 1e-9, 1e-5])
def test_near_duplicates_of_kinked_functions(name: str, versine: float) -> None:
    """1 - kappa: v - (bend / half square) h with h = theta^3 / 3 to first order."""
    form = FORMS[name].dual
    assert isinstance(form, PiecewiseLinear)
    a, b = form.negative, form.positive
    got, slopes, *_ = evaluated(form, 0.7, 1.9, (versine,), torch.float32)
    given = float(torch.tensor(versine))
    theta = 2 * math.asin(math.sqrt(given / 2))
    kink = (b - a) ** 2 / (math.pi * (a**2 + b**2)) * (theta**3 / 3 - theta**5 / 30)
    assert float(got) == pytest.approx(given - kink, rel=1e-6)
    exact = (a**2 + b**2) / 2 - (b - a) ** 2 * theta / (2 * math.pi)
    assert float(slopes) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_near_coincidence_against_quadrature(name: str) -> None:
    """The elementary moments beside those of the numerical rule."""
    form = FORMS[name]
    sd = torch.tensor([0.05, 0.4, 1.0, 2.5], dtype=DOUBLE)
    near = form.dual.near(sd.square())
    terms = coincidence_terms(form.function, sd)
    metric = near.radial_metric(sd.square())
    torch.testing.assert_close(metric, terms["radial_metric"], rtol=1e-8, atol=1e-12)
    rule = gaussian_rule(sd)
    values = form.function(sd * rule.nodes)
    bends = slope_of(slope_of(form.function))(sd * rule.nodes)
    torch.testing.assert_close(
        near.curvature, sd.square() * rule.mean(bends**2), rtol=1e-11, atol=1e-15
    )
    torch.testing.assert_close(near.energy, rule.mean(values**2), rtol=1e-12, atol=0)
    q = sd.square()
    step = 1e-5 * q
    ahead, behind = form.dual.near(q + step), form.dual.near(q - step)
    for value, slope in (("energy", "energy_slope"), ("slope_energy", "slope_energy_slope")):
        difference = (getattr(ahead, value) - getattr(behind, value)) / (2 * step)
        torch.testing.assert_close(difference, getattr(near, slope), rtol=1e-6, atol=1e-9)
    _, slopes, *_ = evaluated(form.dual, 1.0, 1.0, (0.0,))
    assert float(slopes) == pytest.approx(float(near.slope_energy[2]), rel=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_means(name: str) -> None:
    form = FORMS[name]
    sd = torch.tensor([0.0, 0.3, 1.0, 2.0], dtype=DOUBLE)
    rule = gaussian_rule(sd, kinks=form.kinks)
    mean = form.dual.mean(sd)
    assert mean is not None
    truth = rule.mean(form.function(sd * rule.nodes))
    torch.testing.assert_close(mean, truth, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", [*FORMS, "sign"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_a_zero_input(name: str, dtype: torch.dtype) -> None:
    """No NaN, and the right values: phi(0)^2 and phi(0) phi(v)."""
    form = Step(-1.0, 1.0) if name == "sign" else FORMS[name].dual
    function = torch.sign if name == "sign" else FORMS[name].function
    for other in (0.0, 1.3):
        left, right = (form.moments(torch.tensor([sd], dtype=dtype)) for sd in (0.0, other))
        for versine in (0.0, 0.5, 1.0, 2.0):
            out, slopes = form.pair(left, right, torch.tensor([versine], dtype=dtype))
            assert bool(torch.isfinite(out).all())
            assert bool(torch.isfinite(slopes).all())
            mean = form.mean(torch.tensor([other], dtype=dtype))
            expected = float(function(torch.zeros(()))) * float(mean)
            kappa = float((1 - out) * left["sd"] * right["sd"])
            assert kappa == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_which_operations_have_a_closed_form() -> None:
    """By the very nodes that a recording has."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    aten = torch.ops.aten
    expected = {
        (aten.relu.default, ()): PiecewiseLinear(0.0, 1.0),
        (aten.leaky_relu.default, ()): PiecewiseLinear(0.01, 1.0),
        (aten.leaky_relu.default, (0.3,)): PiecewiseLinear(0.3, 1.0),
        (aten.abs.default, ()): PiecewiseLinear(-1.0, 1.0),
        (aten.sign.default, ()): Step(-1.0, 1.0),
        (aten.sgn.default, ()): Step(-1.0, 1.0),
        (aten.erf.default, ()): Erf(),
        (aten.gelu.default, ()): Gelu(),
        (aten.sin.default, ()): Sin(),
        (aten.cos.default, ()): Cos(),
        (aten.exp.default, ()): Exp(),
        (aten.tanh.default, ()): None,
    }
    for (target, extra), form in expected.items():
        assert closed_form(graph.call_function(target, (x, *extra))) == form
    approximate = graph.call_function(aten.gelu.default, (x,), {"approximate": "tanh"})
    assert closed_form(approximate) is None


# Identities of FORMULAS, section 3, item 1.


def kappa(form: Dual, sd1: float, sd2: float, versines: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    versine, slopes, a, b = evaluated(form, sd1, sd2, versines)
    return (1 - versine) * a * b, slopes


def test_relu_at_right_angles_and_at_the_ends() -> None:
    values, slopes = kappa(PiecewiseLinear(0, 1), 0.8, 1.5, (1.0, 0.0, 2.0))
    product = 0.8 * 1.5
    assert values.tolist() == pytest.approx([product / (2 * math.pi), product / 2, 0], abs=1e-14)
    assert slopes.tolist() == pytest.approx([0.25, 0.5, 0], abs=1e-14)


def test_abs_relu_and_the_identity() -> None:
    """ReLU = (identity + abs) / 2, and a x + b |x| for the leaky ones."""
    correlation = 1 - torch.tensor(VERSINES, dtype=DOUBLE)
    c = 0.8 * 1.5 * correlation
    of_abs, slopes_abs = kappa(PiecewiseLinear(-1, 1), 0.8, 1.5, VERSINES)
    for low, high in ((0.0, 1.0), (0.1, 1.0), (2.0, -0.5)):
        even, odd = (high - low) / 2, (high + low) / 2
        values, slopes = kappa(PiecewiseLinear(low, high), 0.8, 1.5, VERSINES)
        torch.testing.assert_close(values, odd**2 * c + even**2 * of_abs, rtol=0, atol=1e-14)
        torch.testing.assert_close(slopes, odd**2 + even**2 * slopes_abs, rtol=0, atol=1e-14)


def test_equal_slopes_are_linear() -> None:
    values, slopes = kappa(PiecewiseLinear(3.0, 3.0), 0.8, 1.5, VERSINES)
    c = 0.8 * 1.5 * (1 - torch.tensor(VERSINES, dtype=DOUBLE))
    torch.testing.assert_close(values, 9 * c)
    assert slopes.tolist() == [9.0] * len(VERSINES)


def test_homogeneity() -> None:
    small, large = (kappa(PiecewiseLinear(0, 1), 0.4 * t, t, VERSINES)[0] for t in (1.0, 30.0))
    torch.testing.assert_close(large, 900 * small)


@pytest.mark.parametrize("form", [Erf(), Sin(), Step(-1.0, 1.0)], ids=repr)
def test_odd_functions_have_odd_kernels(form: Dual) -> None:
    versines = (2.0, 1.9, 1.3, 1.0, 0.7, 0.1, 0.0)
    values, slopes = kappa(form, 0.8, 1.5, versines)
    torch.testing.assert_close(values, -values.flip(0), rtol=0, atol=2e-15)
    torch.testing.assert_close(slopes, slopes.flip(0), rtol=1e-13, atol=1e-15)


def test_sine_and_cosine() -> None:
    """Together they depend on the difference only."""
    c = 0.8 * 1.5 * (1 - torch.tensor(VERSINES, dtype=DOUBLE))
    total = kappa(Sin(), 0.8, 1.5, VERSINES)[0] + kappa(Cos(), 0.8, 1.5, VERSINES)[0]
    exact = torch.exp(c - (0.8**2 + 1.5**2) / 2)
    torch.testing.assert_close(total, exact, rtol=1e-13, atol=0)


def test_gelu_and_its_mirror_image() -> None:
    """x Phi(x) - (-x) Phi(-x) = x: kappa(u, v) - kappa(u, -v) = cov(u, gelu v) = c / 2."""
    values, _ = kappa(Gelu(), 0.8, 1.5, (0.3, 1.7))
    assert float(values[0] - values[1]) == pytest.approx(0.8 * 1.5 * 0.7 / 2, rel=1e-13)


def test_the_sign() -> None:
    values, slopes = kappa(Step(-1.0, 1.0), 0.8, 1.5, (0.0, 1.0, 2.0, 0.5))
    assert values.tolist() == pytest.approx([1, 0, -1, 1 - 2 * math.acos(0.5) / math.pi], abs=1e-14)
    assert slopes.tolist() == [0.0] * 4


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 0.0), (-2.0, 0.5)])
def test_steps_are_a_constant_and_a_sign(low: float, high: float) -> None:
    values, slopes = kappa(Step(low, high), 0.8, 1.5, VERSINES)
    middle, half = (low + high) / 2, (high - low) / 2
    of_sign = kappa(Step(-1.0, 1.0), 0.8, 1.5, VERSINES)[0]
    torch.testing.assert_close(values, middle**2 + half**2 * of_sign, rtol=0, atol=1e-14)
    assert slopes.tolist() == [0.0] * len(VERSINES)
    sd = torch.tensor([0.3], dtype=DOUBLE)
    assert float(Step(low, high).mean(sd)) == middle  # P(x > 0) = 1 / 2


@pytest.mark.parametrize("name", FORMS)
def test_price(name: str) -> None:
    """kappa_dot = d kappa / d c."""
    form, step, versines = FORMS[name].dual, 1e-5, (1.6, 1.0, 0.4)
    ahead, behind = (
        kappa(form, 0.8, 1.5, tuple(v + shift for v in versines))[0] for shift in (-step, step)
    )
    slope = (ahead - behind) / (2 * step * 0.8 * 1.5)
    torch.testing.assert_close(slope, kappa(form, 0.8, 1.5, versines)[1], rtol=1e-7, atol=1e-9)
