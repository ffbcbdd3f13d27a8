"""Networks written by hand in plain PyTorch, as their papers and tutorials write them."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from architecture import Architecture, graphs, images, series, tokens
from torch import Tensor, nn

__all__ = ["HAND_WRITTEN"]

WIDTH = 16


class DoubleConv(nn.Module):
    """Twice convolution, BatchNorm, ReLU."""

    def __init__(self, fan_in: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(fan_in, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class UNet(nn.Module):
    """Ronneberger et al. 2015, two levels: one value per pixel."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.down1 = DoubleConv(3, WIDTH)
        self.down2 = DoubleConv(WIDTH, 2 * WIDTH)
        self.bottom = DoubleConv(2 * WIDTH, 4 * WIDTH)
        self.pool = pool
        self.up2 = nn.ConvTranspose2d(4 * WIDTH, 2 * WIDTH, 2, stride=2)
        self.join2 = DoubleConv(4 * WIDTH, 2 * WIDTH)
        self.up1 = nn.ConvTranspose2d(2 * WIDTH, WIDTH, 2, stride=2)
        self.join1 = DoubleConv(2 * WIDTH, WIDTH)
        self.head = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.bottom(self.pool(b))
        b = self.join2(torch.cat([b, self.up2(c)], dim=1))
        a = self.join1(torch.cat([a, self.up1(b)], dim=1))
        y: Tensor = self.head(a)
        return y


class LSTMClassifier(nn.Module):
    """Token embedding, a bidirectional LSTM, the last hidden states of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (last, _) = self.lstm(self.embedding(x))
        y: Tensor = self.head(torch.cat([last[-2], last[-1]], dim=-1))
        return y


class GraphConvolution(nn.Module):
    """Kipf and Welling 2017: two layers over the normalised adjacency with self-loops."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, WIDTH)
        self.second = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        loops = adjacency + torch.eye(adjacency.shape[-1], device=x.device, dtype=x.dtype)
        scale = loops.sum(-1).rsqrt()
        spread = scale[:, :, None] * loops * scale[:, None, :]
        hidden = torch.relu(spread @ self.first(x))
        y: Tensor = spread @ self.second(hidden)
        return y


class GraphIsomorphism(nn.Module):
    """Xu et al. 2019 (GIN-epsilon): sums over neighbours, a two-layer perceptron, a sum readout."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        sizes = [5, *[WIDTH] * layers]
        self.epsilon = nn.Parameter(torch.zeros(layers))
        self.perceptrons = nn.ModuleList(
            nn.Sequential(nn.Linear(a, WIDTH), nn.ReLU(), nn.Linear(WIDTH, b), nn.ReLU())
            for a, b in itertools.pairwise(sizes)
        )
        self.heads = nn.ModuleList(nn.Linear(size, 3) for size in sizes)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        score: Tensor = self.heads[0](x.sum(1))
        for layer, perceptron in enumerate(self.perceptrons):
            x = perceptron((1 + self.epsilon[layer]) * x + adjacency @ x)
            score = score + self.heads[layer + 1](x.sum(1))
        return score


class GatedBlock(nn.Module):
    """A causal dilated convolution with a gate; returns the residual and the skip value."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.filter = nn.Conv1d(WIDTH, WIDTH, 2, dilation=dilation)
        self.gate = nn.Conv1d(WIDTH, WIDTH, 2, dilation=dilation)
        self.residual = nn.Conv1d(WIDTH, WIDTH, 1)
        self.skip = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (self.dilation, 0))
        z = torch.tanh(self.filter(padded)) * torch.sigmoid(self.gate(padded))
        return x + self.residual(z), self.skip(z)


class WaveNet(nn.Module):
    """van den Oord et al. 2016: dilations 1, 2, 4, 8, skip connections, one value per time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, WIDTH, 1)
        self.blocks = nn.ModuleList(GatedBlock(2**i) for i in range(4))
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv1d(WIDTH, WIDTH, 1), nn.ReLU(), nn.Conv1d(WIDTH, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        y: Tensor = self.head(sum(skips[1:], skips[0]))
        return y


class CausalStack(nn.Module):
    """The WaveNet stack without gates (a temporal convolutional network): ReLU and residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, WIDTH, 1)
        self.layers = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 2, dilation=2**i) for i in range(4))
        self.head = nn.Conv1d(WIDTH, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, layer in enumerate(self.layers):
            x = x + layer(F.pad(torch.relu(x), (2**i, 0)))
        y: Tensor = self.head(x)
        return y


class CharacterTransformer(nn.Module):
    """A decoder by hand (pre-norm, causal, GELU), as small language models are written."""

    def __init__(self, layers: int = 2, heads: int = 4, length: int = 6) -> None:
        super().__init__()
        self.heads = heads
        self.token = nn.Embedding(50, 2 * WIDTH)
        self.position = nn.Parameter(torch.randn(length, 2 * WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(2 * WIDTH) for _ in range(2 * layers))
        self.qkv = nn.ModuleList(nn.Linear(2 * WIDTH, 6 * WIDTH) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(2 * WIDTH, 2 * WIDTH) for _ in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(
                nn.Linear(2 * WIDTH, 8 * WIDTH), nn.GELU(), nn.Linear(8 * WIDTH, 2 * WIDTH)
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(2 * WIDTH, 50)

    def attend(self, x: Tensor, layer: int) -> Tensor:
        q, k, v = self.qkv[layer](x).chunk(3, dim=-1)
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        z: Tensor = self.out[layer](y.transpose(1, 2).flatten(-2))
        return z

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x) + self.position[: x.shape[1]]
        for layer, mlp in enumerate(self.mlp):
            h = h + self.attend(self.norms[2 * layer](h), layer)
            h = h + mlp(self.norms[2 * layer + 1](h))
        y: Tensor = self.head(h[:, -1])
        return y


HERE = "zoo/networks.py"

HAND_WRITTEN = [
    Architecture("U-Net, max pooling", f"{HERE}: UNet", lambda: UNet(nn.MaxPool2d(2)), images(8)),
    Architecture("U-Net, mean pooling", f"{HERE}: UNet", lambda: UNet(nn.AvgPool2d(2)), images(16)),
    Architecture("LSTM classifier", f"{HERE}: LSTMClassifier", LSTMClassifier, tokens()),
    Architecture(
        "Graph convolutional network", f"{HERE}: GraphConvolution", GraphConvolution, graphs()
    ),
    Architecture("GIN", f"{HERE}: GraphIsomorphism", GraphIsomorphism, graphs()),
    Architecture("WaveNet", f"{HERE}: WaveNet", WaveNet, lambda: series(1, 20)().reshape(2, 1, 20)),
    Architecture(
        "Causal dilated stack",
        f"{HERE}: CausalStack",
        CausalStack,
        lambda: series(1, 20)().reshape(2, 1, 20),
    ),
    Architecture(
        "Decoder-only transformer", f"{HERE}: CharacterTransformer", CharacterTransformer, tokens()
    ),
]
