"""Small networks around one layer: what comes before it makes its input random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WIDTH", "Apply", "ImageFrame", "SequenceFrame", "image_frame", "sequence_frame"]

WIDTH = 16


class Apply(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor) -> Any:
        return self.function(*values)


class ImageFrame(nn.Module):
    """Convolution, ReLU, the layer in question, flatten, linear."""

    def __init__(self, layer: nn.Module, size: int, dimensions: int = 2) -> None:
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
        self.stem = nn.Sequential(convolution(3, WIDTH, 3, padding=1), nn.ReLU())
        self.layer = layer
        with torch.no_grad():
            features = self.features(torch.zeros(1, 3, *(size,) * dimensions)).shape[-1]
        self.head = nn.Linear(features, 3)

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.stem(x))
        return y.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x))
        return y


class SequenceFrame(nn.Module):
    """Linear, the layer in question, mean over time, linear."""

    def __init__(self, layer: nn.Module, features: int = 5) -> None:
        super().__init__()
        self.stem = nn.Linear(features, WIDTH)
        self.layer = layer
        self.head = nn.LazyLinear(3)
        self(torch.zeros(1, 6, features))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.stem(x))
        y = y[0] if isinstance(y, tuple) else y
        z: Tensor = self.head(y.mean(1))
        return z


def image_frame(
    layer: Callable[[], nn.Module], size: int = 8, dimensions: int = 2
) -> Callable[[], nn.Module]:
    """A factory of an `ImageFrame` in evaluation mode around `layer()`."""
    return lambda: ImageFrame(layer().eval(), size, dimensions).eval()


def sequence_frame(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A factory of a `SequenceFrame` in evaluation mode around `layer()`."""
    return lambda: SequenceFrame(layer().eval()).eval()
