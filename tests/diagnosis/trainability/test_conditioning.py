"""Condition number of the NTK against depth: the recursion by hand, and its limits."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from tests.diagnosis.trainability.recursion import deep, dense, step
from torch import nn

from tangency import Init
from tangency.diagnosis.trainability import ntk_against_depth
from tangency.errors import InvalidInput


def equal_states(m, q, c, width=16):
    """m states of length q and mutual correlation c."""
    gram = torch.full((m, m), c, dtype=torch.float64).fill_diagonal_(1.0)
    rows = torch.zeros(m, width, dtype=torch.float64)
    rows[:, :m] = torch.linalg.cholesky(gram * q * width)
    return rows


def by_hand(name, w2, b2, q, c, depth):
    """T_aa, T_ab in the NTK parametrisation: T' = K' + chi T."""
    same = other = 0.0
    for _ in range(depth):
        q, c, gain, chi_1 = step(name, w2, b2, q, c)
        same, other = q + chi_1 * same, q * c + gain * other
    return same, other


def test_condition_numbers_by_hand():
    m, q, c, depth = 5, 0.7, 0.3, 12
    block = dense("erf")
    found = ntk_against_depth(
        block,
        equal_states(m, q, c),
        block=block,
        init=Init(1.0, 0.05),
        depth=depth,
        parametrization="ntk",
    )
    for blocks in (1, 4, depth):
        same, other = by_hand("erf", 1.0, 0.05, q, c, blocks)
        assert float(found.diagonal[blocks]) == pytest.approx(same, rel=1e-9)
        assert float(found.ratio[blocks]) == pytest.approx(other / same, rel=1e-9)
        expected = (same + (m - 1) * other) / (same - other)
        assert float(found.condition[blocks]) == pytest.approx(expected, rel=1e-8)
    assert found.phase == "ordered"
    assert found.limit == math.inf


def test_ordered_asymptote():
    """ln condition rises by -ln chi_1 - 1/l per block (Xiao et al. 2020, table 1)."""
    block = dense("erf")
    found = ntk_against_depth(
        block, equal_states(3, 0.5, 0.3), block=block, init=Init(0.8, 0.05), depth=40
    )
    rises = np.diff(found.condition[20:41].log().numpy())
    depths = np.arange(21, 41)
    np.testing.assert_allclose(rises, found.slope - 1 / depths, atol=0.015)


def critical_ratio(correlation, slope, c, depth):
    """T_ab / T_aa after many critical blocks: T_aa = l q, T_ab' = q c' + chi T_ab."""
    total = 0.0
    for _ in range(depth):
        total = correlation(c) + slope(c) * total
        c = correlation(c)
    return total / depth


def relu_correlation(c):
    return (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi


def relu_slope(c):
    return 1 - math.acos(c) / math.pi


def test_critical_limits_of_the_recursion():
    """1/4 for ReLU and 1/3 for erf, by the closed forms alone (Cho & Saul 2009, Williams 1997)."""
    ratio = critical_ratio(relu_correlation, relu_slope, 0.3, 50_000)
    assert ratio == pytest.approx(1 / 4, abs=2e-4)
    b2 = 0.05

    def excess(q):
        kappa = 2 / math.pi * math.asin(2 * q / (1 + 2 * q))
        return kappa * math.pi / 4 * math.sqrt(1 + 4 * q) + b2 - q

    q = brentq(excess, 0.01, 5, xtol=1e-16)
    w2 = math.pi / 4 * math.sqrt(1 + 4 * q)
    assert (w2, q) == (pytest.approx(1.3758390073, abs=1e-9), pytest.approx(0.5171768380, abs=1e-9))
    ratio = critical_ratio(
        lambda c: (w2 * 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q)) + b2) / q,
        lambda c: w2 * 4 / math.pi / math.sqrt((1 + 2 * q) ** 2 - (2 * q * c) ** 2),
        0.3,
        20_000,
    )
    assert ratio == pytest.approx(1 / 3, abs=5e-4)


def test_critical_relu():
    m, depth, block = 4, 60, nn.Sequential(nn.ReLU(), nn.Linear(16, 16))
    states = equal_states(m, 0.8, 0.3)
    found = ntk_against_depth(
        block, states, block=block, init=Init.he(), depth=depth, parametrization="ntk"
    )
    assert found.phase == "critical"
    assert found.limit == pytest.approx(1 + m / 3)
    ratio = critical_ratio(relu_correlation, relu_slope, 0.3, depth)
    assert float(found.ratio[depth]) == pytest.approx(ratio, rel=1e-8)
    expected = (1 + (m - 1) * ratio) / (1 - ratio)
    assert float(found.condition[depth]) == pytest.approx(expected, rel=1e-8)
    assert float(found.diagonal[depth]) == pytest.approx(depth * 0.8, rel=1e-9)


def test_critical_erf():
    m, block = 4, dense("erf")
    states = equal_states(m, 0.5171768380, 0.3)
    init = Init(1.3758390073, 0.05)
    found = ntk_against_depth(
        block, states, block=block, init=init, depth=40, parametrization="ntk"
    )
    assert (found.phase, found.limit) == ("critical", pytest.approx(1 + m / 2))
    assert float(found.condition[40]) == pytest.approx(1 + m / 2, rel=0.1)


def test_chaotic_limit():
    block = dense("erf")
    found = ntk_against_depth(
        block, equal_states(4, 1.7527401882, 0.2), block=block, init=Init(3.0, 0.05), depth=40
    )
    assert found.phase == "chaotic"
    assert found.limit == 1
    assert float(found.condition[40]) == pytest.approx(1, abs=1e-3)
    assert float(found.diagonal[40] / found.diagonal[39]) == pytest.approx(1.34955, abs=1e-3)


def test_of_a_whole_network():
    found = ntk_against_depth(deep(nn.ReLU, 4), torch.randn(4, 5), init=Init.he(), depth=6)
    assert found.depths.tolist() == list(range(7))
    assert "NtkDepth(critical" in repr(found)
    assert found.to_dict()["examples"] == 4
    assert len(found.figure().data) == 1


def test_refusals():
    with pytest.raises(InvalidInput, match="one example"):
        ntk_against_depth(deep(nn.ReLU, 2), torch.randn(1, 5))
    with pytest.raises(InvalidInput, match="depth is 0"):
        ntk_against_depth(deep(nn.ReLU, 2), torch.randn(2, 5), depth=0)
