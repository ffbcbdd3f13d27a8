from __future__ import annotations

import torch
from adapted_layers import Adapter, add_adapters, normalise_weights, with_statistics
from measurement import by_autograd, deviation, jacobian_contraction
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations


def test_both_references_are_the_closed_kernel_of_a_linear_layer() -> None:
    model, x = nn.Linear(5, 3).double(), torch.randn(4, 5, dtype=torch.float64)

    def outputs(parameters: dict[str, Tensor], data: Tensor) -> Tensor:
        found: Tensor = functional_call(model, parameters, (data,))
        return found

    closed = x @ x.mT + 1
    assert torch.allclose(by_autograd(model, outputs, x), closed, atol=1e-12)
    assert torch.allclose(jacobian_contraction(model, outputs, x), closed, atol=1e-12)


def test_deviation_is_relative_to_the_diagonal() -> None:
    assert abs(deviation([[4.0, 1.0], [1.0, 25.0]], [[4.0, 2.0], [2.0, 25.0]]) - 0.1) < 1e-6


def test_adapters_leave_only_their_factors_trainable() -> None:
    model = add_adapters(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), rank=2)
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert free == {"0.A", "0.B", "2.A", "2.B"}
    first = model[0]
    assert isinstance(first, Adapter)
    x = torch.randn(5, 3)
    merged = first.base.weight + first.B @ first.A
    assert torch.allclose(first(x), x @ merged.mT + first.base.bias, atol=1e-5)


def test_all_convolutions_are_normalised() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 2, 1)), nn.Flatten())
    names = {
        name
        for name, _ in normalise_weights(model, parametrizations.weight_norm).named_parameters()
    }
    assert "0.parametrizations.weight.original0" in names
    assert "1.0.parametrizations.weight.original0" in names


def test_statistics_are_those_of_the_batch() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())
    x = 2 + 3 * torch.randn(8, 3, 5, 5)
    assert not with_statistics(model, x).training
    assert torch.allclose(model(x).mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(model(x).var((0, 2, 3)), torch.ones(3), atol=1e-3)
