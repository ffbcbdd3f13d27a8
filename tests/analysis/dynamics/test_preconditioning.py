"""Learning rates per layer against torch.optim.SGD with parameter groups."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import tangency as tg
from tangency.analysis.dynamics import (
    GradientDescent,
    HeavyBall,
    Nesterov,
    weighted_kernel,
)
from tangency.errors import InvalidInput

from .linear_model import close

RATES = {"0": 0.02, "2": 0.3}


@pytest.mark.parametrize("ridge", [0.0, 0.4])
@pytest.mark.parametrize("kind", [GradientDescent, HeavyBall, Nesterov])
def test_matches_parameter_groups_of_a_linearised_network(kind, ridge):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    x, x_test, y = (torch.randn(s, d).double() for s, d in ((6, 3), (4, 3), (6, 2)))
    kernel = tg.EmpiricalKernel(model, output="full")
    K = weighted_kernel(kernel.by_layer(x), RATES)
    K_test = weighted_kernel(kernel.by_layer(x_test, x), RATES)
    training = kind(K, y, 1.0, ridge=ridge)
    starts = {"f0_train": model(x).detach(), "f0_test": model(x_test).detach()}
    predicted = training.predict(range(31), K_test, **starts)

    linear = tg.linearize(model)
    start = {name: p.detach().clone() for name, p in linear.named_parameters()}
    groups = [
        {"params": [p for n, p in linear.named_parameters() if n.startswith(layer)], "lr": rate}
        for layer, rate in RATES.items()
    ]
    momentum = 0.0 if kind is GradientDescent else 0.9
    optimizer = torch.optim.SGD(groups, lr=9.0, momentum=momentum, nesterov=kind is Nesterov)
    for step in range(31):
        close(predicted.train[step], linear(x).detach(), 1e-10)
        close(predicted.test[step], linear(x_test).detach(), 1e-10)
        optimizer.zero_grad()
        loss = (linear(x) - y).square().sum() / 12
        for name, p in linear.named_parameters():
            loss = loss + ridge / (12 * RATES[name[0]]) * (p - start[name]).square().sum()
        loss.backward()
        optimizer.step()


def test_frozen_layers_and_arrays():
    a, b = np.eye(3), np.ones((3, 3))
    assert weighted_kernel({"a": a, "b": b}, {"a": 2.0, "b": 0.0}).tolist() == (2 * a).tolist()


@pytest.mark.parametrize(
    ("kernels", "rates", "match"),
    [
        ({}, {}, "no kernels"),
        ({"a": np.eye(2)}, {"b": 1.0}, r"\['a', 'b'\]"),
        ({"a": np.eye(2)}, {"a": -1.0}, "'a'"),
        ({"a": np.eye(2)}, {"a": math.nan}, "'a'"),
        ({"a": np.eye(2)}, {"a": 0.0}, "all rates"),
        ({"a": np.eye(2), "b": np.eye(3)}, {"a": 1.0, "b": 1.0}, "one shape"),
    ],
)
def test_bad_arguments_are_refused(kernels, rates, match):
    with pytest.raises(InvalidInput, match=match):
        weighted_kernel(kernels, rates)
