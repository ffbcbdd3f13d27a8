"""Results that depend on each other: chains of any depth, and what rests on samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tangency import InfiniteKernel, Init
from tangency.infinite import side
from tangency.infinite.memory import Memory, rests_on_samples


def test_long_chains_need_no_deep_recursion() -> None:
    memory = Memory()
    started: list[int] = []

    def depth(k: int) -> int:
        started.append(k)
        return 0 if k == 0 else 1 + int(memory.ask(k - 1, lambda: depth(k - 1)))

    assert memory.ask(5000, lambda: depth(5000)) == 5000
    assert len(started) < 3 * 5000


def test_keys_that_are_new_each_time_end_too() -> None:
    memory = Memory()

    def depth(k: int) -> int:
        if k == 0:
            return 0
        key: object = (object(), k) if k % 40 < 8 else k
        return 1 + int(memory.ask(key, lambda: depth(k - 1)))

    assert memory.ask("top", lambda: depth(400)) == 400


def test_errors_leave_nothing_behind() -> None:
    memory = Memory()

    def fails() -> int:
        raise ValueError("on purpose")

    for _ in range(2):
        with pytest.raises(ValueError, match="on purpose"):
            memory.ask("first", lambda: memory.ask("second", fails))
    assert memory.ask("first", lambda: memory.ask("second", lambda: 3)) == 3


def test_only_exact_results_are_taken_over() -> None:
    memory = Memory()

    def drawn() -> int:
        rests_on_samples()
        return 1

    memory.ask("exact", lambda: 0)
    memory.ask("sampled", drawn)
    memory.ask("through", lambda: memory.ask("between", lambda: memory.ask("sampled", drawn)))
    memory.ask("beside", lambda: memory.ask("exact", lambda: 0))
    assert set(Memory(memory)) == {"exact", "beside"}


class Residual(nn.Module):
    """A residual network of `depth` blocks."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8, bias=False)
        self.blocks = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(depth))
        self.head = nn.Linear(8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + 0.1 * block(x)
        y: Tensor = self.head(x)
        return y


def test_hundreds_of_layers() -> None:
    """Linear blocks: K grows by 1 + 0.01 w2 in each, with the angle unchanged."""
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model, init = Residual(300).double(), Init.lecun()
    kernel = InfiniteKernel(model, x, init=init, parametrization="ntk", compile=False)
    nngp, ntk = kernel.pair(x)
    shallow = x @ x.T / 3
    assert torch.allclose(nngp, shallow * 1.01**300, rtol=1e-9)
    # First and last layer count like the NNGP itself; each block like 0.01 of it over 1.01.
    assert torch.allclose(ntk, nngp * (2 + 300 * 0.01 / 1.01), rtol=1e-9)
    assert torch.allclose(kernel.diagonal(x).nngp, nngp.diagonal(), rtol=1e-9)


def test_a_deep_network_a_few_examples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of single examples that do not fit together are computed apart, and not for ever."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    for _ in range(20):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)).double()
    x = torch.randn(3, 3, 3, 4, dtype=torch.float64)
    whole = InfiniteKernel(model, x, compile=False).pair(x)
    monkeypatch.setattr(side, "KEPT", 1)
    monkeypatch.setattr(side, "CHUNK", 300)  # two examples of 12 x 12 pairs
    torch.testing.assert_close(InfiniteKernel(model, x, compile=False).pair(x), whole)
