"""The networks whose peak memory is measured, all on 32 x 32 colour images, and their settings."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import Layer
from convolutional import CONV, MYRTLE_5, flattened_layers, pooled_layers
from ours import build_layers
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["POINTS", "SHAPE", "Point"]

SHAPE = (3, 32, 32)

VGG: tuple[Layer, ...] = (
    *(*CONV, "pool"),
    *(*CONV, "pool"),
    *(*CONV, *CONV, "pool"),
    *(*CONV, *CONV, "pool"),
    *(*CONV, *CONV, "pool"),
    *("flatten", "linear"),
)
"""VGG-11 (Simonyan and Zisserman 2015) with average pooling and one linear layer at its end."""


def layers(*names: Layer) -> Callable[[], nn.Module]:
    """A factory of a chain of layers."""
    return lambda: build_layers(names, SHAPE, 3)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut that meet in a ReLU (He et al. 2016)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm, self.second_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        same = stride == 1 and before == width
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first_norm(self.first(x)))
        h = self.second_norm(self.second(h))
        return torch.relu(h + self.shortcut(x))


def resnet18(width: int = 8) -> nn.Module:
    """ResNet-18 with the stem for small images: one 3 x 3 convolution, no max pooling."""
    blocks: list[nn.Module] = []
    before = width
    for stage in range(4):
        for stride in (1 if stage == 0 else 2, 1):
            blocks.append(BasicBlock(before, width << stage, stride))
            before = width << stage
    stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1))
    return nn.Sequential(stem, nn.ReLU(), *blocks, pooled)


class VisionTransformer(nn.Module):
    """Patches of 4 x 4 pixels, a class token, positions, two pre-norm blocks of four heads."""

    def __init__(self, width: int = 32, patches: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, patches + 1, width))
        block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        token = self.token.expand(tokens.shape[0], -1, -1)
        h = self.blocks(torch.cat([token, tokens], 1) + self.places)
        y: Tensor = self.head(h[:, 0])
        return y


class Activated(nn.Module):
    """Convolutions with an activation each and a linear layer over all positions; with `residual`,
    the last convolution is added to the activation before it.
    """

    def __init__(
        self, activation: Callable[[Tensor], Tensor], depth: int, *, residual: bool = False
    ) -> None:
        super().__init__()
        channels = [3, *[8] * depth]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(channels)
        )
        self.head = nn.Linear(8 * 32 * 32, 1)
        self.activation = activation
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            before = x
            x = layer(x)
            if self.residual and k + 1 == len(self.layers):
                x = x + before
            x = self.activation(x)
        y: Tensor = self.head(x.flatten(1))
        return y


@dataclass(frozen=True)
class Point:
    """One kernel: of `rows` examples, with `columns` others if there are any."""

    network: str
    """In words."""
    make: Callable[[], nn.Module]
    rows: int
    columns: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the kernel."""

    @property
    def size(self) -> str:
        """Examples in words."""
        return str(self.rows) if self.columns is None else f"{self.rows} x {self.columns}"


EAGER = {"compile": False}
SAMPLED: dict[str, Any] = {"numerical": "sample"}
FEWER = {"samples": 256}
"""For what would take hours; the covariances, which take most of the memory, are the same."""

POINTS: dict[str, Point] = {
    "pooled": Point("4 convolutions, global pooling", layers(*pooled_layers(4)), 64),
    "pooled_eager": Point(
        "4 convolutions, global pooling", layers(*pooled_layers(4)), 3, options=EAGER
    ),
    "myrtle5": Point("Myrtle-5", layers(*MYRTLE_5), 16),
    "myrtle5_eager": Point("Myrtle-5", layers(*MYRTLE_5), 2, options=EAGER),
    "vgg": Point("VGG-11, average pooling", layers(*VGG), 16),
    "flattened": Point(
        "4 convolutions, flattened", layers(*flattened_layers(4)), 1000, columns=200
    ),
    "flattened_eager": Point(
        "4 convolutions, flattened", layers(*flattened_layers(4)), 200, 100, EAGER
    ),
    "depth21": Point("21 convolutions, global pooling", layers(*pooled_layers(21)), 1, 1),
    "depth21_eager": Point(
        "21 convolutions, global pooling", layers(*pooled_layers(21)), 1, 1, EAGER
    ),
    "tanh": Point("4 convolutions with tanh, flattened", lambda: Activated(torch.tanh, 4), 200),
    "hardtanh": Point(
        "2 convolutions with hardtanh, flattened", lambda: Activated(functional.hardtanh, 2), 50
    ),
    "gelu_residual": Point(
        "2 convolutions with GELU, the second residual, flattened",
        lambda: Activated(functional.gelu, 2, residual=True),
        8,
    ),
    "resnet18": Point("ResNet-18, basic blocks", resnet18, 4, options=SAMPLED),
    "resnet18_more": Point("ResNet-18, basic blocks", resnet18, 8, options=SAMPLED | FEWER),
    "vit_two": Point("small vision transformer", VisionTransformer, 2, options=SAMPLED),
    "vit": Point("small vision transformer", VisionTransformer, 16, options=SAMPLED),
    "vit_more": Point("small vision transformer", VisionTransformer, 64, options=SAMPLED | FEWER),
}
