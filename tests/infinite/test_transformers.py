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


class ShiftedWindows(nn.Module):
    """Swin (Liu et al. 2021): windows, shifted windows, a bias by relative place, patch merging."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.patches, self.merge = nn.Conv2d(3, width, 1), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.tables = nn.ParameterList(torch.zeros(9, HEADS) for _ in range(2))
        self.head = nn.Linear(width, out)
        rows = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij"))
        apart = rows.flatten(1)[:, :, None] - rows.flatten(1)[:, None] + 1
        self.register_buffer("apart", (3 * apart[0] + apart[1]).flatten())
        regions = torch.tensor([0, 0, 1, 2])
        regions = self.windows((3 * regions[:, None] + regions)[None, ..., None])[..., 0]
        self.register_buffer("mask", -100.0 * (regions[:, None] != regions[:, :, None]))

    @staticmethod
    def windows(x: Tensor) -> Tensor:
        """(n, 4, 4, c) to (4 n, 4, c)."""
        return x.view(-1, 2, 2, 2, 2, x.shape[-1]).transpose(2, 3).flatten(0, 2).flatten(1, 2)

    def attend(self, x: Tensor, layer: int) -> Tensor:
        shifted = x.roll((-1, -1), (1, 2)) if layer else x
        tokens = self.windows(shifted)
        qkv = self.qkv[layer](tokens).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        logits = qkv[0] @ qkv[1].transpose(-2, -1) * qkv.shape[-1] ** -0.5
        logits = logits + self.tables[layer][self.apart].view(4, 4, -1).permute(2, 0, 1)
        if layer:
            masked = logits.unflatten(0, (-1, 4)) + self.mask[:, None]
            logits = masked.flatten(0, 1)
        y = (logits.softmax(-1) @ qkv[2]).transpose(1, 2).flatten(2)
        y = self.out[layer](y).view(-1, 2, 2, 2, 2, x.shape[-1]).transpose(2, 3)
        y = y.reshape(x.shape)
        return y.roll((1, 1), (1, 2)) if layer else y

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).permute(0, 2, 3, 1)
        for layer in range(2):
            h = h + self.attend(self.norms[layer](h), layer)
        corners = [h[:, i::2, j::2] for j in range(2) for i in range(2)]
        return self.head(self.norms[2](F.gelu(self.merge(torch.cat(corners, -1)))).mean((1, 2)))


TOKENS = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 0], [4, 3, 2, 1], [6, 7, 0, 0]])
SEGMENTS = torch.tensor([[0, 0, 1, 1]] * 4)


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, 4, 4, generator=generator, dtype=torch.float64)


TRANSFORMERS: dict[str, tuple[Factory, Examples]] = {
    "BERT": (Bert, (TOKENS, SEGMENTS)),
    "ViT": (Vision, images()),
    "GPT": (Decoder, TOKENS),
    "Swin": (ShiftedWindows, images()),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    factory, x = TRANSFORMERS[name]
    found = limit(factory, 128, x, numerical="sample", samples=2048).pair(x)
    assert agrees(sampled_ntks(factory, 128, 120, x), found.ntk, 0.1)
    assert agrees(sampled_nngps(factory, 128, 80, x), found.nngp, 0.12)
