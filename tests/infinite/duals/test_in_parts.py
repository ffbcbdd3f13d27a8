"""Expansions at many standard deviations are made in parts, with the same result."""

from __future__ import annotations

import pytest
import torch
from tests.infinite.allocations import Allocations
from torch.nn import functional as F

from tangency.infinite.duals import in_parts, two_gaussians_series
from tangency.infinite.duals.expansion import expand, expand_all
from tangency.infinite.duals.quadrature import PointwiseFunction
from tangency.infinite.duals.two_gaussians_series import SmoothOfTwo


def deviations(*shape: int, least: float = 0.3, most: float = 1.2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return least + (most - least) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def same(found: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    """But for what the series leave out, a root of rounding."""
    assert found.keys() == whole.keys()
    for name, values in whole.items():
        atol = 1e-7 if name in ("rest", "rests") else 1e-13
        torch.testing.assert_close(found[name], values, rtol=1e-11, atol=atol)


@pytest.mark.parametrize("function", [torch.tanh, F.silu, F.hardtanh, F.elu])
def test_a_series_in_parts_is_that_of_all(
    function: PointwiseFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    sd = deviations(7, 30, most=3.0)
    sd[0, 0] = 0
    whole = expand(function, sd)
    monkeypatch.setattr(in_parts, "PART", 16)
    found = expand_all(function, sd)
    same(found, whole)


def test_a_series_of_two_in_parts_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sd1, sd2 = deviations(5, 12), deviations(5, 12).flip(0)
    whole = SmoothOfTwo(lambda a, b: F.gelu(b + F.gelu(a))).moments(sd1, sd2)
    monkeypatch.setattr(in_parts, "PART", 16)
    monkeypatch.setattr(two_gaussians_series, "PART", 16)
    found = SmoothOfTwo(lambda a, b: F.gelu(b + F.gelu(a)), uniform=True).moments(sd1, sd2)
    same(found, whole)


@pytest.mark.parametrize("function", [torch.tanh, F.hardtanh])
def test_work_does_not_grow_with_the_standard_deviations(function: PointwiseFunction) -> None:
    peaks = []
    for count in (4096, 65536):
        with Allocations() as allocations:
            found = expand_all(function, deviations(count))
        held = sum(values.numel() * values.element_size() for values in found.values())
        peaks.append(allocations.peak - held)
    assert peaks[1] < peaks[0] + (1 << 20)
