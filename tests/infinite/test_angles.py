"""Angles from versines, against the same functions in fifty digits."""

from __future__ import annotations

import mpmath  # torch brings it
import pytest
import torch

from tangency.infinite.angles import angle_and_integral, arcsine

VERSINES = (
    *(10.0**-k for k in (40, 30, 20, 15, 12, 9, 7, 5, 4, 3, 2, 1)),
    *(0.25, 0.5, 0.9, 0.999999, 1.0, 1.000001, 1.1, 1.5, 1.9, 1.99),
    *(2 - 10.0**-k for k in (3, 5, 7)),
    2.0,
)
TOLERANCE = {torch.float32: 8 * 2.0**-23, torch.float64: 8 * 2.0**-52}


def exact(versine: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """theta with 1 - cos theta = versine, and sin theta - theta cos theta."""
    with mpmath.workdps(120):
        v = mpmath.mpf(versine)
        theta = 2 * mpmath.asin(mpmath.sqrt(v / 2))
        return theta, mpmath.sin(theta) - theta * mpmath.cos(theta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_relative_accuracy(dtype: torch.dtype) -> None:
    """A few units of rounding from 1e-40 (an angle of 1e-20) to 2."""
    given = torch.tensor(VERSINES, dtype=dtype).clamp_min(torch.finfo(dtype).tiny)
    theta, integral = angle_and_integral(given)
    assert theta.dtype is dtype
    for v, angle, h in zip(given.tolist(), theta.tolist(), integral.tolist(), strict=True):
        true_angle, true_h = exact(v)
        assert abs(angle - true_angle) <= TOLERANCE[dtype] * true_angle
        # h is v^1.5: below the smallest normal number it has no digits to compare
        if true_h > torch.finfo(dtype).tiny:
            assert abs(h - true_h) <= TOLERANCE[dtype] * true_h


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ends(dtype: torch.dtype) -> None:
    theta, integral = angle_and_integral(torch.tensor([0.0, 2.0, -1e-7, 2.0 + 1e-6], dtype=dtype))
    half_turn = torch.tensor(torch.pi, dtype=dtype)
    assert theta[0] == theta[2] == integral[0] == integral[2] == 0
    assert torch.equal(theta[[1, 3]], half_turn.expand(2))
    assert torch.equal(integral[[1, 3]], half_turn.expand(2))


def test_monotone_across_the_joint() -> None:
    """The two branches meet at a right angle without a step down."""
    v = 1 + torch.linspace(-1e-12, 1e-12, 2001, dtype=torch.float64)
    for values in angle_and_integral(v):
        assert float(values.diff().min()) > -1e-15
        assert float(values.diff().max()) < 3e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_arcsine(dtype: torch.dtype, sign: float) -> None:
    """Next to +-1 the complement keeps the digits that the sine has lost."""
    with mpmath.workdps(60):
        for gap in (0.0, 1e-30, 1e-20, 1e-12, 1e-7, 1e-3, 0.3, 0.9, 1 - 1e-6):
            complement = torch.tensor(gap, dtype=dtype)
            squared = mpmath.mpf(float(complement))
            sine = mpmath.sqrt(1 - squared)
            got = arcsine(torch.tensor(sign * float(sine), dtype=dtype), complement)
            distance = float(torch.pi / 2 - sign * got.double())
            truth = mpmath.asin(mpmath.sqrt(squared))
            eps = float(torch.finfo(dtype).eps)
            assert abs(distance - truth) < 4 * eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_arcsine_of_small_numbers_is_absolutely_accurate(dtype: torch.dtype) -> None:
    sine = torch.tensor([-0.5, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.5], dtype=dtype)
    got = arcsine(sine, 1 - sine.double().square().to(dtype))
    truth = torch.asin(sine.double())
    assert float((got.double() - truth).abs().max()) < 4 * torch.finfo(dtype).eps
