"""Users' own activations with a closed-form kernel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import tangency as tg
from tangency.errors import InvalidInput


def fourier_kernel(q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
    return torch.exp(c - (q1 + q2) / 2)


@tg.activation(fourier_kernel)
def fourier(x: Tensor) -> Tensor:
    return torch.sin(x) + torch.cos(x)


@tg.activation(lambda q1, q2, c: q1 * q2 + 2 * c.square())
def square(x: Tensor) -> Tensor:
    return x * x


class Network(nn.Module):
    def __init__(self, activation) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 32), nn.Linear(32, 32)
        self.last, self.activation = nn.Linear(32, 1), activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.first(x))
        return self.last(self.activation(self.second(hidden)))


def inputs(dtype: torch.dtype) -> Tensor:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[4], x[5] = x[0], x[1] + 1e-4 * x[2]
    return x.to(dtype)


@pytest.mark.parametrize(
    ("own", "plain"),
    [(fourier, lambda x: torch.sin(x) + torch.cos(x)), (square, lambda x: x * x)],
    ids=["fourier", "square"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_numerical_dual(own, plain, dtype: torch.dtype) -> None:
    """The same function written in torch operations goes by its Hermite series."""
    x, model = inputs(dtype), Network(own)
    plain_model = Network(plain)
    plain_model.load_state_dict(model.state_dict())
    ours = tg.InfiniteKernel(model, x).pair(x)
    numerical = tg.InfiniteKernel(plain_model, x, dtype=torch.float64).pair(x)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-6
    for kernel, reference in zip(ours, numerical, strict=True):
        torch.testing.assert_close(kernel.double(), reference, rtol=tolerance, atol=tolerance)


def test_it_trains_and_has_an_empirical_kernel() -> None:
    model, x = Network(fourier).double(), inputs(torch.float64)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(fourier(leaf).sum(), leaf, create_graph=True)
    torch.testing.assert_close(slope, torch.cos(x) - torch.sin(x))
    (bend,) = torch.autograd.grad(slope.sum(), leaf)
    torch.testing.assert_close(bend, -torch.cos(x) - torch.sin(x))
    plain = Network(lambda x: torch.sin(x) + torch.cos(x)).double()
    plain.load_state_dict(model.state_dict())
    ours, reference = (tg.EmpiricalKernel(network).ntk(x) for network in (model, plain))
    torch.testing.assert_close(ours, reference)


def test_a_wrong_kernel_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"covariance 0\.5.*identity.*0\.5 by quadrature"):
        tg.activation(lambda q1, q2, c: 2 * c)(identity)


def test_a_kink_is_allowed() -> None:
    def arccosine(q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        gap = (q1 * q2 - c * c).clamp_min(0).sqrt()
        return (gap + c * (math.pi - torch.atan2(gap, c))) / (2 * math.pi)

    own = tg.activation(arccosine)(lambda x: x.clamp_min(0))
    x, model = inputs(torch.float64)[:4], Network(own)
    relu = Network(torch.relu)
    relu.load_state_dict(model.state_dict())
    ours, reference = (tg.InfiniteKernel(network, x).pair(x) for network in (model, relu))
    for kernel, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(kernel, expected)


def identity(x: Tensor) -> Tensor:
    return x
