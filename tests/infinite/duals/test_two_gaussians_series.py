"""Smooth functions of two Gaussians: gates, nested gelu."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from dual_by_integration import dual as integrated
from torch import Tensor
from two_gaussians_by_integration import smooth_dual

from tangency.errors import UnsupportedOperation
from tangency.infinite.duals.smooth import Gelu
from tangency.infinite.duals.two_gaussians_series import SmoothOfTwo

FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu block": lambda a, b: F.gelu(b + F.gelu(a)),
    "tanh block": lambda a, b: torch.tanh(b + torch.tanh(a)),
    "gate": lambda a, b: F.silu(a) * b + a,
    "polynomial": lambda a, b: a**2 * b + b + 1,
}


def number(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "case",
    [((0.6, 0.6), (0.6, 0.6), (0.6, 0.3)), ((0.5, 1.0), (0.8, 0.4), (-0.5, 0.95))],
)
def test_four_nested_integrals(name: str, case: tuple[tuple[float, float], ...]) -> None:
    sds, rho = (case[0], case[1]), case[2]
    truth = smooth_dual(FUNCTIONS[name], sds, (rho[0], rho[1]))
    dual = SmoothOfTwo(FUNCTIONS[name])
    left, right = (dual.moments(number(a), number(b)) for a, b in sds)
    versine, *slopes = dual.pair(left, right, *(number(1 - r) for r in rho))
    found = torch.cat([(1 - versine) * left["sd"] * right["sd"], *slopes])
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9)
    # The same with float32 versines.
    again = dual.pair(left, right, *(number(1 - r).float() for r in rho))
    assert all(a.dtype == torch.float32 for a in again)
    assert float(again[1]) == pytest.approx(float(truth[1]), abs=1e-6)


@pytest.mark.parametrize("near", [0, -2, -5, -9])
def test_function_of_the_sum(near: int) -> None:
    """gelu(g1 + g2) has one Gaussian, and so a closed form; also where sides nearly coincide."""
    generator = torch.Generator().manual_seed(5)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    s = 0.3 + 0.2 * uniform(2, 40)
    t = s * (1 + (uniform(2, 40) - 0.5) * 10.0**near)
    versines = uniform(2, 40) * 10.0**near
    norms = [x.square().sum(0).sqrt() for x in (s, t)]
    norm = norms[0] * norms[1]
    wedge = ((s[0] * t[1] - s[1] * t[0]) / norm) ** 2
    versine = wedge / (1 + (s * t).sum(0) / norm) + (s * t * versines).sum(0) / norm
    one, dual = Gelu(), SmoothOfTwo(lambda a, b: F.gelu(a + b))
    truth, slope = one.pair(one.moments(norms[0]), one.moments(norms[1]), versine)
    left, right = dual.moments(s[0], s[1]), dual.moments(t[0], t[1])
    found = dual.pair(left, right, *versines)
    torch.testing.assert_close(left["sd"], one.moments(norms[0])["sd"], rtol=1e-12, atol=0)
    torch.testing.assert_close(left["mean"], one.mean(norms[0]), rtol=1e-12, atol=0)
    torch.testing.assert_close(found[0], truth, rtol=1e-7, atol=0)
    for a in found[1:]:
        torch.testing.assert_close(a, slope, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_coincidence(name: str) -> None:
    """The diagonal is that of one-sided integrals, also where the series is cut short."""
    function = FUNCTIONS[name]
    dual = SmoothOfTwo(function)
    side = dual.moments(number(0.0, 1.0, 2.5), number(0.0, 1.3, 0.2))
    versine, first, second = dual.pair(side, side, torch.zeros(3), torch.zeros(3))
    assert versine.tolist() == [0, 0, 0]
    torch.testing.assert_close(first.double(), side["slope_energy_1"], rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(second.double(), side["slope_energy_2"], rtol=1e-6, atol=1e-30)
    z = torch.arange(-9, 9, 0.02, dtype=torch.float64)
    w = 0.02 * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    values = function(2.5 * z[:, None].expand(len(z), len(z)), 0.2 * z.expand(len(z), len(z)))
    assert float(side["sd"][2] ** 2) == pytest.approx(float(w @ values**2 @ w), rel=1e-10)
    assert float(side["mean"][2]) == pytest.approx(float(w @ values @ w), rel=1e-10)
    at_zero = abs(float(function(number(0.0), number(0.0))))
    assert float(side["sd"][0]) == pytest.approx(at_zero, abs=1e-25)


def test_truncation_bounds_the_error() -> None:
    """tanh(g1 + g2) of variance 4, beside the nested integrals for one Gaussian."""
    dual = SmoothOfTwo(lambda a, b: torch.tanh(a + b))
    sd = math.sqrt(2.0)
    side = dual.moments(number(sd), number(sd))
    bound = float(dual.truncation(side) * (side["slope_energy_1"] + side["slope_energy_2"]))
    assert 1e-6 < bound < 1e-2
    for versine in (0.0, 1e-2, 0.7):
        kappa, slope = integrated(torch.tanh, 2.0, 2.0, versine)
        found, *slopes = dual.pair(side, side, number(versine), number(versine))
        left_out = bound * (1 - versine) ** 96 + 1e-9
        for a in slopes:
            assert float(a) == pytest.approx(slope, abs=left_out)
        moment = float((1 - found) * side["sd"] ** 2)
        assert moment == pytest.approx(kappa, abs=4 * left_out / 96)


@pytest.mark.parametrize(
    "function",
    [lambda a, b: F.relu6(b + F.relu(a)), lambda a, b: F.relu(b + F.gelu(a)), lambda a, b: a.abs()],
)
def test_kinks_are_refused(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedOperation, match="sample"):
        SmoothOfTwo(function).moments(number(1.0), number(1.0))


def _outputs(*numbers: Tensor) -> tuple[Tensor, ...]:
    dual = SmoothOfTwo(FUNCTIONS["gate"])
    left, right = dual.moments(*numbers[:2]), dual.moments(*numbers[2:4])
    return (*dual.pair(left, right, *numbers[4:]), left["sd"], left["mean"])


def test_derivatives() -> None:
    inputs = tuple(number(v).requires_grad_() for v in (0.5, 0.4, 0.3, 0.6, 0.3, 0.8))
    assert torch.autograd.gradcheck(_outputs, inputs, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("values", [(0.5, 0.4, 0.5, 0.4, 0.0, 0.0), (0.0, 0.0, 0.5, 0.4, 1.0, 2.0)])
def test_derivatives_are_finite(values: tuple[float, ...]) -> None:
    inputs = tuple(number(v).requires_grad_() for v in values)
    outputs = _outputs(*inputs)
    slopes = torch.autograd.grad(sum(o.sum() for o in outputs), inputs)
    assert all(bool(torch.isfinite(g).all()) for g in slopes)
