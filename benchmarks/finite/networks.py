"""The networks, as ordinary modules in evaluation mode; the last dimension holds the outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from finite.cases import TOKENS, VOCABULARY, Network

__all__ = ["NETWORKS", "make"]


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut that meet in a ReLU (He et al. 2016)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.first_norm(self.first(x)))
        h = self.second_norm(self.second(h))
        return functional.relu(h + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 with the stem for CIFAR: one 3 x 3 convolution, no max pooling; 10 outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(64)
        widths = [64, 64, 128, 128, 256, 256, 512, 512]
        self.blocks = nn.Sequential(
            *(
                BasicBlock(before, width, 1 if before == width else 2)
                for before, width in zip([64, *widths], widths, strict=False)
            )
        )
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(functional.relu(self.stem_norm(self.stem(x))))
        return cast(Tensor, self.head(h.mean((2, 3))))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.entry, self.exit = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = self.entry(x).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts.unbind(0), is_causal=self.causal)
        return cast(Tensor, self.exit(mixed.transpose(1, 2).reshape(n, tokens, width)))


class Block(nn.Module):
    """A transformer's block, norms first."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return cast(Tensor, x + self.mlp(self.mlp_norm(x)))


class VisionTransformer(nn.Module):
    """ViT-Ti (Touvron et al. 2021) for images of 32 x 32: patches of 4 x 4, a class token, 12
    blocks of width 192 with 3 heads; one output.
    """

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.blocks = nn.Sequential(*(Block(width, 3, causal=False) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.places
        return cast(Tensor, self.head(self.norm(self.blocks(tokens))[:, 0]))


class LanguageModel(nn.Module):
    """Like GPT-2 (Radford et al. 2019): 6 blocks of width 256 with 4 heads, embedding and output
    tied; the output is the last position's logit of token 0.
    """

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(TOKENS, width)
        self.blocks = nn.Sequential(*(Block(width, 4, causal=True) for _ in range(6)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        h = self.blocks(self.embedding(tokens) + self.places(places))
        return cast(Tensor, self.head(self.norm(h[:, -1]))[:, :1])


def mlp(*widths: int) -> nn.Module:
    """A fully connected ReLU network of these widths, the input's first."""
    layers: list[nn.Module] = []
    for before, width in itertools.pairwise(widths):
        layers += [nn.Linear(before, width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


NETWORKS: dict[Network, Callable[[], nn.Module]] = {
    "resnet18": ResNet18,
    "mlp_2048": lambda: mlp(3072, 2048, 2048, 2048, 8),
    "mlp_512": lambda: mlp(784, 512, 512, 1),
    "vit": VisionTransformer,
    "gpt": LanguageModel,
}
"""By name."""


def make(network: Network) -> nn.Module:
    """The network, seeded, in evaluation mode, with norms that do not do nothing."""
    torch.manual_seed(0)
    model = NETWORKS[network]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(cast(Tensor, module.running_mean), std=0.1)
            nn.init.uniform_(cast(Tensor, module.running_var), 0.5, 1.5)
    return model
