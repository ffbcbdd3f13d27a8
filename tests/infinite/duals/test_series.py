"""The Hermite series against nested integrals, closed forms and extended precision."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import mpmath
import pytest
import torch
import torch.nn.functional as F
from dual_by_integration import dual
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tangency.errors import UnsupportedOperation
from tangency.infinite.duals.coincidence import coincidence_terms, near_coincidence
from tangency.infinite.duals.expansion import expand, truncation
from tangency.infinite.duals.series import cross, pair

SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "silu": F.silu,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
    "x*sigmoid(x)": lambda x: x * torch.sigmoid(x),
}
VERSINES = (2.0, 1.5, 1.0, 0.7, 0.1, 0.01, 1e-4, 0.0)
SDS = ((1.0, 1.0), (3.0, 3.0), (0.1, 3.0))


def both(
    function: Callable[[Tensor], Tensor],
    sds: tuple[float, float],
    versines: tuple[float, ...],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """kappa and kappa_dot for all versines, and the scales of their errors."""
    left, right = (expand(function, torch.tensor([sd], dtype=dtype)) for sd in sds)
    versine_out, kappa_dot = pair(left, right, torch.tensor(versines, dtype=dtype))
    norm = left["sd"].double() * right["sd"].double()
    slopes = (left["slope_energy"].double() * right["slope_energy"].double()).sqrt()
    return (1 - versine_out.double()) * norm, kappa_dot.double(), norm, slopes


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("sds", SDS)
def test_smooth_functions(name: str, sds: tuple[float, float]) -> None:
    truth = torch.tensor([dual(SMOOTH[name], *sds, t) for t in VERSINES], dtype=torch.float64)
    for dtype, for_kappa, for_slopes in (
        (torch.float64, 1e-10, 2e-9),
        (torch.float32, 1e-5, 2e-5),
    ):
        kappa, kappa_dot, norm, slopes = both(SMOOTH[name], sds, VERSINES, dtype)
        assert ((kappa - truth[:, 0]).abs() / norm).max() < for_kappa
        assert ((kappa_dot - truth[:, 1]).abs() / slopes).max() < for_slopes


def test_closed_forms() -> None:
    versine = torch.tensor(VERSINES, dtype=torch.float64)
    q1, q2 = 1.3**2, 0.4**2
    c = 1.3 * 0.4 * (1 - versine)
    closed = {
        torch.erf: 2
        / math.pi
        * torch.atan2(2 * c, ((1 + 2 * q1) * (1 + 2 * q2) - 4 * c**2).sqrt()),
        torch.sin: math.exp(-(q1 + q2) / 2) * torch.sinh(c),
        torch.exp: torch.exp((q1 + q2) / 2 + c),
    }
    for function, expected in closed.items():
        kappa, _, norm, _ = both(function, (1.3, 0.4), VERSINES, torch.float64)
        assert ((kappa - expected).abs() / norm).max() < 1e-12


def test_polynomials_are_finite() -> None:
    side = expand(lambda x: 2 + x - x**3, torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64))
    assert len(side["coefficients"]) == 3
    assert float(truncation(side).max()) < 1e-26
    covariance, slopes = cross(side, side, torch.tensor(0.3, dtype=torch.float64))
    q, c = 4.0, 4.0 * 0.7
    expected = 4 + c - 2 * 3 * q * c + 9 * q * q * c + 6 * c**3
    assert covariance[2].item() == pytest.approx(expected, rel=1e-13)
    assert slopes[2].item() == pytest.approx(1 - 6 * q + 9 * (q * q + 2 * c * c), rel=1e-13)


def exact_versine(sd1: float, sd2: float, versine: float) -> float:
    """versine_out of tanh by Mehler's series in 40 digits (sd small: it converges fast)."""
    with mpmath.workdps(40):
        ends = [-12, -6, -3, -1, 0, 1, 3, 6, 12]
        degrees = range(1, 40, 2)

        def row(sd: float) -> list[mpmath.mpf]:
            s = mpmath.mpf(sd)
            scale = [
                mpmath.mpf(2) ** (-mpmath.mpf(n) / 2) / mpmath.sqrt(mpmath.factorial(n))
                for n in degrees
            ]
            x, w = zip(*_gauss_legendre(ends), strict=True)
            values = [mpmath.tanh(s * z) * v * mpmath.npdf(z) for z, v in zip(x, w, strict=True)]
            return [
                k
                * mpmath.fsum(
                    f * mpmath.hermite(n, z / mpmath.sqrt(2))
                    for f, z in zip(values, x, strict=True)
                )
                for n, k in zip(degrees, scale, strict=True)
            ]

        a, b = row(sd1), row(sd2)
        norm = mpmath.sqrt(mpmath.fsum(t * t for t in a) * mpmath.fsum(t * t for t in b))
        rho = 1 - mpmath.mpf(versine)
        terms = (p * q * rho**n for p, q, n in zip(a, b, degrees, strict=True))
        return float(1 - mpmath.fsum(terms) / norm)


def _gauss_legendre(ends: list[int]) -> list[tuple[mpmath.mpf, mpmath.mpf]]:
    rule = mpmath.calculus.quadrature.GaussLegendre(mpmath.mp).calc_nodes(3, 140)
    return [
        (mpmath.mpf(p + q) / 2 + x * (q - p) / 2, w * (q - p) / 2)
        for p, q in itertools.pairwise(ends)
        for x, w in rule
    ]


@pytest.mark.parametrize("versine", [0.0, 1e-12, 1e-7, 1e-3])
def test_near_duplicates_lose_nothing_in_float32(versine: float) -> None:
    sds = torch.tensor([0.4, 0.4 * (1 + 1e-6), 0.4 * 1.003, 0.4 * 1.02], dtype=torch.float32)
    side = expand(torch.tanh, sds)
    left = {key: value[..., :1] for key, value in side.items()}
    given = torch.full((4,), versine, dtype=torch.float32)
    versine_out, kappa_dot = pair(left, side, given)
    closed = near_coincidence(
        left | {k: v[:1] for k, v in coincidence_terms(torch.tanh, sds).items()},
        side | coincidence_terms(torch.tanh, sds),
        given,
        1 - (1 - versine_out),
        kappa_dot,
    )
    expected = [exact_versine(float(sds[0]), float(s), float(given[0])) for s in sds]
    for i, truth in enumerate(expected):
        assert float(versine_out[i]) == pytest.approx(truth, rel=1e-4, abs=0.0)
        assert float(closed[i]) == pytest.approx(truth, rel=4e-4, abs=0.0)


def test_coincidence_is_exact() -> None:
    for function in (torch.tanh, F.relu6, F.elu):
        sd = torch.tensor([0.0, 1e-8, 0.3, 3.0], dtype=torch.float32)
        side = expand(function, sd)
        versine_out, kappa_dot = pair(side, side, torch.zeros(4))
        assert versine_out.tolist() == [0.0] * 4
        assert kappa_dot[1:].tolist() == pytest.approx(side["slope_energy"][1:].tolist(), rel=2e-6)


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid, F.relu6, F.elu, torch.square])
def test_zero_inputs(function: Callable[[Tensor], Tensor]) -> None:
    side = expand(function, torch.tensor([0.0, 1e-8, 1.0], dtype=torch.float64))
    assert float(side["sd"][0]) == pytest.approx(float(function(torch.zeros(()))), abs=0.0)
    columns = {key: value[..., None] for key, value in side.items()}
    versine = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    for out in pair(columns, columns, versine):
        assert bool(torch.isfinite(out).all())


def test_cross_of_two_functions() -> None:
    sds = (0.8, 1.7)
    for f, g, kinks in (
        (torch.tanh, F.silu, ()),
        (F.relu6, torch.tanh, (0.0, 6.0)),
        (F.elu, F.hardtanh, (-1.0, 0.0, 1.0)),
    ):
        left, right = (
            expand(h, torch.tensor([s], dtype=torch.float64))
            for h, s in zip((f, g), sds, strict=True)
        )
        for versine in (0.02, 0.6, 1.7):
            got = cross(left, right, torch.tensor([versine], dtype=torch.float64))
            truth = dual(f, *sds, versine, kinks, g)
            assert float(got[0]) == pytest.approx(truth[0], abs=1e-8)
            assert float(got[1]) == pytest.approx(truth[1], abs=1e-6)


def test_stated_truncation_bounds_the_error() -> None:
    sd = torch.tensor([2.0], dtype=torch.float64)
    full, short = expand(torch.tanh, sd), expand(torch.tanh, sd, terms=12)
    versine = torch.tensor([0.0, 0.01, 0.3, 1.2, 2.0], dtype=torch.float64)
    error = (pair(short, short, versine)[1] - pair(full, full, versine)[1]).abs()
    bound = truncation(short) * (1 - versine).abs() ** 12 * full["slope_energy"]
    assert bool((error <= bound + 1e-9).all())
    assert float(error[1]) > 1e-5


@pytest.mark.parametrize("function", [torch.tanh, F.elu])
def test_pair_is_traceable(function: Callable[[Tensor], Tensor]) -> None:
    side = expand(function, torch.tensor([0.5, 1.0]), terms=6)
    versine = torch.tensor([0.1, 1e-9])
    graph = make_fx(lambda s, t: pair(s, s, t))(side, versine)
    for traced, direct in zip(graph(side, versine), pair(side, side, versine), strict=True):
        assert torch.equal(traced, direct)


def test_infinite_values_are_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="infinite or NaN"):
        expand(lambda x: torch.exp(x**4), torch.tensor([3.0]))
