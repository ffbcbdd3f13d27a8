"""Networks whose covariance is local in the offset, up to pooling."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NETWORKS", "images"]

WIDTH = 4


class Residual(nn.Module):
    """x + conv(relu(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(x))


class Shortcut(nn.Module):
    """A pooled branch and a strided one that meet, and two readouts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pooled = nn.Conv2d(width, width, 1)
        self.strided = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.flat = nn.Linear(width * 12, 1)
        self.mean = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.pooled(F.avg_pool2d(x, 2)) + self.strided(x))
        return self.flat(x.flatten(1)) + self.mean(x.mean((2, 3)))


class Tied(nn.Module):
    """One convolution twice, around a normalisation of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).movedim(1, -1)).movedim(-1, 1)
        return F.relu(self.conv(F.relu(x)))


class Around(nn.Module):
    """Padding around the columns, circular or zero around the rows, put in front of a filter."""

    def __init__(self, width: int, mode: str = "constant", below: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, (3, 5), padding=(below, 0))
        self.mode = mode
        self.rows = 1 - below

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, self.rows, self.rows), mode=self.mode)
        return F.relu(self.conv(F.pad(x, (1, 3, 0, 0), mode="circular")))


class DownAndUp(nn.Module):
    """A coarse branch on the way of a fine one, as in a U-Net."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.skip = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.up(F.relu(self.down(x))))


class Block(nn.Module):
    """relu(shortcut + conv(relu(conv(x)))), the shortcut being x or, with a stride, a filter."""

    def __init__(self, width: int, stride: int = 1, slope: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        strided = nn.Conv2d(width, width, 1, stride=stride)
        self.shortcut = nn.Identity() if stride == 1 else strided
        self.act = nn.LeakyReLU(slope)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.second(self.act(self.first(x))))


class UNet(nn.Module):
    """Two scales, of which the coarse one comes back by resizing, beside the fine one or on it."""

    def __init__(self, width: int, mode: str, *, added: bool = False) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(width, width, 3, padding=1)
        self.fine = nn.Conv2d(width if added else 2 * width, width, 3, padding=1)
        self.mode, self.added = mode, added

    def forward(self, x: Tensor) -> Tensor:
        coarse = F.relu(self.coarse(F.avg_pool2d(x, 2)))
        back = F.interpolate(coarse, size=x.shape[2:], mode=self.mode)
        return F.relu(self.fine(x + back if self.added else torch.cat([back, x], 1)))


class Subsampled(nn.Module):
    """A shortcut that takes every other position and leaves out the last, beside a strided one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 0, 0, 2))
        return F.relu(x[:, :, ::2, 1:-1:2] + self.conv(F.relu(x))[:, :, :, 1:])


class Rolled(nn.Module):
    """Positions that are flipped, rolled and chosen one by one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(2).roll(2, 3)[:, :, torch.tensor([1, 1, 4, 0])]


class Mean(nn.Module):
    """The mean over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


def convolutional(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), nn.ReLU(), *layers)


def conv(kernel: int | tuple[int, int] = 3, **options: object) -> nn.Module:
    return nn.Conv2d(WIDTH, WIDTH, kernel, **options)  # type: ignore[arg-type]


def head(inputs: int = WIDTH) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(inputs, 1)]


def pooled() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), *head()]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "fully connected": (
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1)
        ),
        (5,),
    ),
    "flattened": (lambda: convolutional(conv(padding=1), nn.LeakyReLU(0.1), *head(120)), (3, 5, 6)),
    "pooled": (
        lambda: convolutional(conv((3, 1), padding=(1, 0)), nn.ReLU(), *pooled()),
        (3, 5, 6),
    ),
    "valid": (lambda: convolutional(conv(), nn.ReLU(), conv(2), nn.ReLU(), *pooled()), (3, 6, 7)),
    "valid, of a smooth function": (
        lambda: convolutional(conv((2, 3)), nn.GELU(), conv(2), nn.GELU(), *pooled()),
        (3, 6, 7),
    ),
    "mean of all pixels": (
        lambda: convolutional(nn.Flatten(2), nn.AdaptiveAvgPool1d(1), *head()),
        (3, 5, 6),
    ),
    "strided": (
        lambda: convolutional(conv(stride=2, padding=1), nn.ReLU(), conv(5, padding=2), *pooled()),
        (3, 7, 8),
    ),
    "uneven strides": (
        lambda: convolutional(conv(stride=(1, 3), padding=1), nn.GELU(), *pooled()),
        (3, 5, 7),
    ),
    "dilated": (
        lambda: convolutional(conv(dilation=2, padding=2), nn.ReLU(), *pooled()),
        (3, 6, 5),
    ),
    "residual": (
        lambda: convolutional(conv(padding=1), Residual(WIDTH), Residual(WIDTH), *pooled()),
        (3, 4, 6),
    ),
    "shortcut": (lambda: convolutional(Shortcut(WIDTH)), (3, 6, 8)),
    "tied": (lambda: convolutional(Tied(WIDTH), *pooled()), (3, 5, 4)),
    "pools": (
        lambda: convolutional(
            nn.AvgPool2d(2),
            conv(padding=1),
            nn.ReLU(),
            nn.AvgPool2d((1, 2)),
            conv(padding=1),
            nn.ReLU(),
            *head(WIDTH * 6),
        ),
        (3, 7, 8),
    ),
    "pools and mean": (
        lambda: convolutional(
            nn.AvgPool2d(2),
            conv(stride=2, padding=1),
            nn.ReLU(),
            Mean(),
            nn.Linear(WIDTH, 8),
            nn.ReLU(),
            nn.Linear(8, 1),
        ),
        (3, 8, 6),
    ),
    "circular": (
        lambda: nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            conv((3, 5), padding="same", dilation=(2, 1), padding_mode="circular"),
            nn.GELU(),
            *pooled(),
        ),
        (3, 5, 6),
    ),
    "circular, strided and pooled": (
        lambda: nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, stride=(1, 2), padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.AvgPool2d(2),
            conv(padding=1, padding_mode="circular"),
            nn.ReLU(),
            conv(stride=2, padding=1, padding_mode="circular"),
            nn.ReLU(),
            *pooled(),
        ),
        (3, 8, 16),
    ),
    "circular around columns": (
        lambda: convolutional(
            Around(WIDTH),
            conv(padding=1),
            Residual(WIDTH),
            Around(WIDTH, below=1),
            *pooled(),
        ),
        (3, 4, 6),
    ),
    "circular in two steps": (
        lambda: convolutional(Around(WIDTH, "circular"), *head(120)),
        (3, 5, 6),
    ),
    "circular in one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(2, WIDTH, 4, padding="same", padding_mode="circular"),
            nn.ReLU(),
            nn.CircularPad1d((2, 0)),
            nn.Conv1d(WIDTH, WIDTH, 3),
            nn.ReLU(),
            Mean(),
            nn.Linear(WIDTH, 1),
        ),
        (2, 9),
    ),
    "zeros in front of filters": (
        lambda: nn.Sequential(
            nn.ZeroPad2d((0, 1, 2, 0)),
            nn.Conv2d(3, WIDTH, 3, padding=(0, 1)),
            nn.ReLU(),
            nn.ZeroPad2d((1, 2, 1, 0)),
            conv((2, 4), stride=2),
            nn.ReLU(),
            *pooled(),
        ),
        (3, 5, 6),
    ),
    "transposed": (
        lambda: convolutional(
            nn.ConvTranspose2d(WIDTH, WIDTH, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            conv(padding=1),
            nn.GELU(),
            *pooled(),
        ),
        (3, 3, 4),
    ),
    "transposed twice": (
        lambda: convolutional(
            nn.ConvTranspose2d(WIDTH, WIDTH, (2, 1), stride=(2, 1)),
            nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, WIDTH, (3, 4), stride=(2, 3), padding=(2, 1)),
            nn.ReLU(),
            *pooled(),
        ),
        (3, 3, 3),
    ),
    "transposed between pools": (
        lambda: convolutional(
            nn.AvgPool2d(2),
            nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2, dilation=3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(3),
            conv(padding=1),
            nn.ReLU(),
            *pooled(),
        ),
        (3, 6, 6),
    ),
    "transposed, after a pool that leaves a rest": (
        lambda: convolutional(
            nn.AvgPool2d(2),
            nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2),
            nn.ReLU(),
            *pooled(),
        ),
        (3, 7, 5),
    ),
    "transposed and flattened": (
        lambda: convolutional(
            conv(stride=3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=3, bias=False),
            nn.ReLU(),
            *head(WIDTH * 25),
        ),
        (3, 6, 5),
    ),
    "down and up": (
        lambda: convolutional(DownAndUp(WIDTH), DownAndUp(WIDTH), *pooled()),
        (3, 4, 6),
    ),
    "identity blocks that end in a ReLU": (
        lambda: convolutional(Block(WIDTH), Block(WIDTH, stride=2), Block(WIDTH), *pooled()),
        (3, 5, 6),
    ),
    "identity block, pooled, then flattened": (
        lambda: convolutional(
            Block(WIDTH, slope=0.1), nn.AvgPool2d(2), conv(padding=1), nn.ReLU(), *head(WIDTH * 6)
        ),
        (3, 4, 7),
    ),
    "nearest upsampling": (
        lambda: convolutional(UNet(WIDTH, "nearest"), UNet(WIDTH, "nearest"), *pooled()),
        (3, 4, 6),
    ),
    "nearest upsampling, added": (
        lambda: convolutional(
            conv(), nn.ReLU(), conv(padding=1), UNet(WIDTH, "nearest", added=True), *pooled()
        ),
        (3, 6, 8),
    ),
    "nearest upsampling to any size, strided and flattened": (
        lambda: convolutional(
            nn.Upsample((7, 8)), conv(stride=(2, 3), padding=1), nn.ReLU(), *head(WIDTH * 12)
        ),
        (3, 3, 5),
    ),
    "upsampling, then transposed": (
        lambda: convolutional(
            nn.Upsample(scale_factor=2),
            nn.ConvTranspose2d(WIDTH, WIDTH, 3, stride=2, padding=1),
            nn.ReLU(),
            *pooled(),
        ),
        (3, 2, 3),
    ),
    "bilinear upsampling": (
        lambda: convolutional(UNet(WIDTH, "bilinear"), conv(padding=1), nn.GELU(), *pooled()),
        (3, 6, 4),
    ),
    "windows that overlap": (
        lambda: convolutional(
            nn.AvgPool2d(3, stride=2, padding=1),
            conv(padding=1),
            nn.ReLU(),
            nn.AvgPool2d((1, 2), ceil_mode=True, count_include_pad=False),
            conv(padding=1),
            nn.ReLU(),
            *pooled(),
        ),
        (3, 6, 9),
    ),
    "reflected": (
        lambda: nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, padding=1, padding_mode="reflect"),
            nn.ReLU(),
            conv((3, 5), padding=(1, 2), padding_mode="reflect"),
            nn.ReLU(),
            conv(stride=2, padding=1, padding_mode="reflect"),
            nn.GELU(),
            *pooled(),
        ),
        (3, 5, 6),
    ),
    "replicated": (
        lambda: convolutional(
            conv(padding=2, dilation=2, padding_mode="replicate"),
            nn.ReLU(),
            nn.AvgPool2d(2),
            conv(padding=1, padding_mode="replicate"),
            nn.ReLU(),
            *head(WIDTH * 6),
        ),
        (3, 4, 7),
    ),
    "reflected and upsampled": (
        lambda: convolutional(
            conv(stride=2, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.ReflectionPad2d((1, 2, 0, 1)),
            conv(3),
            nn.ReLU(),
            *pooled(),
        ),
        (3, 4, 6),
    ),
    "circular around part of the positions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, stride=2, padding=1, padding_mode="circular"),
            nn.ReLU(),
            conv(padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2),
            *pooled(),
        ),
        (3, 5, 6),
    ),
    "every other position": (
        lambda: convolutional(conv(padding=1), Subsampled(WIDTH), *pooled()),
        (3, 5, 8),
    ),
    "flipped, rolled and chosen": (
        lambda: convolutional(Rolled(), conv(2), nn.ReLU(), *pooled()),
        (3, 5, 6),
    ),
    "one dimension, upsampled": (
        lambda: nn.Sequential(
            nn.Conv1d(2, WIDTH, 3, stride=2),
            nn.ReLU(),
            nn.Upsample(scale_factor=3),
            nn.Conv1d(WIDTH, WIDTH, 3, padding=1, padding_mode="reflect"),
            nn.ReLU(),
            Mean(),
            nn.Linear(WIDTH, 1),
        ),
        (2, 9),
    ),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(2, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool1d(2),
            nn.Conv1d(WIDTH, WIDTH, 3, padding=2),
            nn.ReLU(),
            Mean(),
            nn.Linear(WIDTH, 1),
        ),
        (2, 11),
    ),
}


def images(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """Smooth random fields, so that angles of all sizes occur."""
    fields = torch.randn(count, *shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    if len(shape) == 3:
        fields = F.avg_pool2d(fields, 3, 1, 1)
    return fields
