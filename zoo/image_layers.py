"""Every layer and operation on images that the engine sets out to know, each in a small network."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from architecture import Architecture
from frames import WIDTH, Apply, image_frame
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["CONVOLUTIONS", "GATES_AND_RESIDUALS", "NORMALISATIONS", "POOLINGS", "POSITIONS"]


def _row(
    name: str, layer: Callable[[], nn.Module], size: int = 8, dimensions: int = 2
) -> Architecture:
    return Architecture(
        name,
        "zoo/image_layers.py",
        image_frame(layer, size, dimensions),
        lambda: torch.randn(2, 3, *(size,) * dimensions),
    )


def _function(name: str, function: Callable[[Tensor], Tensor]) -> Architecture:
    return _row(name, lambda: Apply(function))


def _convolution(name: str, **arguments: object) -> Architecture:
    def layer() -> nn.Module:
        return nn.Conv2d(WIDTH, WIDTH, **{"kernel_size": 3, **arguments})  # type: ignore[arg-type]

    return _row(name, layer)


class LocallyConnected(nn.Module):
    """A convolution whose weights are not shared: one set of filters per position."""

    def __init__(self, size: int) -> None:
        super().__init__()
        fan_in = 9 * WIDTH
        self.weight = nn.Parameter(torch.randn(size * size, WIDTH, fan_in) / fan_in**0.5)

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, 3, padding=1)
        return torch.einsum("nfl,lcf->ncl", windows, self.weight)


class StandardisedConv(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (variance + 1e-6).sqrt() / self.weight[0].numel() ** 0.5
        return F.conv2d(x, weight, self.bias, padding=1)


class ResponseNorm(nn.Module):
    """Global response normalisation (Woo et al. 2023)."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        return x + x * size / (size.mean(1, keepdim=True) + 1e-6)


CONVOLUTIONS = [
    _row("Conv1d", lambda: nn.Conv1d(WIDTH, WIDTH, 3), 10, 1),
    _convolution("Conv2d, uneven kernel and stride", kernel_size=(3, 2), stride=(2, 1)),
    _row("Conv3d", lambda: nn.Conv3d(WIDTH, WIDTH, 3), 4, 3),
    _convolution("Conv2d, wide zero padding", padding=3),
    _convolution('Conv2d, padding="same"', padding="same", kernel_size=4),
    _convolution("Conv2d, circular padding", padding=1, padding_mode="circular"),
    _convolution("Conv2d, reflect padding", padding=1, padding_mode="reflect"),
    _convolution("Conv2d, replicate padding", padding=1, padding_mode="replicate"),
    _convolution("Conv2d, dilation", dilation=2),
    _convolution("Conv2d, groups", groups=4),
    _convolution("Conv2d, depthwise", groups=WIDTH),
    _row(
        "Conv2d, depthwise, two filters for each channel",
        lambda: nn.Sequential(
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, groups=WIDTH), nn.Conv2d(2 * WIDTH, WIDTH, 1)
        ),
    ),
    _row("ConvTranspose2d", lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 3, stride=2, padding=1)),
    _row("Unshared convolution by unfold and einsum", lambda: LocallyConnected(8)),
]

POOLINGS = [
    _row("AvgPool2d", lambda: nn.AvgPool2d(2)),
    _row(
        "AvgPool2d, padding, ceil mode, padding not counted",
        lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
    ),
    _row("AdaptiveAvgPool2d(3), uneven", lambda: nn.AdaptiveAvgPool2d(3)),
    _row("AdaptiveAvgPool2d(1)", lambda: nn.AdaptiveAvgPool2d(1)),
    _function("Global average, `x.mean((2, 3))`", lambda x: x.mean((2, 3))),
    _function("Global average, `flatten` and `mean`", lambda x: x.flatten(2).mean(-1)),
    _function("Sum pooling", lambda x: x.sum((2, 3))),
    _row("MaxPool2d", lambda: nn.MaxPool2d(2)),
    _row("MaxPool2d, overlapping windows", lambda: nn.MaxPool2d(3, 2, padding=1)),
    _row("AdaptiveMaxPool2d(1)", lambda: nn.AdaptiveMaxPool2d(1)),
    _function("Maximum over positions, `x.amax((2, 3))`", lambda x: x.amax((2, 3))),
    _row("LPPool2d, p = 2", lambda: nn.LPPool2d(2, 2)),
]

POSITIONS = [
    _row("Upsample, nearest", lambda: nn.Upsample(scale_factor=2)),
    _row("Upsample, bilinear", lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    _row("Interpolate to a size, bicubic", lambda: nn.Upsample((5, 11), mode="bicubic")),
    _row("PixelShuffle", lambda: nn.PixelShuffle(2)),
    _row("PixelUnshuffle", lambda: nn.PixelUnshuffle(2)),
    _row("ZeroPad2d and cropping", lambda: nn.Sequential(nn.ZeroPad2d(2), nn.ZeroPad2d(-1))),
    _function("Slicing with a stride", lambda x: x[:, :, 1:-1, ::2]),
    _function("Flip", lambda x: x.flip(-1)),
    _function("Roll", lambda x: x.roll((1, 2), (2, 3))),
    _function("Concatenation along width", lambda x: torch.cat([x, x.flip(-1)], 1)),
    _function("Concatenation along positions", lambda x: torch.cat([x, x.flip(-1)], 3)),
    _function("Stack", lambda x: torch.stack([x, 2 * x], 1)),
    _function("Positional values added", lambda x: x + torch.linspace(-1, 1, 8)),
    _function(
        "Constant matrix over positions",
        lambda x: torch.einsum("nchw,vw->nchv", x, torch.linspace(0, 1, 24).reshape(3, 8)),
    ),
]


def _batch_norm() -> nn.Module:
    """Evaluation mode with running statistics other than 0 and 1, as after training."""
    layer = nn.BatchNorm2d(WIDTH)
    layer.running_mean = torch.full((WIDTH,), 0.1)
    layer.running_var = torch.full((WIDTH,), 1.7)
    return layer


def _after_convolution(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3), layer(), nn.ReLU())


NORMALISATIONS = [
    _row("BatchNorm2d after a convolution", _after_convolution(_batch_norm)),
    _row("BatchNorm2d after ReLU", _batch_norm),
    _row("GroupNorm after a convolution", _after_convolution(lambda: nn.GroupNorm(4, WIDTH))),
    _row("GroupNorm after ReLU", lambda: nn.GroupNorm(4, WIDTH)),
    _row("InstanceNorm2d", _after_convolution(lambda: nn.InstanceNorm2d(WIDTH))),
    _row("GroupNorm, one channel in each group", lambda: nn.GroupNorm(WIDTH, WIDTH)),
    _row("Global response norm", ResponseNorm),
    _row("Conv2d, standardised weight", lambda: StandardisedConv(WIDTH, WIDTH, 3)),
    _row("Conv2d, weight_norm", lambda: weight_norm(nn.Conv2d(WIDTH, WIDTH, 3))),
    _row("LayerNorm over width and positions", lambda: nn.LayerNorm((WIDTH, 8, 8))),
]


class PreActivation(nn.Module):
    """x + conv(relu(x)): a Gaussian branch on a Gaussian stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y: Tensor = x + self.second(torch.relu(x))
        return y


class PostActivation(nn.Module):
    """relu(x + conv(relu(conv(x)))) where x is itself an activation: ResNet's basic block."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            )
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return x


class SqueezeExcitation(nn.Module):
    """Hu et al. 2018: every channel times a sigmoid of the pooled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(WIDTH, 8, 1),
            nn.ReLU(),
            nn.Conv2d(8, WIDTH, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.gate(x)
        return y


class SwiGLU(nn.Module):
    """silu(W1 x) * (W2 x), Shazeer 2020."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(WIDTH, WIDTH, 1)
        self.value = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.silu(self.gate(x)) * self.value(x)
        return y


class DependentProduct(nn.Module):
    """g * tanh(g): both factors are functions of one Gaussian."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        g = self.layer(x)
        y: Tensor = g * torch.tanh(g)
        return y


class SharedBranches(nn.Module):
    """The same weights on both sides of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(self.layer(x) + self.layer(x.flip(-1)))
        return y


GATES_AND_RESIDUALS = [
    _row("Pre-activation residual block", PreActivation),
    _row("Post-activation residual block", lambda: PostActivation(1)),
    _row("Three post-activation residual blocks", lambda: PostActivation(3)),
    _row("Shared weights in both branches of a sum", SharedBranches),
    _row("SwiGLU", SwiGLU),
    _row("GLU", lambda: nn.Sequential(nn.Conv2d(WIDTH, 2 * WIDTH, 1), nn.GLU(1))),
    _row("Product of dependent factors", DependentProduct),
    _row("Squeeze-and-excitation", SqueezeExcitation),
]
