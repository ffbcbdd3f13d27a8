"""float32 does not lose what float64 has, in networks with positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tangency.infinite import InfiniteKernel, Init

CHANNELS, SIDE = 8, 5
HE = Init(weight=2.0, bias=0.0)


class Residual(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        for block in self.blocks:
            hidden = hidden + block(torch.relu(hidden))
        return torch.relu(hidden)


def plain(depth: int) -> nn.Module:
    layers: list[nn.Module] = []
    for k in range(depth):
        layers += [nn.Conv2d(CHANNELS if k else 3, CHANNELS, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def network(body: nn.Module, *, pooled: bool) -> nn.Module:
    if pooled:
        return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 1))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(CHANNELS * SIDE**2, 1))


NETWORKS = {
    "depth 20, flattened": network(plain(20), pooled=False),
    "depth 20, pooled": network(plain(20), pooled=True),
    "residual, depth 6, flattened": network(Residual(6), pooled=False),
    "residual, depth 6, pooled": network(Residual(6), pooled=True),
}


def images(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(4, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    if kind == "near-duplicates":
        distances = torch.tensor([0.0, 1e-3, 1e-4, 1e-6], dtype=x.dtype)
        x = x[:1] + distances[:, None, None, None] * x
    if kind == "one colour":  # patches that coincide at many positions
        x = x.mean((2, 3), keepdim=True).expand_as(x).contiguous()
    if kind == "zero":
        x[1] = 0.0
    if kind == "tiny and huge":
        x = x * torch.tensor([1e-8, 1e8, 1.0, 1e8], dtype=x.dtype)[:, None, None, None]
    return x.float().double()  # the same data in both types


KINDS = ["apart", "near-duplicates", "one colour", "zero", "tiny and huge"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_keeps_what_float64_has(name: str, kind: str) -> None:
    x = images(kind)
    kernel = InfiniteKernel(NETWORKS[name], x.float(), init=HE)
    narrow, wide = kernel.pair(x.float()), kernel.pair(x)
    for mine, exact in zip(narrow, wide, strict=True):
        assert bool(torch.isfinite(mine).all())
        scale = torch.sqrt(exact.diagonal()[:, None] * exact.diagonal()).clamp_min(1e-300)
        error = (mine.double() - exact).abs() / torch.where(scale > 1e-290, scale, 1.0)
        assert float(error.max()) < 1e-4
        diagonal = (mine.diagonal().double() - exact.diagonal()).abs()
        assert bool((diagonal <= 1e-6 * exact.diagonal()).all())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tiny and huge"])
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_gram_matrices_are_positive(name: str, kind: str) -> None:
    x = images(kind).float()
    for matrix in InfiniteKernel(NETWORKS[name], x, init=HE).pair(x):
        assert torch.equal(matrix, matrix.T)
        lowest = torch.linalg.eigvalsh(matrix.double())[0]
        assert float(lowest) > -1e-6 * float(matrix.diagonal().mean())
