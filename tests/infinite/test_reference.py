"""Against kernels computed in float64 by an independent library (tests/data/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tangency.infinite import InfiniteKernel, Init

DATA = Path(__file__).parents[1] / "data"


class Pointwise(nn.Module):
    def __init__(self, function: object):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mlp(features: int, depth: int, activation: nn.Module, *, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers.append(nn.Linear(features if i == 0 else 512, 512))
        if norm:
            layers.append(nn.LayerNorm(512, eps=1e-12, elementwise_affine=False))
        layers.append(activation)
    return nn.Sequential(*layers, nn.Linear(512, 1))


class PreActivationResidual(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.first = nn.Linear(features, 512)
        self.blocks = nn.ModuleList([nn.Linear(512, 512), nn.Linear(512, 512)])
        self.last = nn.Linear(512, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(torch.relu(x))
        return self.last(torch.relu(x))


class ConvolutionalResidual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, 512, 3, padding=1)
        self.inner = nn.Conv2d(512, 512, 3, padding=1)
        self.outer = nn.Conv2d(512, 512, 3, padding=1)
        self.last = nn.Linear(512, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.outer(torch.relu(self.inner(torch.relu(x))))
        return self.last(torch.relu(x).mean((2, 3)))


def cnn(channels: int, *end: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 512, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(512, 512, 3, padding=1),
        nn.ReLU(),
        *end,
    )


def strided_circular(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.CircularPad2d((0, 1, 0, 1)),
        nn.Conv2d(channels, 512, 3, stride=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(512, 512, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512 * 2 * 2, 1),
    )


NETWORKS = {
    "fc_relu_3": lambda d: mlp(d, 3, nn.ReLU()),
    "fc_relu_3_standard_512": lambda d: mlp(d, 2, nn.ReLU()),
    "fc_erf_2": lambda d: mlp(d, 2, Pointwise(torch.erf)),
    "fc_gelu_2": lambda d: mlp(d, 2, nn.GELU()),
    "fc_sin_2": lambda d: mlp(d, 2, Pointwise(torch.sin)),
    "fc_layernorm": lambda d: mlp(d, 2, nn.ReLU(), norm=True),
    "fc_preact_residual": PreActivationResidual,
    "conv_same_flatten": lambda c: cnn(c, nn.Flatten(), nn.Linear(512 * 6 * 5, 1)),
    "conv_same_gap": lambda c: cnn(c, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1)),
    "conv_stride2_circular_avgpool_flatten": strided_circular,
    "conv_preact_resnet_gap": ConvolutionalResidual,
}
HIDDEN = {"fc_erf_2": (2.25, 0.04), "fc_gelu_2": (2.25, 0.04), "fc_sin_2": (1.44, 0.04)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NETWORKS)
def test_reference(name: str, dtype: torch.dtype) -> None:
    with np.load(DATA / f"{name}.npz") as stored:
        reference = {key: torch.from_numpy(stored[key]) for key in stored.files}
    x1, x2 = (reference[name].to(dtype) for name in ("x1", "x2"))
    if name.startswith("conv"):
        x1, x2 = x1.movedim(-1, 1), x2.movedim(-1, 1)
    model = NETWORKS[name](x1.shape[1])
    weight, bias = HIDDEN.get(name, (2.0, 0.09))
    last = [parameter for parameter, _ in model.named_parameters()][-2]
    kernel = InfiniteKernel(
        model,
        x1[:2].float(),
        init=Init(weight=weight, bias=bias, overrides={last: 1.0}),
        parametrization="standard" if "standard" in name else "ntk",
    )
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    for suffix, pair in (("11", kernel.pair(x1)), ("12", kernel.pair(x1, x2))):
        for which, matrix in (("nngp", pair.nngp), ("ntk", pair.ntk)):
            expected = reference[f"{which}_{suffix}"]
            assert matrix.dtype == dtype
            torch.testing.assert_close(matrix.double(), expected, rtol=tolerance, atol=0)
