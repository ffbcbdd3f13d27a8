"""Operations that are refused, and where."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tangency import InfiniteKernel, Init
from tangency.errors import UnsupportedOperation


class Mixer(nn.Module):
    """A block of Tolstikhin et al. 2021: its first half mixes tokens by weights that all channels
    share.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(3, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(5, 16), nn.Linear(16, 5)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mixed = self.down(torch.relu(self.up(self.norm(x).mT))).mT
        y: Tensor = self.head((x + mixed)[:, 0])
        return y


class Detached(nn.Module):
    """Half of the network is cut off from gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.first(x)).detach())
        return y


def test_token_mixing_is_refused_where_it_happens() -> None:
    with pytest.raises(UnsupportedOperation, match=r"module 'up'.*shares one weight along a width"):
        InfiniteKernel(Mixer(), torch.randn(2, 5, 3), numerical="sample")


class Rotary(nn.Module):
    """Pairs of coordinates turned by angles that depend on the position (Su et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        first, second = y.chunk(2, -1)
        angle = torch.arange(5)[:, None] / 10 ** (torch.arange(8) % 4)
        turned = y * angle.cos() + torch.cat([-second, first], -1) * angle.sin()
        z: Tensor = self.head(torch.relu(turned).mean(1))
        return z


def test_rotary_positions_are_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedOperation, match=r"aten\.mul.*rotary positions"):
        InfiniteKernel(Rotary(), torch.randn(2, 5, 3))


def test_detached_values_are_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="detach"):
        InfiniteKernel(Detached(), torch.randn(2, 3))


class DividedBySum(nn.Module):
    """Divides by the sum over two halves of a width; one half is multiplied by random weights."""

    def __init__(self, *, weighted_first: bool) -> None:
        super().__init__()
        self.weighted_first = weighted_first
        self.first, self.second = nn.Linear(3, 64), nn.Linear(3, 64)
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.Parameter(torch.randn(64, generator=generator))
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        plain = torch.relu(self.second(x))
        halves = [torch.relu(self.first(x)) * self.weights, plain]
        if not self.weighted_first:
            halves.reverse()
        y: Tensor = self.head(plain / torch.cat(halves, -1).sum(-1, keepdim=True))
        return y


def test_what_is_refused_does_not_depend_on_the_order_of_a_concatenation() -> None:
    """One half has a mean, so the sum has a limit, wherever that half stands."""
    x = torch.randn(2, 3)
    first, second = (
        InfiniteKernel(DividedBySum(weighted_first=first), x, init=Init(weight=1.5)).ntk(x)
        for first in (True, False)
    )
    torch.testing.assert_close(first, second)
