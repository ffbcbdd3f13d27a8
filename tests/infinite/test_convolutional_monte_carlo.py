"""Convolutional and graph networks against the mean kernel of the re-initialised modules."""

from __future__ import annotations

import math

import pytest
import torch
from tests.infinite.convolutional import ARCHITECTURES, Architecture, Data, reinitialise
from torch import Tensor, nn

from tangency.infinite import InfiniteKernel, Init

WEIGHT, BIAS = 1.7, 0.1
NARROW, WIDE, SAMPLES = 12, 96, 48


def call(model: nn.Module, x: Data) -> Tensor:
    return model(*x) if isinstance(x, tuple) else model(x)


def build(architecture: Architecture, width: int, out: int, x: Data) -> nn.Module:
    model = architecture.build(width, out).double().eval()
    with torch.no_grad():
        call(model, x)  # sizes of lazy layers
    return model


def jacobian(model: nn.Module, x: Data) -> Tensor:
    """Gradients of one output per example, `(n, parameters)`."""
    outputs, parameters = call(model, x)[:, 0], list(model.parameters())
    rows = [
        torch.autograd.grad(output, parameters, retain_graph=True, materialize_grads=True)
        for output in outputs
    ]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def sampled(architecture: Architecture, width: int, x: Data) -> Tensor:
    """Empirical NTKs of independent initialisations, `(SAMPLES, n, n)`."""
    generator = torch.Generator().manual_seed(1)
    model = build(architecture, width, 1, x)
    draws = []
    for _ in range(SAMPLES):
        reinitialise(model, WEIGHT, BIAS, generator)
        gradients = jacobian(model, x)
        draws.append(gradients @ gradients.T)
    return torch.stack(draws)


def sampled_nngp(architecture: Architecture, x: Data) -> Tensor:
    """f(x) f(x') averaged over many outputs, one value per initialisation, `(SAMPLES, n, n)`."""
    generator = torch.Generator().manual_seed(2)
    model = build(architecture, WIDE, 128, x)
    draws = []
    for _ in range(SAMPLES):
        reinitialise(model, WEIGHT, BIAS, generator)
        outputs = call(model, x).detach()
        draws.append(outputs @ outputs.T / outputs.shape[1])
    return torch.stack(draws)


def limit(
    architecture: Architecture, width: int, x: Data, weight: float = WEIGHT
) -> InfiniteKernel:
    model = build(architecture, width, 1, x)
    return InfiniteKernel(model, x, init=Init(weight=weight, bias=BIAS))


def distance(kernel: Tensor, reference: Tensor) -> Tensor:
    """Relative Frobenius distance of the last two dimensions."""
    return torch.linalg.matrix_norm(kernel - reference) / torch.linalg.matrix_norm(reference)


def allowed(draws: Tensor, reference: Tensor) -> float:
    """Three standard errors of the mean, and 2 / width for what is O(1 / width)."""
    error = torch.linalg.matrix_norm(draws.std(0)) / math.sqrt(len(draws))
    return 2 / WIDE + 3 * float(error / torch.linalg.matrix_norm(reference))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_limit_of_the_mean(name: str) -> None:
    architecture = ARCHITECTURES[name]
    x = architecture.data()
    kernels = limit(architecture, WIDE, x).pair(x)
    draws, outputs = sampled(architecture, WIDE, x), sampled_nngp(architecture, x)
    assert float(distance(draws.mean(0), kernels.ntk)) < allowed(draws, kernels.ntk) < 0.2
    assert float(distance(outputs.mean(0), kernels.nngp)) < allowed(outputs, kernels.nngp) < 0.2


@pytest.mark.parametrize("name", ["reflected", "transposed", "u-net", "graph convolution"])
def test_error_falls_with_width(name: str) -> None:
    """One draw is off by O(1 / sqrt(width))."""
    architecture = ARCHITECTURES[name]
    x = architecture.data()
    narrow, wide = (
        float(distance(sampled(architecture, w, x), limit(architecture, w, x).ntk(x)).mean())
        for w in (NARROW, WIDE)
    )
    assert wide < 0.55 * narrow  # 0.35 in theory


@pytest.mark.parametrize("name", ["uneven", "circular", "pooled", "channels last"])
def test_a_wrong_formula_is_caught(name: str) -> None:
    """sigma_w off by 10 % breaks the bounds above."""
    architecture = ARCHITECTURES[name]
    x = architecture.data()
    wrong = limit(architecture, WIDE, x, weight=WEIGHT * 1.1**2).pair(x)
    draws, outputs = sampled(architecture, WIDE, x), sampled_nngp(architecture, x)
    assert float(distance(draws.mean(0), wrong.ntk)) > allowed(draws, wrong.ntk)
    assert float(distance(outputs.mean(0), wrong.nngp)) > allowed(outputs, wrong.nngp)
