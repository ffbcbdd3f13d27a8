"""Selection by data: masks, mask tokens."""

from __future__ import annotations

import math

import torch
from tests.infinite.sequence_models import agrees, limit, sampled_nngps, sampled_ntks
from torch import Tensor, nn

from tangency.infinite import InfiniteKernel


def series(n: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 5, generator=generator, dtype=torch.float64)


class MaskToken(nn.Module):
    """Positions that a mask hides show a learned token, as in masked autoencoders."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.stem, self.token = nn.Linear(5, width), nn.Parameter(torch.zeros(1, 1, width))
        self.hidden, self.head = nn.Linear(3 * width, width), nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.where(x[..., :1] > 0, self.stem(x), self.token)
        return self.head(torch.relu(self.hidden(h.flatten(1))))


def test_mask_tokens() -> None:
    x = series()
    found = limit(MaskToken, 128, x).pair(x)
    assert agrees(sampled_ntks(MaskToken, 128, 60, x), found.ntk, 0.15)
    assert agrees(sampled_nngps(MaskToken, 128, 60, x), found.nngp, 0.15)


class Filled(nn.Module):
    """Zeros where a mask says so, in three spellings, after a nonlinearity or before."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 64), nn.Linear(192, 1)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        h, mask = torch.relu(self.stem(x)), x[..., :1] > 0
        if self.spelling == "product":
            h = h * (~mask).to(h.dtype) + 0.5 * mask.to(h.dtype)
        elif self.spelling == "fill":
            h = h.masked_fill(mask, 0.5)
        else:
            h = torch.where(mask, 0.5, h)
        return self.head(h.flatten(1))


def test_spellings_of_a_mask() -> None:
    x = series()
    models = [Filled(spelling).double() for spelling in ("product", "fill", "where")]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    pairs = [InfiniteKernel(model, x).pair(x) for model in models]
    for pair in pairs[1:]:
        assert torch.allclose(pair.nngp, pairs[0].nngp, rtol=1e-12)
        assert torch.allclose(pair.ntk, pairs[0].ntk, rtol=1e-12)


def test_a_comparison_of_random_values_is_a_nonlinearity() -> None:
    class Model(nn.Module):
        def __init__(self, *, where: bool) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(5, 64), nn.Linear(64, 1)
            self.where = where

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            h = torch.where(h > 0, h, 0.0) if self.where else torch.relu(h)
            return self.head(h.mean(1))

    x, first = series(), Model(where=True).double()
    second = Model(where=False).double()
    second.load_state_dict(first.state_dict())
    ntks = [InfiniteKernel(model, x).ntk(x) for model in (first, second)]
    assert torch.allclose(ntks[0], ntks[1], rtol=1e-3)
    assert math.isfinite(float(ntks[0].sum()))
