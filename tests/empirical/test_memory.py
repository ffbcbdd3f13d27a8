"""Kernels in tiles hold the features of one block of rows at a time."""

from __future__ import annotations

import torch
from tests.infinite.allocations import Allocations
from torch import nn

from tangency.empirical import EmpiricalKernel
from tangency.empirical.schedule import WORK

MEBIBYTE = 1 << 20


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def test_a_block_of_rows_is_let_go_before_the_next_one() -> None:
    x = torch.randn(400, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    kernel = EmpiricalKernel(convolutional(), output="trace", memory=130 * MEBIBYTE)
    plan = kernel.plan(x)
    assert plan.tile[0] < 200
    with Allocations() as allocations:
        kernel.ntk(x)
    assert allocations.peak < plan.memory - WORK
