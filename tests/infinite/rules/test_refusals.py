"""Operations that are refused, and where."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tangency import InfiniteKernel
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


def test_detached_values_are_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="detach"):
        InfiniteKernel(Detached(), torch.randn(2, 3))
