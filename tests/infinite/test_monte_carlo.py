"""The infinite kernel against the mean kernel of the same module, re-initialised many times."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.infinite.architectures import ARCHITECTURES, FEATURES, FLAT, TIME, reinitialise
from torch import Tensor, nn

from tangency.infinite import InfiniteKernel, Init

WEIGHT, BIAS = 1.7, 0.1
Factory = Callable[[int, int], nn.Module]


def inputs(n: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, TIME, FEATURES, generator=generator, dtype=torch.float64)


def ntk_by_autograd(model: nn.Module, x: Tensor) -> Tensor:
    """<df/dtheta(x), df/dtheta(x')> of a module with one output, one example at a time."""
    parameters = list(model.parameters())
    rows = []
    for i in range(len(x)):
        gradients = torch.autograd.grad(
            model(x[i : i + 1]).sum(), parameters, materialize_grads=True, allow_unused=True
        )
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def sampled_ntks(factory: Factory, width: int, samples: int, x: Tensor) -> Tensor:
    """Empirical NTKs of independent initialisations, shape (samples, n, n)."""
    generator = torch.Generator().manual_seed(1)
    model = factory(width, 1).double().eval()
    draws = []
    for _ in range(samples):
        reinitialise(model, WEIGHT, BIAS, generator)
        draws.append(ntk_by_autograd(model, x))
    return torch.stack(draws)


def sampled_nngp(factory: Factory, width: int, samples: int, x: Tensor) -> Tensor:
    """Mean of f(x) f(x') over many outputs and initialisations, shape (n, n)."""
    generator = torch.Generator().manual_seed(2)
    model = factory(width, 512).double().eval()
    total = torch.zeros(len(x), len(x), dtype=torch.float64)
    for _ in range(samples):
        reinitialise(model, WEIGHT, BIAS, generator)
        outputs = model(x).detach()
        total += outputs @ outputs.T / outputs.shape[1] / samples
    return total


def limit(factory: Factory, width: int, weight: float = WEIGHT) -> InfiniteKernel:
    model = factory(width, 1).double()
    return InfiniteKernel(model, inputs(), init=Init(weight=weight, bias=BIAS))


def distance(kernel: Tensor, reference: Tensor) -> Tensor:
    """Relative Frobenius distance of the last two dimensions."""
    return torch.linalg.matrix_norm(kernel - reference) / torch.linalg.matrix_norm(reference)


def allowed(draws: Tensor, reference: Tensor) -> float:
    """Three standard errors of the mean, and 1.5 % for what is O(1 / width)."""
    error = torch.linalg.matrix_norm(draws.std(0)) / math.sqrt(len(draws))
    return 0.015 + 3 * float(error / torch.linalg.matrix_norm(reference))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ntk_is_the_limit_of_the_mean(name: str) -> None:
    """One draw is off by O(1 / sqrt(width)); the mean of many by much less."""
    factory, x = ARCHITECTURES[name], inputs()
    narrow, wide = sampled_ntks(factory, 48, 30, x), sampled_ntks(factory, 432, 30, x)
    exact = limit(factory, 432).ntk(x)
    assert float(distance(wide.mean(0), exact)) < allowed(wide, exact) < 0.17
    error_narrow = float(distance(narrow, limit(factory, 48).ntk(x)).mean())
    assert float(distance(wide, exact).mean()) < 0.6 * error_narrow  # 1/3 in theory


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nngp_is_the_limit_of_the_mean(name: str) -> None:
    factory, x = ARCHITECTURES[name], inputs()
    error = distance(sampled_nngp(factory, 384, 20, x), limit(factory, 384).nngp(x))
    assert float(error) < 0.07


@pytest.mark.parametrize("name", ["relu", "recurrent, mean", "chunked", "densely connected"])
def test_a_wrong_formula_is_caught(name: str) -> None:
    """sigma_w off by 10 % breaks the bounds above."""
    factory, x = ARCHITECTURES[name], inputs()
    wrong = limit(factory, 432, weight=WEIGHT * 1.1**2)
    draws = sampled_ntks(factory, 432, 30, x)
    assert float(distance(draws.mean(0), wrong.ntk(x))) > allowed(draws, wrong.ntk(x))
    assert float(distance(sampled_nngp(factory, 384, 20, x), wrong.nngp(x))) > 0.07


ACTIVATIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": nn.functional.gelu,
    "abs": torch.abs,
    "sin": torch.sin,
    "silu": nn.functional.silu,
    "identity": lambda x: x,
}


class RandomNetwork(nn.Module):
    """Layers given as (activation, residual, layer to share weights with or None, bias)."""

    def __init__(self, plan: list[tuple[str, bool, bool, bool]], width: int, out: int):
        super().__init__()
        self.plan = plan
        self.first = nn.Linear(FLAT, width)
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=b) for *_, b in plan)
        self.shared = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))
        for (activation, residual, tied, _), layer in zip(self.plan, self.layers, strict=True):
            new = (self.shared if tied else layer)(ACTIVATIONS[activation](hidden))
            hidden = (hidden + new) / math.sqrt(2) if residual else new
        return self.last(torch.tanh(hidden))


layer_plans = st.lists(
    st.tuples(st.sampled_from(sorted(ACTIVATIONS)), st.booleans(), st.booleans(), st.booleans()),
    min_size=1,
    max_size=3,
)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(plan=layer_plans)
def test_random_architectures(plan: list[tuple[str, bool, bool, bool]]) -> None:
    def factory(width: int, out: int) -> nn.Module:
        return RandomNetwork(plan, width, out)

    x = inputs(3)
    draws = sampled_ntks(factory, 256, 30, x)
    exact = limit(factory, 256).ntk(x)
    assert float(distance(draws.mean(0), exact)) < allowed(draws, exact) + 0.015
