"""Which functions of two Gaussians are linear on cones, and between which rays."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tangency.errors import UnsupportedOperation
from tangency.infinite.duals.two_gaussians import dual_of_two
from tangency.infinite.duals.two_gaussians_cones import find_cones
from tangency.infinite.duals.two_gaussians_piecewise import PiecewiseLinearOfTwo
from tangency.infinite.duals.two_gaussians_series import SmoothOfTwo

_H = math.sqrt(0.5)


def test_basic_block() -> None:
    cones = find_cones(lambda a, b: F.relu(b + F.relu(a)))
    assert cones is not None
    assert cones.rays == ((pytest.approx(_H), pytest.approx(-_H)), (0.0, 1.0), (-1.0, 0.0))
    assert cones.jumps == ((1.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
    assert cones.beside == ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    assert set(cones.to_dict()) == {"rays", "jumps", "beside"}


def test_maximum_and_linear() -> None:
    cones = find_cones(torch.maximum)
    assert cones is not None
    assert [tuple(round(x, 12) for x in ray) for ray in cones.rays] == [
        (-round(_H, 12), -round(_H, 12)),
        (round(_H, 12), round(_H, 12)),
    ]
    linear = find_cones(lambda a, b: 2 * a - b)
    assert linear is not None
    assert linear.rays == ()
    assert set(linear.beside) == {(2.0, -1.0)}


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: torch.tanh(a + b),
        lambda a, b: F.relu6(b + F.relu(a)),
        lambda a, b: F.relu(b + F.relu(a) + 1e-6),
        lambda a, b: a * b,
        lambda a, b: F.silu(a) * b + a,
        lambda a, b: torch.sqrt(a**2 + b**2),
        lambda a, b: torch.zeros_like(a),
    ],
)
def test_others(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert find_cones(function) is None


def test_the_rule_chosen() -> None:
    assert isinstance(dual_of_two(lambda a, b: F.relu(b + F.relu(a))), PiecewiseLinearOfTwo)
    assert isinstance(dual_of_two(lambda a, b: F.silu(a) * b + a), SmoothOfTwo)


def test_a_jump_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="jumps along the direction"):
        find_cones(lambda a, b: torch.where(b > 0, a, torch.zeros_like(a)))


def test_constants_per_example() -> None:
    slopes = torch.tensor([[0.1], [0.2]], dtype=torch.float64)
    same = torch.full((1, 1), 0.5, dtype=torch.float64)
    assert find_cones(lambda a, b: F.relu(b + slopes * a), dimensions=2) is None
    cones = find_cones(lambda a, b: F.relu(b + same * a), dimensions=2)
    assert cones is not None
    assert len(cones.rays) == 2
