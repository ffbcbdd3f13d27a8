"""Pooling and resizing, against the operation itself on covariances in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.infinite.images import (
    Operation,
    assert_same,
    expected,
    hidden,
    images,
    kernels,
    on_both_sides,
)
from torch import nn

from tangency.infinite import InfiniteKernel, Init

RESAMPLINGS: dict[str, Operation] = {
    "pairs": lambda h: F.avg_pool2d(h, 2),
    "overlapping": lambda h: F.avg_pool2d(h, (3, 2), stride=(1, 2)),
    "padded": nn.AvgPool2d((2, 3), stride=(2, 1), padding=1),
    "padding not counted": nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    "rounded up": nn.AvgPool2d(2, stride=2, ceil_mode=True),
    "rounded up, padded": nn.AvgPool2d((3, 2), stride=(2, 3), padding=1, ceil_mode=True),
    "sums": nn.AvgPool2d((2, 3), divisor_override=1),
    "another divisor": nn.AvgPool2d(2, stride=1, divisor_override=3),
    "adaptive": nn.AdaptiveAvgPool2d((2, 4)),
    "adaptive, one column": nn.AdaptiveAvgPool2d((3, 1)),
    "one row": lambda h: F.avg_pool2d(h, (5, 2)),
    "nearest": lambda h: F.interpolate(h, scale_factor=2),
    "nearest, to a size": lambda h: F.interpolate(h, size=(7, 4)),
    "nearest exact": lambda h: F.interpolate(h, size=(8, 4), mode="nearest-exact"),
    "bilinear": lambda h: F.interpolate(h, scale_factor=(2, 1.5), mode="bilinear"),
    "bilinear, corners": lambda h: F.interpolate(
        h, size=(9, 7), mode="bilinear", align_corners=True
    ),
    "bilinear, down": lambda h: F.interpolate(h, size=(3, 4), mode="bilinear", antialias=True),
    "bicubic": lambda h: F.interpolate(h, scale_factor=1.5, mode="bicubic"),
    "area": lambda h: F.interpolate(h, size=(2, 3), mode="area"),
    "two poolings": lambda h: F.avg_pool2d(F.avg_pool2d(h, 2, stride=1), (2, 3)),
    "down and up": lambda h: F.interpolate(F.avg_pool2d(h, (2, 3)), size=(5, 6)),
}


FEW = ("overlapping", "padding not counted", "bilinear", "down and up")


@pytest.mark.parametrize(
    ("name", "readout"),
    [(name, "all") for name in RESAMPLINGS] + [(name, "flatten") for name in FEW],
)
def test_on_closed_covariances(name: str, readout: str) -> None:
    operation = RESAMPLINGS[name]
    after, ntk = (on_both_sides(k, operation) for k in hidden())
    assert_same(kernels(operation, readout), expected(after, ntk, readout))


def test_sum_of_a_window_is_its_mean_times_its_size() -> None:
    sums = kernels(nn.AvgPool2d(2, divisor_override=1), "flatten")
    assert_same(kernels(lambda h: F.avg_pool2d(h, 2) * 4, "flatten"), sums)


GLOBAL: dict[str, Operation] = {
    "mean": lambda h: h.mean((2, 3), keepdim=True),
    "adaptive": nn.AdaptiveAvgPool2d(1),
    "flatten, then mean": lambda h: h.flatten(2).mean(-1)[..., None, None],
    "one axis after the other": lambda h: h.mean(-1).mean(-1)[..., None, None],
    "as large a window": lambda h: F.avg_pool2d(h, h.shape[2:]),
    "a sum": lambda h: h.sum((2, 3), keepdim=True) / 30,
    "rows by hand": lambda h: (
        torch.stack([h[:, :, i] for i in range(5)]).mean(0).mean(-1, keepdim=True)[:, :, None]
    ),
    "views": lambda h: (
        h.reshape(h.shape[0], h.shape[1], 5, 3, 2).mean((2, 4)).mean(-1)[..., None, None]
    ),
}


@pytest.mark.parametrize("name", GLOBAL)
def test_spellings_of_global_pooling(name: str) -> None:
    after, ntk = hidden()
    assert_same(kernels(GLOBAL[name], "flatten"), expected(after, ntk, "mean"))


def test_pooling_by_hand() -> None:
    """Non-overlapping windows by a view of a convolution's positions."""

    class ByHand(nn.Module):
        def __init__(self, by_hand: bool):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, (2, 3), padding=(0, 1))
            self.next = nn.Conv2d(8, 8, 2)
            self.last = nn.Linear(16, 1)
            self.by_hand = by_hand

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.conv(x))
            if self.by_hand:
                h = h.unflatten(2, (2, 2)).unflatten(4, (3, 2)).mean((3, 5))
            else:
                h = F.avg_pool2d(h, 2)
            return self.last(torch.relu(self.next(h)).flatten(1))

    x = images()
    pairs = [
        InfiniteKernel(ByHand(by_hand).double(), x, init=Init(2.0, 0.1)).pair(x)
        for by_hand in (True, False)
    ]
    assert_same(*pairs)


def test_one_and_three_dimensions() -> None:
    """Merged into one axis, or split into three, positions are pooled all the same."""
    flat = kernels(lambda h: F.avg_pool1d(h.flatten(2), 6)[..., None], "flatten")
    assert_same(flat, kernels(lambda h: h.mean(-1, keepdim=True), "flatten"))
    deep = kernels(lambda h: F.avg_pool3d(h.unflatten(3, (3, 2)), (1, 3, 2)).flatten(3), "flatten")
    assert_same(deep, flat)
    cube = kernels(
        lambda h: F.interpolate(h.unflatten(3, (3, 2)), scale_factor=2, mode="trilinear").mean(4),
        "mean",
    )
    line = kernels(
        lambda h: F.interpolate(
            F.interpolate(h, size=(10, 6), mode="bilinear").unflatten(3, (3, 2)).mean(4),
            size=(10, 6),
            mode="bilinear",
        ),
        "mean",
    )
    assert_same(cube, line)
