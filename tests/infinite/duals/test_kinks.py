"""Kinks: found where they are, none where there are none, and their duals to full accuracy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from dual_by_integration import dual
from scipy import integrate, special
from torch import Tensor, nn

from tangency import InfiniteKernel, Init
from tangency.errors import UnsupportedOperation
from tangency.infinite.duals import kinks as kinks_module
from tangency.infinite.duals.bivariate import orthant_probability, truncated_products
from tangency.infinite.duals.expansion import expand
from tangency.infinite.duals.kinks import KnownKinks, find_kinks
from tangency.infinite.duals.series import pair
from tangency.infinite.rescaled import rescaled

KINKED: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, ...]]] = {
    "relu": (F.relu, (0.0,)),
    "leaky": (F.leaky_relu, (0.0,)),
    "relu6": (F.relu6, (0.0, 6.0)),
    "hardtanh": (F.hardtanh, (-1.0, 1.0)),
    "selu": (F.selu, (0.0,)),
    "elu": (F.elu, (0.0,)),
    "hardswish": (F.hardswish, (-3.0, 3.0)),
    "relu^2": (lambda x: F.relu(x) ** 2, (0.0,)),
    "softshrink": (F.softshrink, (-0.5, 0.5)),
    "where": (lambda x: torch.where(x > 0.3, x, torch.sin(x) + 0.3 - math.sin(0.3)), (0.3,)),
}
VERSINES = (2.0, 1.5, 0.7, 0.1, 1e-4, 1e-7, 0.0)


@pytest.mark.parametrize("name", KINKED)
@pytest.mark.parametrize("sds", [(1.0, 1.0), (3.0, 3.0), (0.1, 3.0)])
def test_kinked_functions(name: str, sds: tuple[float, float]) -> None:
    function, kinks = KINKED[name]
    truth = torch.tensor([dual(function, *sds, t, kinks) for t in VERSINES], dtype=torch.float64)
    for dtype, for_kappa, for_slopes in (
        (torch.float64, 1e-8, 1e-6),
        (torch.float32, 1e-5, 1e-5),
    ):
        left, right = (expand(function, torch.tensor([sd], dtype=dtype)) for sd in sds)
        given = torch.tensor(VERSINES, dtype=dtype)
        versine_out, kappa_dot = (t.double() for t in pair(left, right, given))
        norm = left["sd"].double() * right["sd"].double()
        slopes = (left["slope_energy"].double() * right["slope_energy"].double()).sqrt()
        assert ((versine_out - 1 + truth[:, 0] / norm).abs()).max() < for_kappa
        assert ((kappa_dot - truth[:, 1]).abs() / slopes).max() < for_slopes


def test_a_side_that_does_not_reach_the_kink() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.tanh(x) + F.relu(x - 60.0)

    small, large = (expand(function, torch.tensor([sd], dtype=torch.float64)) for sd in (1.0, 30.0))
    assert "kink_places" not in small
    assert "kink_places" in large
    versine_out, _ = pair(small, large, torch.tensor([0.3], dtype=torch.float64))
    kappa = float((1 - versine_out) * small["sd"] * large["sd"])
    assert kappa == pytest.approx(dual(function, 1.0, 30.0, 0.3, (0.0, 60.0))[0], rel=1e-8)


@pytest.mark.parametrize("name", KINKED)
def test_positions(name: str) -> None:
    function, kinks = KINKED[name]
    found = find_kinks(function, torch.tensor([0.3, 1.0], dtype=torch.float64))
    assert found is not None
    assert found.positions == pytest.approx(kinks, abs=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        torch.tanh,
        F.silu,
        F.mish,
        F.gelu,
        F.softplus,
        lambda x: torch.sin(3 * x),
        lambda x: torch.tanh(5 * x),
        lambda x: x**3 - x,
    ],
)
def test_smooth_functions_have_none(function: Callable[[Tensor], Tensor]) -> None:
    for sd in (0.1, 1.0, 30.0):
        assert find_kinks(function, torch.tensor([sd], dtype=torch.float64)) is None


def test_a_jump_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match=r"jumps at x = -0\.5"):
        expand(F.hardshrink, torch.tensor([1.0]))


def test_constants_of_each_example_are_not_searched() -> None:
    shift = torch.tensor([0.0, 0.7], dtype=torch.float64)
    assert find_kinks(lambda x: F.relu(x + shift), torch.ones(2, dtype=torch.float64)) is None


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The half-widths of all searches that are made."""
    spans: list[float] = []
    search = kinks_module._search

    def counted(*args: object) -> object:
        spans.append(args[2])  # type: ignore[arg-type]
        return search(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(kinks_module, "_search", counted)
    return spans


def test_what_is_known_is_not_searched_again(searched: list[float]) -> None:
    known: KnownKinks = {}
    for sd in (0.1, 1.0, 30.0, 2.0, 30.0):
        at = torch.tensor([sd], dtype=torch.float64)
        found, anew = find_kinks(F.selu, at, known=known), find_kinks(F.selu, at)
        assert found is not None
        assert anew is not None
        assert found.positions == anew.positions
        assert torch.equal(found.jumps, anew.jumps)
    assert [span for span in searched if searched.count(span) == 1] == []
    assert searched.count(40.0) == 3 + 1  # three anew, and the first
    assert searched.count(300.0) == 2 + 1
    for sd in torch.linspace(5.0, 50.0, 100):
        find_kinks(torch.tanh, sd.double()[None], known=known)
    assert len(known) == kinks_module._SPANS_KEPT


def test_a_graph_is_searched_once_for_each_function(searched: list[float]) -> None:
    """Equal layers, other data and other scales of the weights share one search."""
    model = nn.Sequential(
        nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Mish(),
        nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1),
    ).double()  # fmt: skip
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = InfiniteKernel(model, x, compile=False)
    first = kernel.ntk(x[:4], x[4:])
    assert len(searched) == 2
    torch.testing.assert_close(kernel.ntk(x)[:4, 4:], first)
    alone = InfiniteKernel(model, x, init=Init.he(), compile=False)
    torch.testing.assert_close(rescaled(kernel, model, Init.he()).ntk(x), alone.ntk(x))
    assert len(searched) == 2 + 2  # those of the kernel that was recorded anew


def relu_versine(sd_ratio: float, versine: float) -> float:
    """1 - kappa / norm for relu, by the angle: FORMULAS 1.1 with kappa homogeneous in each sd."""
    angle = 2 * math.asin(math.sqrt(versine / 2))
    gap = angle**3 / 3 - angle**5 / 30 if angle < 0.1 else math.sin(angle) - angle * math.cos(angle)
    return versine - gap / math.pi


@pytest.mark.parametrize("versine", [1e-12, 1e-10, 3e-9, 1e-6, 1e-3])
def test_near_duplicates_of_relu_in_float32(versine: float) -> None:
    side = expand(F.relu, torch.tensor([0.7, 0.7 * (1 + 1e-6), 1.9]))
    left = {key: value[..., :1] for key, value in side.items()}
    got = pair(left, side, torch.full((3,), versine))[0]
    exact = relu_versine(1.0, float(torch.tensor(versine)))
    assert got.tolist() == pytest.approx([exact] * 3, rel=1e-5)


def test_orthant_probability() -> None:
    for a, b in ((0.0, 0.0), (1e-3, 0.4), (0.5, 0.5), (2.0, 0.4), (6.0, 5.0)):
        for versine in (1e-12, 1e-6, 1e-3, 0.5, 1.0, 1.99):
            rho, tau = 1 - versine, math.sqrt(versine * (2 - versine))
            cuts = [a + 12.0] + [(b + k * tau) / rho if rho else 3.0 for k in (-8, -3, 0, 3, 8)]
            ends = sorted({a, *(min(max(c, a), a + 12) for c in cuts)})
            truth = sum(
                integrate.quad(
                    lambda x, b=b, rho=rho, tau=tau: (
                        math.exp(-x * x / 2) * special.ndtr((rho * x - b) / tau)
                    ),
                    p,
                    q,
                    epsabs=1e-16,
                    epsrel=1e-13,
                )[0]
                for p, q in itertools.pairwise(ends)
            ) / math.sqrt(2 * math.pi)
            args = (torch.tensor(t, dtype=torch.float64) for t in (a, b, versine))
            assert float(orthant_probability(*args)) == pytest.approx(truth, abs=2e-15)


def test_truncated_products_differentiate_to_lower_ones() -> None:
    """Price: d T_mn / d rho = T_(m-1)(n-1)."""
    a, b, versine = (torch.tensor(t, dtype=torch.float64) for t in (0.4, 1.1, 0.3))
    step = 1e-5
    ahead, behind = (truncated_products(a, b, versine - h, 4) for h in (step, -step))
    table = truncated_products(a, b, versine, 4)
    for m in range(1, 5):
        for n in range(1, 5):
            difference = float(ahead[m, n] - behind[m, n]) / (2 * step)
            assert difference == pytest.approx(float(table[m - 1, n - 1]), rel=1e-7, abs=1e-10)
