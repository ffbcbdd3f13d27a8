"""Networks that are read at one token compute that token alone where nothing else is needed."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangency.infinite import InfiniteKernel, Init
from tangency.program.axes import shape_of
from tangency.program.capture import Program, capture
from tangency.program.operations import base_name


class Block(nn.Module):
    """Attention and a norm with closed forms, a residual branch, and one token of the result."""

    def __init__(self, index: int, *, read_twice: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 16)
        self.qkv, self.norm = nn.Linear(16, 48), nn.LayerNorm(16)
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 1)
        self.index, self.read_twice = index, read_twice

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        q, k, v = (z.unflatten(-1, (4, 4)).transpose(1, 2) for z in self.qkv(h).chunk(3, -1))
        h = h + F.scaled_dot_product_attention(q, k, v, scale=0.25).transpose(1, 2).flatten(2)
        h = h + self.narrow(torch.relu(self.wide(self.norm(h))))
        y: Tensor = self.head(h[:, self.index])
        return y + self.head(h.mean(1)) if self.read_twice else y


X = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tokens_of(program: Program, operation: str) -> list[int]:
    """Sizes of the last dimension but one of the nodes of an operation."""
    nodes = [n for n in program.trace.graph.nodes if base_name(n) == operation]
    return [shape_of(n)[-2] for n in nodes]


@pytest.mark.parametrize("index", [0, 2, -1])
def test_the_kernel_is_the_same(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, init = Block(index).double(), Init(weight=1.5, bias=0.1)
    early = InfiniteKernel(model, X, init=init).pair(X)
    capturing = import_module("tangency.program.capture")
    monkeypatch.setattr(capturing, "selected_early", lambda program: None)
    late = InfiniteKernel(model, X, init=init).pair(X)
    for a, b in zip(early, late, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=0)


@pytest.mark.parametrize("index", [0, -1])
def test_one_query_meets_all_keys(index: int) -> None:
    program = capture(Block(index).double(), X, select_early=True)
    assert tokens_of(program, "scaled_dot_product_attention") == [1]
    assert tokens_of(program, "layer_norm") == [1]
    linear = tokens_of(program, "linear")
    assert linear[:2] == [5, 5]  # tokens, and the keys and values of all
    assert linear[2:4] == [1, 1]


def test_what_is_read_twice_stays_whole() -> None:
    program = capture(Block(0, read_twice=True).double(), X, select_early=True)
    assert tokens_of(program, "scaled_dot_product_attention") == [5]


def test_other_captures_stay_whole() -> None:
    assert tokens_of(capture(Block(0).double(), X), "layer_norm") == [5]
