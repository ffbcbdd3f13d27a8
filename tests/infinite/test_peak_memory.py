"""How much memory eager evaluation holds at once, counted by what PyTorch allocates."""

from __future__ import annotations

import pytest
import torch
from tests.infinite.allocations import Allocations
from torch import nn

from tangency import InfiniteKernel
from tangency.examples import Examples
from tangency.infinite import planning, side
from tangency.infinite.side import Side

SIZE = 8
BLOCK = SIZE**4 * 8
"""Bytes of one float64 block between all positions of one pair of examples."""


def pooled(depth: int) -> nn.Module:
    """Convolutions and a mean over all positions."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)).double()


def peak_blocks(depth: int, rows: int, columns: int) -> float:
    """Peak of one kernel, in blocks of one pair of examples."""
    x = torch.randn(rows + columns, 3, SIZE, SIZE, dtype=torch.float64)
    kernel = InfiniteKernel(pooled(depth), x, compile=False)
    with torch.no_grad(), Allocations() as allocations:
        kernel.pair(x[:rows], x[rows:])
    return allocations.peak / BLOCK


@pytest.fixture(autouse=True)
def large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images are treated as large ones are."""
    monkeypatch.setattr(side, "KEPT", 1)
    monkeypatch.setattr(side, "CHUNK", SIZE**4)
    monkeypatch.setattr(planning, "CACHED_PAIRS", 1)


@pytest.mark.parametrize("depth", [4, 12])
def test_layers_do_not_add_up(depth: int) -> None:
    """One layer after the other: some thirty blocks at once, those of a polynomial for the most."""
    assert peak_blocks(depth, 1, 1) < 32


def test_examples_do_not_add_up() -> None:
    assert peak_blocks(4, 3, 4) < 36


def test_chunks_keep_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many examples at a time as fit into a quarter of the budget."""
    monkeypatch.setattr(side, "CHUNK", 100 * SIZE**4)
    monkeypatch.setattr(side, "MEMORY_BUDGET", 4 * 80 * BLOCK)
    assert peak_blocks(4, 8, 1) < 85


def test_sides_are_let_go_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are parts of reference cycles, and would stay until Python looks for these."""
    monkeypatch.setattr("tangency.infinite.kernel.examples_per_side", lambda *_: 2)
    x = torch.randn(7, 3, SIZE, SIZE, dtype=torch.float64)
    kernel = InfiniteKernel(pooled(2), x, compile=False)
    make, sides = kernel._side, list[Side]()

    def side_of(x: Examples) -> Side:
        sides.append(make(x))
        return sides[-1]

    monkeypatch.setattr(kernel, "_side", side_of)
    kernel.pair(x)
    assert len(sides) == 10  # of four tiles on the diagonal and six beside it
    assert sum(bool(side._memo) for side in sides) == 1
    sides.clear()
    kernel.diagonal(x)
    assert len(sides) == 4
    assert not any(side._memo for side in sides)
