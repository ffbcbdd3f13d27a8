"""Networks in which covariances that are exact alone meet one that is sampled."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from tests.infinite.sampling.networks import Case
from torch import Tensor, nn

Features = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Two functions of two independent Gaussians."""


def rectified(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Each is exact; how they depend on each other is not."""
    return F.relu(a + 0.3 * b), F.relu(a + 0.3 * b.abs())


def multiplied(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return F.relu(a) * (1 + torch.tanh(b)), F.relu(a + 0.3 * b.abs())


def gated(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return F.relu(a) * F.relu(b), torch.sigmoid(a + b) * F.relu(a)


class Mixed(nn.Module):
    """Two functions of the same Gaussians, put together in some way, and a layer."""

    def __init__(self, width: int, out: int, features: Features, join: nn.Module):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.second = nn.Linear(5, width)
        self.features, self.join = features, join
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        joined = self.join(*self.features(self.first(x), self.second(x)))
        return self.last(joined)


class Added(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b


class Tokens(nn.Module):
    """Side by side as positions, of which the mean is taken."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([a, -b], 1).mean(1)


class Weighted(nn.Module):
    """By one weight, which makes Gaussians of both."""

    def __init__(self, width: int):
        super().__init__()
        self.shared = nn.Linear(width, width)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return F.relu(self.shared(a)) - F.relu(self.shared(b))


class GatedStates(nn.Module):
    """h <- f h + i g without a nonlinearity of the state: the first states are exact."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.input = nn.Linear(5, 3 * width)
        self.state = nn.Linear(width, 3 * width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        i, f, g = self.input(x[:, 0]).chunk(3, -1)
        h = torch.sigmoid(i) * torch.tanh(g)
        states = [h]
        for t in range(1, x.shape[1]):
            i, f, g = (self.input(x[:, t]) + self.state(h)).chunk(3, -1)
            h = torch.sigmoid(f) * h + torch.sigmoid(i) * torch.tanh(g)
            states.append(h)
        return self.last(torch.stack(states, 1).mean(1))


JOINS: dict[str, Callable[[int], nn.Module]] = {
    "added": lambda width: Added(),
    "positions": lambda width: Tokens(),
    "one weight": Weighted,
}

FEATURES: dict[str, Features] = {"rectified": rectified, "multiplied": multiplied, "gated": gated}


def _mixed(features: Features, join: Callable[[int], nn.Module]) -> Case:
    return Case(lambda width, out: Mixed(width, out, features, join(width)), (5,))


MIXED: dict[str, Case] = {
    f"{feature}, {name}": _mixed(features, join)
    for feature, features in FEATURES.items()
    for name, join in JOINS.items()
} | {"gated states": Case(GatedStates, (4, 5))}
