"""Signals and gradients of layers against plain autograd, and layers out of bounds by name."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.diagnosis.trainability.recursion import deep, redraw
from torch import nn

from tangency.diagnosis.trainability import LayerLimits, layer_signals
from tangency.errors import InvalidInput


class Written(nn.Module):
    """Activations as functions, in place too; batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 30), nn.Linear(30, 30)
        self.norm, self.head = nn.BatchNorm1d(30), nn.Linear(30, 2)

    def forward(self, x):
        h = torch.relu_(self.first(x))
        h = self.norm(torch.tanh(self.second(h)))
        return self.head(F.dropout(h, 0.2, self.training))


def by_name(signals):
    return {layer.name: layer for layer in signals.layers}


def test_numbers_by_hand():
    torch.manual_seed(0)
    model, x, y = deep(nn.Tanh, 1, width=20), 3 * torch.randn(12, 5), torch.randn(12, 2)
    found = by_name(layer_signals(model, x, y))
    assert list(found) == ["0", "1", "2", "3", "4"]
    states = [x]
    for module in model:
        states.append(module(states[-1]))
    for state in states[1:]:
        state.retain_grad()
    (0.5 * (states[-1] - y).square().sum(dim=1).mean()).backward()
    for k, (name, layer) in enumerate(found.items()):
        h = states[k + 1]
        assert layer.second_moment == pytest.approx(float(h.detach().square().mean()), rel=1e-5)
        cosines = F.normalize(h.detach()) @ F.normalize(h.detach()).T
        off = cosines[~torch.eye(12, dtype=torch.bool)].mean()
        assert layer.correlation == pytest.approx(float(off), abs=1e-5)
        # Per example: the loss is a mean over 12 of them.
        per_example = 12 * h.grad.square().sum()
        assert layer.backward == pytest.approx(float(per_example), rel=1e-4)
        if name in ("0", "2", "4"):
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model[k].parameters()))
            assert layer.gradient == pytest.approx(norm, rel=1e-4)
            assert math.isnan(layer.saturated)
    slope = 1 - states[2].detach().square()
    assert found["1"].saturated == pytest.approx(float((slope < 0.05).double().mean()), abs=1e-6)
    assert found["1"].dead == 0  # saturated on both sides


def test_functions_are_seen_and_the_module_is_untouched():
    torch.manual_seed(0)
    model, x = Written(), torch.randn(16, 4)
    model.first.weight.grad = torch.ones(30, 4)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    found = by_name(layer_signals(model, x))
    assert list(found) == [
        "first",
        "relu after first",
        "second",
        "tanh after second",
        "norm",
        "head",
    ]
    relu = found["relu after first"]
    assert relu.saturated == pytest.approx(float((model.first(x) < 0).double().mean()), abs=1e-9)
    assert found["norm"].second_moment == pytest.approx(1, abs=0.01)  # of the batch
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(model.first.weight.grad, torch.ones(30, 4))
    assert model.second.weight.grad is None
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        again = by_name(layer_signals(model, x))
    assert again["head"].gradient == pytest.approx(found["head"].gradient, rel=0.5)


def test_vanishing_and_exploding_layers_by_name():
    x = torch.randn(32, 5)
    shrinking = layer_signals(redraw(deep(nn.ReLU, 12), 0.5), x, torch.ones(32, 2))
    kinds = {problem.kind for problem in shrinking.problems}
    assert "signal lost" in kinds
    lost = [p.layer for p in shrinking.problems if p.kind == "signal lost"]
    assert lost[-1] == "26"  # the readout
    ordered = layer_signals(redraw(deep(nn.Tanh, 20), 0.3, 0.5), x)
    vanishing = [p.layer for p in ordered.problems if p.kind == "vanishing"]
    alike = [p.layer for p in ordered.problems if p.kind == "inputs alike"]
    assert vanishing[0] == "0"
    assert "38" in alike
    assert "0" not in alike
    assert ordered.gradient_range > 1e6
    chaotic = layer_signals(redraw(deep(nn.Tanh, 40), 6.0), x)
    exploding = [p.layer for p in chaotic.problems if p.kind == "exploding"]
    assert exploding[0] == "0"


def test_dead_and_saturating_layers_by_name():
    x = torch.randn(64, 5)
    model = redraw(deep(nn.ReLU, 2), 2.0)
    with torch.no_grad():
        model[2].bias.fill_(-50.0)
    problem = next(p for p in layer_signals(model, x).problems if p.kind == "dead")
    assert problem.layer == "3"
    assert "100%" in str(problem)
    tanh = layer_signals(redraw(deep(nn.Tanh, 2), 1.0), 1000 * x)
    assert [p.layer for p in tanh.problems if p.kind == "saturating"] == ["1"]
    assert not layer_signals(redraw(deep(nn.ReLU, 2), 2.0), x).problems
    strict = LayerLimits(saturated=0.3)
    assert layer_signals(redraw(deep(nn.ReLU, 2), 2.0), x, limits=strict).problems


def test_convolutional_units_are_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2))
    with torch.no_grad():
        model[0].bias[:2] = -100.0
    found = by_name(layer_signals(model, torch.randn(10, 1, 6, 6)))
    assert found["1"].dead == pytest.approx(2 / 8)


def test_result():
    found = layer_signals(deep(nn.ReLU, 2), torch.randn(8, 5))
    assert "gradients of random cotangents" in repr(found)
    json.dumps(found.to_dict())
    assert len(found.figure().data) == 5
    assert np.isfinite(found.gradient_range)


def test_refusals():
    x = torch.randn(8, 5)
    with pytest.raises(InvalidInput, match="targets has shape"):
        layer_signals(deep(nn.ReLU, 2), x, torch.ones(8, 3))
    with pytest.raises(InvalidInput, match="does not run on example"):
        layer_signals(deep(nn.ReLU, 2), x.long())
    with pytest.raises(InvalidInput, match="no parameters"):
        layer_signals(nn.ReLU(), x)
    with pytest.raises(InvalidInput, match="NaN"):
        layer_signals(deep(nn.ReLU, 2), x * math.nan)
