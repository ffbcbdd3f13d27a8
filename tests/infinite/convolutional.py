"""Networks of images, sequences and graphs, each a function of (width, outputs)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Data = Tensor | tuple[Tensor, ...]
Layer = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Architecture:
    """A network as a function of (width, outputs), and the shape of one example of each input."""

    build: Callable[[int, int], nn.Module]
    shape: tuple[int, ...] = (3, 6, 5)
    adjacency: bool = False

    def data(self, n: int = 3, seed: int = 0) -> Data:
        """Normal data, for graphs with a normalised adjacency and a mask for each."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, *self.shape, generator=generator, dtype=torch.float64)
        if not self.adjacency:
            return x
        nodes = self.shape[0]
        edges = (torch.rand(n, nodes, nodes, generator=generator) < 0.4).double()
        edges = (edges + edges.mT + torch.eye(nodes)).clamp(max=1)
        degree = edges.sum(-1).rsqrt()
        mask = (torch.rand(n, nodes, generator=generator) < 0.8).double()
        return x, degree[:, :, None] * edges * degree[:, None], mask


class Chain(nn.Module):
    """Layers in a row, given the width, and a linear readout of all that is left."""

    def __init__(self, layers: Callable[[int], list[nn.Module]], width: int, out: int):
        super().__init__()
        self.layers = nn.Sequential(*layers(width), nn.Flatten())
        self.last = nn.LazyLinear(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x))


def chain(
    layers: Callable[[int], list[nn.Module]], shape: tuple[int, ...] = (3, 6, 5)
) -> Architecture:
    return Architecture(lambda width, out: Chain(layers, width, out), shape)


def global_mean() -> nn.Module:
    return nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(1))


def padded_by(mode: str) -> Architecture:
    return chain(
        lambda w: [
            nn.Conv2d(3, w, 3, padding=1, padding_mode=mode),
            nn.ReLU(),
            nn.Conv2d(w, w, (2, 3), padding=(1, 2), stride=(2, 1), padding_mode=mode),
            nn.ReLU(),
            global_mean(),
        ]
    )


def batch_norm(width: int) -> nn.Module:
    """Running statistics other than the fresh ones, equal in all channels."""
    norm = nn.BatchNorm2d(width)
    norm.running_mean, norm.running_var = torch.full((width,), 0.6), torch.full((width,), 0.8)
    return norm


class PreActivationResNet(nn.Module):
    """Norms in evaluation mode, a strided block with a projection, global pooling."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False)
        self.outer = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.project = nn.Conv2d(width, width, 1, stride=2, bias=False)
        self.norm3 = nn.GroupNorm(4, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        hidden = torch.relu(self.norm1(x))
        x = self.project(hidden) + self.outer(torch.relu(self.norm2(self.inner(hidden))))
        return self.last(torch.relu(self.norm3(x)).mean((2, 3)))


class UNet(nn.Module):
    """Down by pooling, up by interpolation and by a transposed convolution, skips concatenated."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.Conv2d(width, width, 3, padding=1)
        self.bottom = nn.Conv2d(width, width, 3, padding=1)
        self.up_2 = nn.ConvTranspose2d(width, width, 2, stride=(2, 1), padding=(0, 0))
        self.leave = nn.Conv2d(3 * width, width, 3, padding=1)
        self.last = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        enter = torch.relu(self.enter(x))
        low = torch.relu(self.bottom(torch.relu(self.down(F.avg_pool2d(enter, 2, ceil_mode=True)))))
        size = (int(x.shape[2]), int(x.shape[3]))
        up = F.interpolate(low, size=size, mode="bilinear", align_corners=False)
        again = F.pad(self.up_2(low), (0, 1, 0, -1))
        merged = torch.relu(self.leave(torch.cat([enter, up, torch.relu(again)], dim=1)))
        return self.last(merged).mean((2, 3))


class DenselyConnected(nn.Module):
    """Concatenated channels, a transition of a 1x1 layer and pooling."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, width // 2, 3, padding=1)
        self.transition = nn.Conv2d(width + width // 2, width, 1)
        self.third = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Linear(2 * width, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.cat([x, self.second(torch.relu(x))], dim=1)
        x = F.avg_pool2d(self.transition(torch.relu(x)), (2, 2))
        x = torch.cat([x, self.third(torch.relu(x))], dim=1)
        return self.last(torch.relu(x).mean((2, 3)))


class ChannelsLast(nn.Module):
    """Pixels as tokens for linear layers and norms, images for a filter."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.filter = nn.Conv2d(width, width, (3, 2), padding=(1, 0))
        self.norm = nn.LayerNorm(width)
        self.point = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.embed(x.permute(0, 2, 3, 1)))
        tokens = self.filter(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        tokens = tokens + self.point(torch.relu(self.norm(tokens)))
        return self.last(torch.relu(tokens).flatten(1, 2).mean(1))


class Dilated(nn.Module):
    """Causal dilated filters with residual connections and a sum of skips."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Conv1d(2, width, 1)
        self.filters = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=d) for d in (1, 2))
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(2))
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        skipped = []
        for filter_, skip, dilation in zip(self.filters, self.skips, (1, 2), strict=True):
            new = filter_(F.pad(torch.relu(x), (dilation, 0)))
            skipped.append(skip(torch.erf(new)))
            x = (x + new) / math.sqrt(2)
        return self.last(torch.relu(skipped[0] + skipped[1])[..., -1])


class Unfolded(nn.Module):
    """Patches laid side by side, then pixels shuffled there and back."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(3 * 4, width)
        self.second = nn.Linear(width * 6, width)
        self.last = nn.Linear(width * 4, out)

    def forward(self, x: Tensor) -> Tensor:
        patches = torch.relu(self.first(F.unfold(x, 2, stride=(2, 1)).transpose(1, 2)))
        image = patches.transpose(1, 2).unflatten(2, (3, 4))
        patches = F.unfold(image, (2, 3), dilation=(1, 1)).transpose(1, 2)
        hidden = torch.relu(self.second(patches))
        return self.last(hidden.flatten(1))


class LocallyConnected(nn.Module):
    """A layer whose filter differs from position to position."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], blocks: int):
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.randn(blocks, channels * math.prod(kernel), out) / 9)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nkp,pko->nop", F.unfold(x, self.kernel), self.weight)


class SuperResolution(nn.Module):
    """Pixel shuffle: channels become pixels."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Conv2d(3, 4 * width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.last = nn.Linear(4 * width, out)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.pixel_shuffle(self.first(x[:, :, :4, :4]), 2))
        x = torch.relu(F.pixel_unshuffle(self.second(x), 2))
        return self.last(x.mean((2, 3)))


class GraphConvolution(nn.Module):
    """Two layers of Kipf and Welling (2017), with a mean over the nodes that are there."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(4, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor, adjacency: Tensor, mask: Tensor) -> Tensor:
        x = torch.relu(adjacency @ self.first(x))
        x = torch.relu(torch.einsum("nij,njc->nic", adjacency, self.second(x)))
        return self.last((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class GraphIsomorphism(nn.Module):
    """Sum aggregation and small networks per node (Xu et al. 2019), with a sum readout."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width))
        self.second = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor, adjacency: Tensor, mask: Tensor) -> Tensor:
        edges = (adjacency > 0).to(x.dtype) / 3
        x = torch.relu(self.first(1.1 * x + edges @ x))
        x = self.second(1.1 * x + edges @ x) * mask[..., None]
        return self.last(x.sum(1))


ARCHITECTURES: dict[str, Architecture] = {
    "sequence": chain(
        lambda w: [
            nn.Conv1d(2, w, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv1d(w, w, 2, dilation=2, padding=1),
            nn.ReLU(),
        ],
        (2, 9),
    ),
    "uneven": chain(
        lambda w: [
            nn.Conv2d(3, w, (3, 2), stride=(1, 2), padding=(2, 1)),
            nn.ReLU(),
            nn.Conv2d(w, w, (2, 3), dilation=(2, 1), padding="same"),
            nn.ReLU(),
            global_mean(),
        ]
    ),
    "volume": chain(
        lambda w: [
            nn.Conv3d(2, w, (2, 3, 1), padding=(0, 1, 0)),
            nn.ReLU(),
            nn.AvgPool3d((1, 2, 3), stride=1),
            nn.Conv3d(w, w, 2),
            nn.ReLU(),
        ],
        (2, 3, 4, 4),
    ),
    "circular": padded_by("circular"),
    "padded in front": chain(
        lambda w: [
            nn.Conv2d(3, w, 2),
            nn.ReLU(),
            nn.ZeroPad2d((0, 2, 1, 0)),
            nn.CircularPad2d((1, 1, 0, 0)),
            nn.Conv2d(w, w, 3),
            nn.ReLU(),
            nn.CircularPad2d((0, 0, 2, 1)),
            nn.Conv2d(w, w, (3, 2), padding=(0, 1)),
            nn.ReLU(),
            global_mean(),
        ]
    ),
    "reflected": padded_by("reflect"),
    "replicated": padded_by("replicate"),
    "groups": chain(
        lambda w: [
            nn.Conv2d(3, 2 * w, 3, groups=1),
            nn.ReLU(),
            nn.Conv2d(2 * w, w, 2, groups=2),
            nn.ReLU(),
            global_mean(),
        ]
    ),
    "groups of data": chain(
        lambda w: [nn.Conv2d(3, 3 * w, 3, groups=3), nn.ReLU(), nn.Conv2d(3 * w, w, 1), nn.ReLU()]
    ),
    "transposed": chain(
        lambda w: [
            nn.ConvTranspose2d(3, w, 3, stride=(2, 1), padding=1, output_padding=(1, 0)),
            nn.ReLU(),
            nn.ConvTranspose2d(w, w, 2, dilation=2, groups=1),
            nn.ReLU(),
            global_mean(),
        ],
        (3, 3, 4),
    ),
    "pooled": chain(
        lambda w: [
            nn.Conv2d(3, w, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
            nn.Conv2d(w, w, 2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((2, 3)),
        ]
    ),
    "layer norm of images": chain(
        lambda w: [
            nn.Conv2d(3, w, 3),
            nn.ReLU(),
            nn.LayerNorm((w, 4, 3), elementwise_affine=False),
            nn.Conv2d(w, w, 2),
            nn.ReLU(),
            global_mean(),
        ]
    ),
    "batch norm": chain(
        lambda w: [
            nn.Conv2d(3, w, 3, padding=1, bias=False),
            batch_norm(w),
            nn.ReLU(),
            batch_norm(w),
            nn.Conv2d(w, w, (3, 2)),
            nn.ReLU(),
            global_mean(),
        ]
    ),
    "locally connected": chain(
        lambda w: [
            nn.Conv2d(3, w, (2, 1)),
            nn.ReLU(),
            LocallyConnected(w, w, (2, 3), 12),
            nn.ReLU(),
            nn.Conv1d(w, w, 3, stride=3),
            nn.ReLU(),
            global_mean(),
        ]
    ),
    "pre-activation resnet": Architecture(PreActivationResNet),
    "u-net": Architecture(UNet, (3, 5, 4)),
    "densely connected": Architecture(DenselyConnected),
    "channels last": Architecture(ChannelsLast),
    "dilated": Architecture(Dilated, (2, 7)),
    "unfolded": Architecture(Unfolded),
    "super-resolution": Architecture(SuperResolution),
    "graph convolution": Architecture(GraphConvolution, (5, 4), adjacency=True),
    "graph isomorphism": Architecture(GraphIsomorphism, (5, 4), adjacency=True),
}

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)


def reinitialise(model: nn.Module, weight: float, bias: float, generator: torch.Generator) -> None:
    """Draw weights of variance weight / fan_in and biases of variance `bias`; norms stay."""
    for layer in model.modules():
        if isinstance(layer, LAYERS):
            _draw(layer.weight, math.sqrt(weight / fan_in(layer)), generator)
            if layer.bias is not None:
                _draw(layer.bias, math.sqrt(bias), generator)
        elif isinstance(layer, LocallyConnected):
            _draw(layer.weight, math.sqrt(weight / layer.weight.shape[1]), generator)


def fan_in(layer: nn.Module) -> int:
    """Inputs that one output is connected to (for transposed filters, if their stride is 1)."""
    assert isinstance(layer, LAYERS)
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return layer.weight[0].numel()


def _draw(parameter: Tensor, scale: float, generator: torch.Generator) -> None:
    values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    with torch.no_grad():
        parameter.copy_(scale * values)
