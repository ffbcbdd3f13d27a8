"""Small modules whose training regime is known, and data for them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


class NTKLinear(nn.Module):
    """sqrt(2 / fan_in) W x with standard normal W: the limit of infinite width is lazy."""

    def __init__(self, inputs: int, outputs: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(outputs, inputs, seed=seed))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight) * (2 / self.weight.shape[1]) ** 0.5


def network(width: int, inputs: int = 4, out: int = 1, seed: int = 0) -> nn.Module:
    return nn.Sequential(
        NTKLinear(inputs, width, 10 * seed),
        nn.Tanh(),
        NTKLinear(width, out, 10 * seed + 1),
    )


class RandomFeatures(nn.Module):
    """A network that is linear in what is trained: its hidden layer is frozen."""

    def __init__(self, width: int = 40, inputs: int = 4, out: int = 3) -> None:
        super().__init__()
        self.hidden = NTKLinear(inputs, width, 7).requires_grad_(False)
        self.top = nn.Linear(width, out, dtype=torch.float64)
        with torch.no_grad():
            self.top.weight.copy_(normal(out, width, seed=8) / width**0.5)
            self.top.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.tanh(self.hidden(x)))


class Scaled(nn.Module):
    """alpha (F - F_0): feature learning for small alpha (Chizat, Oyallon & Bach 2019)."""

    def __init__(self, net: nn.Module, alpha: float) -> None:
        super().__init__()
        self.net, self.alpha = net, alpha
        self.start = copy.deepcopy(net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * (self.net(x) - self.start(x))


def target(x: Tensor) -> Tensor:
    return x[:, 0] * x[:, 1]
