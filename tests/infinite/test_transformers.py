"""Small transformers as they are written, against their re-initialised selves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.infinite.sequence_models import Factory, agrees, limit, sampled_nngps, sampled_ntks
from torch import Tensor, nn

from tangency.examples import Examples

HEADS = 8


class Bert(nn.Module):
    """Words, positions and segments; a norm; an encoder with padding; a pooler."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(9, width, padding_idx=0), nn.Embedding(6, width)
        self.segment, self.norm = nn.Embedding(2, width), nn.LayerNorm(width)
        self.layer = nn.TransformerEncoderLayer(
            width, HEADS, 2 * width, activation="gelu", batch_first=True
        )
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, out)

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1]).unsqueeze(0)
        h = self.norm(self.word(tokens) + self.place(places) + self.segment(segments))
        h = self.layer(h, src_key_padding_mask=tokens == 0)
        return self.head(torch.tanh(self.pooler(h[:, 0])))


class Vision(nn.Module):
    """Patches, a class token, positions, an encoder with norms first; read at the token."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, 5, width))
        layer = nn.TransformerEncoderLayer(
            width, HEADS, 2 * width, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(width), False)
        self.head = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1)
        return self.head(self.encoder(tokens + self.places)[:, 0])


class Decoder(nn.Module):
    """Two causal layers by hand with the projections in one matrix; read at the last token."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(9, width), nn.Embedding(6, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.wide = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.head = nn.Linear(width, out)

    def attend(self, x: Tensor, layer: int) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv[layer](x).reshape(n, length, 3, HEADS, width // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out[layer](y.transpose(1, 2).reshape(n, length, width))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.word(tokens) + self.place(torch.arange(tokens.shape[1]))
        for layer in range(2):
            h = h + self.attend(self.norms[2 * layer](h), layer)
            hidden = F.gelu(self.wide[layer](self.norms[2 * layer + 1](h)), approximate="tanh")
            h = h + self.narrow[layer](hidden)
        return self.head(h[:, -1])


TOKENS = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 0], [4, 3, 2, 1], [6, 7, 0, 0]])
SEGMENTS = torch.tensor([[0, 0, 1, 1]] * 4)


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, 4, 4, generator=generator, dtype=torch.float64)


TRANSFORMERS: dict[str, tuple[Factory, Examples]] = {
    "BERT": (Bert, (TOKENS, SEGMENTS)),
    "ViT": (Vision, images()),
    "GPT": (Decoder, TOKENS),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    factory, x = TRANSFORMERS[name]
    found = limit(factory, 128, x, numerical="sample", samples=2048).pair(x)
    assert agrees(sampled_ntks(factory, 128, 120, x), found.ntk, 0.1)
    assert agrees(sampled_nngps(factory, 128, 80, x), found.nngp, 0.12)
