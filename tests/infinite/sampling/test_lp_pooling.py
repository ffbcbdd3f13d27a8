"""Norms over windows of rectified values, which are zero with positive probability."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.infinite.sampling.networks import reinitialise
from tests.infinite.sampling.test_monte_carlo import gap
from tests.infinite.test_monte_carlo import ntk_by_autograd
from torch import Tensor, nn

from tangency.infinite import InfiniteKernel, Init

WIDTH = 192


class Norm(nn.Module):
    """What `LPPool2d(2, 2)` computes, with the gradient zero where a window is empty.

    Torch's own root gives NaN there, though values near an empty window of rectified values are all
    zero.
    """

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(2, 2, 2).unfold(3, 2, 2)
        return torch.linalg.vector_norm(windows, dim=(-2, -1))


class Pooled(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.first, self.pool = nn.Conv2d(2, WIDTH, 3, padding=1), pool
        self.second, self.last = nn.Conv2d(WIDTH, WIDTH, 2), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(F.relu(self.first(x)))
        return self.last(F.relu(self.second(h)).mean((2, 3)))


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)


def test_lp_pooling_is_the_limit_of_the_norm() -> None:
    x, generator = images(), torch.Generator().manual_seed(1)
    model = Pooled(Norm()).double()
    draws = []
    for _ in range(40):
        reinitialise(model, 1.7, 0.1, generator)
        draws.append(ntk_by_autograd(model, x))
    pooled = Pooled(nn.LPPool2d(2, 2)).double()
    torch.testing.assert_close(pooled.pool(x), model.pool(x))
    kernel = InfiniteKernel(pooled, x, init=Init(weight=1.7, bias=0.1), numerical="sample")
    found = kernel.estimate(x)
    apart, bound = gap(torch.stack(draws), found.ntk, found.ntk_error)
    assert apart < bound < 0.2
