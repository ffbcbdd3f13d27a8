"""Windows of convolutions: what multiplies a weight laid out as a matrix gives the convolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tangency.empirical.windows import Windows
from tangency.program.geometry import ConvGeometry, Sizes

CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}

CASES: dict[str, tuple[Sizes, Sizes, Sizes, Sizes, Sizes, int]] = {
    # kernel, stride, zeros before, zeros after, dilation, groups
    "one dimension": ((3,), (2,), (1,), (1,), (2,), 1),
    "uneven padding": ((2, 3), (1, 1), (1, 0), (0, 2), (1, 1), 1),
    "strides and groups": ((3, 2), (2, 1), (1, 1), (1, 1), (1, 2), 3),
    "three dimensions": ((2, 1, 3), (1, 2, 1), (1, 0, 1), (1, 0, 1), (1, 1, 1), 2),
}


def geometry(name: str) -> ConvGeometry:
    kernel, stride, before, after, dilation, groups = CASES[name]
    zeros = (0,) * len(kernel)
    return ConvGeometry(kernel, stride, before, after, dilation, groups, False, zeros)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_windows_times_weight_are_the_convolution(name: str, channels_last: bool) -> None:
    windows = Windows(geometry(name))
    kernel, stride, before, after, dilation, groups = CASES[name]
    rank, width, channels = len(kernel), 4, 6 // groups
    values = normal(5, 2, 6, *(7, 8, 5)[:rank])  # examples, images of each, channels, space
    if channels_last:
        values = values.movedim(2, -1).contiguous().movedim(-1, 2)
    weight = normal(groups * width, channels, *kernel, seed=1)
    amounts = [a for pair in reversed(list(zip(before, after, strict=True))) for a in pair]
    padded = functional.pad(values.flatten(0, 1), amounts)
    convolved = CONVOLVE[rank](padded, weight, None, stride, 0, dilation, groups)
    expected = convolved.unflatten(0, (5, 2)).unflatten(2, (groups, width)).flatten(4)
    by_group = weight.unflatten(0, (groups, width)).flatten(3)  # groups, width, channels, taps
    matrices = {
        windows.of: by_group.flatten(2),
        windows.in_any_order: by_group.mT.flatten(2),
    }
    for lay_out, matrix in matrices.items():
        found = lay_out(values) @ matrix.mT  # examples, groups, images and positions, width
        by_image = found.unflatten(2, (2, -1)).movedim(2, 1).mT
        torch.testing.assert_close(by_image, expected)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[-1] == 1])
def test_some_channels_have_windows_of_their_own(name: str) -> None:
    windows = Windows(geometry(name))
    values = normal(3, 1, 6, *(7, 8)[: len(CASES[name][0])])
    first = windows.of(values)[..., : 2 * windows.taps]
    torch.testing.assert_close(windows.of(values[:, :, :2]), first)
