"""Attention in the forms that people write it, choosing tokens, aggregation over graphs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.program.capture import Program, capture
from tangency.program.operations import base_name
from tangency.program.sites import ParameterUse

T, S, E, HEADS = 5, 7, 12, 3


class Projected(nn.Module):
    """Queries, keys and values (n, heads, T, d) of tokens, and a function of them."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 3 * E)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], T, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.function(q, k, v)


def softmax_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    mask = torch.ones(T, T, dtype=torch.bool).tril()
    return torch.softmax(logits.masked_fill(~mask, -torch.inf), -1) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("nhtd,nhsd->nhts", q, k).softmax(-1)
    return torch.einsum("nhts,nhsd->nhtd", weights, v)


ATTENTIONS: dict[str, Callable[..., Tensor]] = {
    "fused": F.scaled_dot_product_attention,
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "masked": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(T, T).bool()),
    "by hand": softmax_by_hand,
    "einsum": by_einsum,
    "linear attention": lambda q, k, v: q @ k.mT @ v,
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_axes(name: str) -> None:
    program = capture(Projected(ATTENTIONS[name]), torch.randn(2, T, 6))
    assert program.describe(program.output) == "(n, w3, p5, w4)"
    assert program.nature[program.output] == "random"


def test_logits_have_queries_and_keys() -> None:
    """Of the same tokens, but two axes; the contraction leaves no statistic."""
    program = capture(Projected(lambda q, k, v: q @ k.mT), torch.randn(2, T, 6))
    assert program.describe(program.output) == "(n, w3, p5, p5)"
    first, second = program.atoms(program.output, "position")
    assert first is not second
    assert program.nature[program.output] == "random"


class Multihead(nn.Module):
    """`nn.MultiheadAttention` of one or two sequences."""

    def __init__(self, *, memory: bool = False, weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.stem, self.other = nn.Linear(6, E), nn.Linear(6, E)
        self.attention = nn.MultiheadAttention(E, HEADS, batch_first=True, **options)
        self.memory, self.weights = memory, weights

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        query = self.stem(x)
        key = query if memory is None else self.other(memory)
        out: Tensor = self.attention(query, key, key, need_weights=self.weights)[0]
        return out


@pytest.mark.parametrize(
    "options", [{}, {"weights": True}, {"bias": False}, {"dropout": 0.1}], ids=str
)
def test_multihead_attention(options: dict[str, Any]) -> None:
    program = capture(Multihead(**options), torch.randn(2, T, 6))
    assert program.describe(program.output) == "(n, p5, w12)"


def test_cross_attention_takes_rows_of_one_parameter() -> None:
    program = capture(Multihead(), {"x": torch.randn(2, T, 6), "memory": torch.randn(2, S, 6)})
    assert program.describe(program.output) == "(n, p5, w12)"
    blocks = [
        site.weight.block
        for site in program.sites.values()
        if site.weight is not None and site.weight.name == "attention.in_proj_weight"
    ]
    assert blocks == [(range(E), range(E)), (range(E, 3 * E), range(E))]


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layers(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 16, batch_first=True, norm_first=norm_first)
    model = nn.Sequential(nn.Linear(6, 6), nn.TransformerEncoder(layer, 2))
    program = capture(model, torch.randn(2, T, 6))
    assert program.describe(program.output) == "(n, p5, w6)"
    operations = [base_name(node) for node in program.nature]
    assert operations.count("scaled_dot_product_attention") == 2


OUTER: dict[str, Callable[..., Tensor]] = {
    "over tokens": lambda q, k, v: q.mT @ k,
    "of one width": lambda q, k, v: q.mT @ q,
}


@pytest.mark.parametrize("name", OUTER)
def test_outer_products_of_widths(name: str) -> None:
    with pytest.raises(UnsupportedOperation, match="two widths"):
        capture(Projected(OUTER[name]), torch.randn(2, T, 6))


class Tokens(nn.Module):
    """Embedded integers and a function of them and the integers."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding, self.function = nn.Embedding(9, 8), function

    def forward(self, tokens: Tensor) -> Tensor:
        return self.function(self.embedding(tokens), tokens)


def embedded(function: Callable[[Tensor, Tensor], Tensor]) -> Program:
    return capture(Tokens(function), torch.randint(9, (2, T)))


CHOSEN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "all": (lambda h, i: h, "(n, p5, w8)"),
    "end of text": (lambda h, i: h[torch.arange(h.shape[0]), i.argmax(-1)], "(n, w8)"),
    "two of each": (
        lambda h, i: h[torch.arange(h.shape[0])[:, None], i.topk(2).indices],
        "(n, p2, w8)",
    ),
    "gathered": (
        lambda h, i: h.gather(1, i.argmax(-1)[:, None, None].expand(-1, -1, 8))[:, 0],
        "(n, w8)",
    ),
    "the same for all": (lambda h, i: h[:, torch.tensor([0, 4, 0])], "(n, p3, w8)"),
    "a grid": (lambda h, i: h[:, torch.tensor([[0, 4, 0], [1, 2, 3]])], "(n, p2, p3, w8)"),
    "messages": (
        lambda h, i: torch.zeros_like(h).index_add(
            1, torch.tensor([0, 2, 2]), h[:, torch.tensor([1, 0, 3])]
        ),
        "(n, p5, w8)",
    ),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_choosing_tokens(name: str) -> None:
    function, axes = CHOSEN[name]
    program = embedded(function)
    assert program.describe(program.output) == axes
    (site,) = program.sites.values()
    assert (site.role, site.weight) == (
        "embedding",
        ParameterUse("embedding.weight", transposed=True),
    )


MIXING: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "another's tokens": (lambda h, i: h[:, i], "indices of all examples"),
    "another example": (lambda h, i: h[i[:, 0] * 0], "indexing the batch mixes examples"),
    "indices of values": (lambda h, i: h[:, h[0, :, 0].argsort()], ""),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_examples(name: str) -> None:
    function, reason = MIXING[name]
    with pytest.raises(UnsupportedOperation, match=reason):
        embedded(function)


class Graph(nn.Module):
    """Two aggregations along the edges of a graph, with a residual connection."""

    def __init__(self, *, right: bool) -> None:
        super().__init__()
        self.a, self.b, self.right = nn.Linear(6, 8), nn.Linear(8, 8), right

    def aggregated(self, adjacency: Tensor, h: Tensor) -> Tensor:
        return (h.mT @ adjacency.mT).mT if self.right else adjacency @ h

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        degrees = adjacency.sum(-1, keepdim=True)
        h = torch.relu(self.aggregated(adjacency / degrees, self.a(x)))
        return h + self.b(self.aggregated(adjacency, h))


@pytest.mark.parametrize("right", [False, True])
def test_aggregation_over_graphs(right: bool) -> None:
    adjacency = torch.eye(T).expand(2, -1, -1) + 0.5
    program = capture(Graph(right=right), (torch.randn(2, T, 6), adjacency))
    assert program.describe(program.output) == "(n, p5, w8)"
