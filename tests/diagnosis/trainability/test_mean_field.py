"""Phases and depth scales: published critical points, and the recursion by quadrature."""

import json
import math

import pytest
import torch
from scipy.optimize import brentq
from tests.diagnosis.trainability.recursion import FUNCTIONS, deep, dense, mean, step
from torch import nn

from tangency import Init
from tangency.diagnosis.trainability import critical_weight, mean_field_theory, phase_diagram
from tangency.errors import InvalidInput

STATES = torch.ones(2, 16)


def theory(block, init, **options):
    return mean_field_theory(block, STATES, block=block, init=init, **options)


def independent_critical_point(name, b2):
    """(w2, q*) with q = w2 M(q) + b2 and w2 N(q) = 1, by quadrature alone."""
    phi, slope, _ = FUNCTIONS[name]

    def excess(q):
        return mean(lambda x: phi(x) ** 2, q) / mean(lambda x: slope(x) ** 2, q) + b2 - q

    q = brentq(excess, 1e-4, 5.0, xtol=1e-14)
    return 1 / mean(lambda x: slope(x) ** 2, q), q


def test_critical_erf():
    """w2 = 1.3758390073, q* = 0.5171768380 at b2 = 0.05 (Xiao et al. 2020; our own quadrature)."""
    block = dense("erf")
    w2 = critical_weight(block, STATES, block=block, bias=0.05)
    assert w2 == pytest.approx(1.3758390073, abs=1e-8)
    found = theory(block, Init(w2, 0.05))
    assert found.length == pytest.approx(0.5171768380, abs=1e-8)
    assert found.phase == "critical"
    assert found.correlation == 1
    assert found.xi_gradient == found.xi_c == math.inf


@pytest.mark.parametrize(
    ("name", "b2"),
    [("erf", 0.2), ("tanh", 0.05), pytest.param("tanh", 0.3, marks=pytest.mark.slow)],
)
def test_critical_lines(name, b2):
    w2, q = independent_critical_point(name, b2)
    block = dense(name)
    assert critical_weight(block, STATES, block=block, bias=b2) == pytest.approx(w2, abs=1e-6)
    found = theory(block, Init(w2, b2))
    assert found.length == pytest.approx(q, abs=1e-6)
    assert found.chi_1 == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(
    ("act", "w2"), [(nn.ReLU, 2.0), pytest.param(nn.Tanh, 1.0, marks=pytest.mark.slow)]
)
def test_critical_without_bias(act, w2):
    block = nn.Sequential(act(), nn.Linear(16, 16))
    assert critical_weight(block, STATES, block=block) == pytest.approx(w2, abs=1e-6)
    assert theory(block, Init(w2)).phase == "critical"


@pytest.mark.parametrize(
    ("act", "b2", "w2", "q"),
    [
        (nn.GELU, 0.17292239, 1.98305826, (3 + math.sqrt(17)) / 2),
        pytest.param(nn.SiLU, 0.55514317, 1.98800468, 14.32017362, marks=pytest.mark.slow),
    ],
)
def test_half_stable_points(act, b2, w2, q):
    """chi_1 = dQ/dq = 1 at once (Roberts, Yaida & Hanin 2022, section 5.3.4)."""
    block = nn.Sequential(act(), nn.Linear(16, 16))
    found = theory(block, Init(w2, b2), start=(q, 0.5))
    image, gain = found.maps.lengths(torch.tensor([q], dtype=torch.float64))
    assert float(image) == pytest.approx(q, rel=1e-7)
    assert float(gain) == pytest.approx(1, abs=1e-7)
    assert found.maps.length_slope(q) == pytest.approx(1, abs=1e-7)


@pytest.mark.slow
def test_self_normalising():
    """SELU maps variance one to one at w2 = 1 (Klambauer et al. 2017), and is slightly chaotic."""
    found = theory(nn.Sequential(nn.SELU(), nn.Linear(16, 16)), Init(1.0))
    assert found.length == pytest.approx(1, abs=1e-6)
    assert found.correlation == pytest.approx(0, abs=1e-9)
    assert 1.05 < found.chi_1 < 1.1


@pytest.mark.parametrize(("w2", "phase"), [(1.0, "ordered"), (3.0, "chaotic")])
def test_off_criticality_by_iteration(w2, phase):
    """Fixed points and depth scales by iterating the recursion, erf with b2 = 0.05."""
    found = theory(dense("erf"), Init(w2, 0.05), start=(0.7, 0.3))
    q, c = 0.7, 0.3
    for _ in range(150):
        q, c, _, _ = step("erf", w2, 0.05, q, min(c, 1.0))
    assert found.phase == phase
    assert found.length == pytest.approx(q, rel=1e-10)
    _, _, slope, chi_1 = step("erf", w2, 0.05, q, min(c, 1.0))
    assert found.correlation == pytest.approx(c, abs=1e-6)
    assert found.chi_1 == pytest.approx(chi_1, rel=1e-10)
    assert found.chi_c == pytest.approx(slope, rel=1e-6)
    assert found.xi_c == pytest.approx(-1 / math.log(slope), rel=1e-5)
    assert found.xi_gradient == pytest.approx(1 / abs(math.log(chi_1)), rel=1e-10)
    # Deviations from q* fall by e^(-1 / xi_q) per block.
    after, _, _, _ = step("erf", w2, 0.05, q * (1 + 1e-6), 0.0)
    assert (after / q - 1) / 1e-6 == pytest.approx(math.exp(-1 / found.xi_q), rel=1e-4)


def test_relu_beside_criticality():
    block = nn.Sequential(nn.ReLU(), nn.Linear(16, 16))
    shrinking, growing = theory(block, Init(1.0)), theory(block, Init(3.0))
    assert (shrinking.length, shrinking.chi_1, shrinking.phase) == (0, 0.5, "ordered")
    assert (growing.length, growing.chi_1, growing.phase) == (math.inf, 1.5, "chaotic")
    with_bias = theory(block, Init(1.0, 0.3))
    assert with_bias.length == pytest.approx(0.6)  # b2 / (1 - w2 / 2)


def test_residual_blocks_with_normalisation_are_critical_everywhere():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.LayerNorm(16), nn.Linear(16, 16)

        def forward(self, x):
            return x + self.layer(torch.relu(self.norm(x)))

    for w2 in (0.5, 4.0):
        found = theory(Block(), Init(w2))
        assert (found.phase, found.length) == ("critical", math.inf)


def test_diagram():
    block = dense("erf")
    found = phase_diagram(
        block, STATES, block=block, weights=[0.8, 1.2, 1.6, 2.0], biases=[0.05, 0.2]
    )
    for k, b2 in enumerate((0.05, 0.2)):
        w2, _ = independent_critical_point("erf", b2)
        assert float(found.critical[k]) == pytest.approx(w2, abs=1e-6)
        for j, weight in enumerate((0.8, 1.2, 1.6, 2.0)):
            assert (float(found.chi_1[k, j]) > 1) == (weight > w2)
            q = float(found.lengths[k, j])
            assert step("erf", weight, b2, q, 0.0)[0] == pytest.approx(q, rel=1e-9)
            assert step("erf", weight, b2, q, 0.0)[3] == pytest.approx(float(found.chi_1[k, j]))
    assert "critical w2" in repr(found)
    assert {"chi_1", "critical"} <= found.to_dict().keys()
    assert len(found.figure().data) == 2


def test_a_block_that_is_not_linear_in_the_moments():
    """Dense before the activation: the same critical line, asked of the engine at every point."""
    block = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    assert critical_weight(block, STATES, block=block) == pytest.approx(2, abs=1e-6)
    pair = nn.Sequential(nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    found = phase_diagram(pair, STATES, block=pair, weights=[1.5, 2.5], biases=[0.0])
    torch.testing.assert_close(found.chi_1[0], torch.tensor([0.5625, 1.5625]).double())
    assert float(found.critical[0]) == pytest.approx(2, abs=1e-6)


def test_gelu_jumps():
    """Without biases GELU has an unstable length only: no critical weight is made up."""
    block = nn.Sequential(nn.GELU(), nn.Linear(16, 16))
    with pytest.raises(InvalidInput, match="critical at no weight"):
        critical_weight(block, STATES, block=block)


def test_of_a_whole_network():
    model = deep(nn.ReLU, 5)
    found = mean_field_theory(model, torch.randn(3, 5), init=Init.he())
    assert found.block.depth == 5
    assert found.phase == "critical"
    assert "relu, linear, 5 times" in repr(found)
    json.dumps(found.to_dict())
    assert len(found.figure().data) == 6


def test_refusals():
    block = dense("erf")
    with pytest.raises(InvalidInput, match="start is"):
        theory(block, Init(1.0), start=(0.0, 0.5))
    with pytest.raises(InvalidInput, match="init is"):
        theory(block, "kaiming")
    with pytest.raises(InvalidInput, match="bias must be"):
        critical_weight(block, STATES, block=block, bias=-1.0)
    with pytest.raises(InvalidInput, match="weights must be"):
        phase_diagram(block, STATES, block=block, weights=[0.0, 1.0])
