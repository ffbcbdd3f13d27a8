"""The same kernels on a GPU, where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tangency.infinite import InfiniteKernel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def fully_connected() -> tuple[nn.Module, tuple[int, ...]]:
    layers = (nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 1))
    return nn.Sequential(*layers), (12,)


def series() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 1)), (12,)


def convolutional() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)), (3, 7, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [fully_connected, series, convolutional])
def test_the_device_makes_no_difference(make, dtype: torch.dtype) -> None:
    model, shape = make()
    x = torch.randn(9, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    kernel = InfiniteKernel(model, x)
    on_gpu = kernel.pair(x.cuda())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    for there, here in zip(on_gpu, kernel.pair(x), strict=True):
        assert there.device.type == "cuda"
        torch.testing.assert_close(there.cpu(), here, rtol=tolerance, atol=tolerance)
