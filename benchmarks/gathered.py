"""Generated code against eager evaluation, of networks that are more than zero-padded convolutions.

    python benchmarks/gathered.py [unet] [reflected] [identity_blocks]

Each kernel is computed on one thread, several times: at first once to compile, then the two ways
in turn; the least time counts. Eager evaluation may take a minute.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangency.infinite import InfiniteKernel

WIDTH = 8
"""Channels; the limit does not depend on them."""

REPETITIONS = 7
"""Of generated code; eager evaluation is repeated until it has taken `LONG_S` seconds."""

LONG_S = 30.0


def conv(before: int = WIDTH, stride: int = 1, mode: str = "zeros") -> nn.Conv2d:
    return nn.Conv2d(before, WIDTH, 3, stride, padding=1, padding_mode=mode)


class UNet(nn.Module):
    """Three scales of two convolutions, average pooling, nearest upsampling, concatenated skips."""

    def __init__(self) -> None:
        super().__init__()
        fans = ((3, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (2 * WIDTH, WIDTH), (2 * WIDTH, WIDTH))
        self.stages = nn.ModuleList(
            nn.Sequential(conv(first), nn.ReLU(), conv(second), nn.ReLU()) for first, second in fans
        )
        self.readout = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stages[0](x)
        middle = self.stages[1](F.avg_pool2d(fine, 2))
        h = self.stages[2](F.avg_pool2d(middle, 2))
        for stage, skip in ((self.stages[3], middle), (self.stages[4], fine)):
            h = stage(torch.cat([F.interpolate(h, scale_factor=2.0), skip], 1))
        y: Tensor = self.readout(h.mean((2, 3)))
        return y


class Block(nn.Module):
    """Two convolutions and a shortcut that meet in a ReLU (He et al. 2016)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(stride=stride), conv()
        strided = nn.Conv2d(WIDTH, WIDTH, 1, stride)
        self.shortcut = nn.Identity() if stride == 1 else strided

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.second(torch.relu(self.first(x))))


def pooled(*layers: nn.Module) -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 1))
    return nn.Sequential(*layers, *head)


def reflected() -> nn.Module:
    fans = (3, WIDTH, WIDTH, WIDTH)
    return pooled(*(m for fan in fans for m in (conv(fan, mode="reflect"), nn.ReLU())))


def identity_blocks() -> nn.Module:
    return pooled(conv(3), nn.ReLU(), Block(1), Block(2), Block(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "unet": (UNet, 32, 4),
    "reflected": (reflected, 32, 4),
    "identity_blocks": (identity_blocks, 16, 4),
}
"""By name: the network, the side of the images, how many there are."""


def timed(kernel: InfiniteKernel, x: Tensor) -> tuple[float, Tensor]:
    start = time.perf_counter()
    ntk = kernel.ntk(x)
    return time.perf_counter() - start, ntk


def report(name: str) -> str:
    """One row of a table."""
    make, side, count = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make(), torch.randn(count, 3, side, side)
    fused, eager = (InfiniteKernel(model, x, compile=c) for c in (True, False))
    first, _ = timed(fused, x)
    ours: list[float] = []
    theirs: list[float] = []
    error = 0.0
    while len(ours) < REPETITIONS:
        seconds, ntk = timed(fused, x)
        ours.append(seconds)
        if sum(theirs) < LONG_S:
            seconds, expected = timed(eager, x)
            theirs.append(seconds)
            error = float(((ntk - expected).abs() / expected.abs()).max())
    best = min(ours), min(theirs)
    return (
        f"| {name} | {side} | {count} | {best[0]:.3f} [{first:.1f}] | {best[1]:.2f}"
        f" | {best[1] / best[0]:.0f} | {error:.0e} |"
    )


def main() -> None:
    torch.set_num_threads(1)
    print(f"load average {os.getloadavg()[0]:.1f}, torch {torch.__version__}, one thread, float32")
    print("| network | side | n | generated code, s [first] | eager, s | ratio | difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in sys.argv[1:] or NETWORKS:
        print(report(name), flush=True)


if __name__ == "__main__":
    main()
