"""Every layer on sequences, tokens and graphs that the engine sets out to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from architecture import Architecture, series, tokens
from frames import WIDTH, Apply, sequence_frame
from torch import Tensor, nn

__all__ = ["ATTENTION", "EMBEDDINGS_AND_INPUTS", "GRAPHS", "RECURRENCE", "SAMPLED", "VECTORS"]

HERE = "zoo/sequence_layers.py"


def _row(name: str, layer: Callable[[], nn.Module], **options: Any) -> Architecture:
    return Architecture(name, HERE, sequence_frame(layer), series(), options=options)


def _recurrent(name: str, layer: type[nn.RNNBase], **arguments: Any) -> Architecture:
    return _row(name, lambda: layer(WIDTH, WIDTH, batch_first=True, **arguments))


class HandWrittenCell(nn.Module):
    """h <- tanh(U x_t + W h), every state returned."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(WIDTH, WIDTH)
        self.state = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.input(x[:, 0]))
        states = [h]
        for t in range(1, x.shape[1]):
            h = torch.tanh(self.input(x[:, t]) + self.state(h))
            states.append(h)
        return torch.stack(states, 1)


class LastState(nn.Module):
    """The last state of a recurrent layer from a given initial state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, initial: Tensor) -> Tensor:
        _, last = self.rnn(x, initial.unsqueeze(0))
        y: Tensor = self.head(last[-1])
        return y


RECURRENCE = [
    _recurrent("nn.RNN, tanh", nn.RNN),
    _recurrent(
        "nn.RNN, ReLU, two layers, bidirectional",
        nn.RNN,
        num_layers=2,
        nonlinearity="relu",
        bidirectional=True,
    ),
    Architecture(
        "nn.RNN, last state, initial state given",
        HERE,
        LastState,
        lambda: (torch.randn(2, 4, 5), torch.randn(2, WIDTH)),
    ),
    _row("RNN cell by hand", HandWrittenCell),
    _recurrent("nn.GRU", nn.GRU),
    _recurrent("nn.LSTM", nn.LSTM),
    _recurrent("nn.LSTM, two layers, bidirectional", nn.LSTM, num_layers=2, bidirectional=True),
]


class SelfAttention(nn.Module):
    """Four heads; `scale` None is 1/sqrt(d), which PyTorch uses."""

    def __init__(self, *, causal: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.causal, self.scale = causal, scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (z.unflatten(-1, (4, -1)).transpose(1, 2) for z in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        z: Tensor = self.out(y.transpose(1, 2).flatten(-2))
        return z


class AttentionByHand(nn.Module):
    """softmax(q k / sqrt(d)) v in plain operations, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.q(x) @ self.k(x).transpose(-2, -1) / WIDTH**0.5
        y: Tensor = logits.softmax(-1) @ self.v(x)
        return y


class CrossAttention(nn.Module):
    """nn.MultiheadAttention from one sequence to another, with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys = nn.Linear(5, WIDTH), nn.Linear(3, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        m = self.keys(memory)
        y, _ = self.attention(self.queries(x), m, m, key_padding_mask=padding, need_weights=False)
        z: Tensor = self.head(y.mean(1))
        return z


def _cross() -> tuple[Tensor, Tensor, Tensor]:
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    return torch.randn(2, 3, 5), torch.randn(2, 4, 3), padding


class CausalEncoder(nn.Module):
    """Two `nn.TransformerEncoderLayer`s under a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        y: Tensor = self.encoder(x, mask=mask, is_causal=True)
        return y


ATTENTION = [
    _row("scaled_dot_product_attention", SelfAttention),
    _row("scaled_dot_product_attention, causal", lambda: SelfAttention(causal=True)),
    _row("scaled_dot_product_attention, 1/d scaling", lambda: SelfAttention(scale=4 / WIDTH)),
    _row("Attention by hand", AttentionByHand),
    Architecture("nn.MultiheadAttention, cross, padding mask", HERE, CrossAttention, _cross),
    _row(
        "nn.TransformerEncoderLayer",
        lambda: nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True),
    ),
    _row("nn.TransformerEncoder, two layers, causal mask", CausalEncoder),
    _row(
        "nn.TransformerEncoderLayer, dropout in training semantics",
        lambda: nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, 0.2, batch_first=True, norm_first=True
        ),
        dropout=True,
    ),
]

VECTORS = [
    _row("LayerNorm after a linear layer", lambda: nn.LayerNorm(WIDTH)),
    _row("LayerNorm after ReLU", lambda: nn.Sequential(nn.ReLU(), nn.LayerNorm(WIDTH))),
    _row("RMSNorm after ReLU", lambda: nn.Sequential(nn.ReLU(), nn.RMSNorm(WIDTH))),
    _row(
        "Dropout, training semantics",
        lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, WIDTH)),
        dropout=True,
    ),
    _row(
        "AlphaDropout after SELU, training semantics",
        lambda: nn.Sequential(nn.SELU(), nn.AlphaDropout(0.2)),
        dropout=True,
    ),
]

SAMPLED = [
    _row("Softmax over width", lambda: nn.Softmax(-1)),
    _row("Softmax over positions", lambda: nn.Softmax(1)),
    _row("Sort over positions", lambda: Apply(lambda x: x.sort(1).values)),
    _row("Cumulative sum over positions", lambda: Apply(lambda x: x.cumsum(1))),
]


class TokenClassifier(nn.Module):
    """Embedded tokens with learned positions and a class token, read at the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)
        self.position = nn.Parameter(torch.randn(7, WIDTH))
        self.start = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.mixing = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = self.start.expand(x.shape[0], -1, -1)
        h = torch.cat([start, self.embedding(x)], dim=1) + self.position
        h = torch.relu(self.mixing(h.transpose(1, 2)))
        y: Tensor = self.head(h[:, :, 0])
        return y


class Siamese(nn.Module):
    """One network on two inputs; the difference of its features, squared entrywise."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(5, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        y: Tensor = self.head((self.features(left) - self.features(right)).square())
        return y


class TwoHeads(nn.Module):
    """A dictionary of two outputs from two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, WIDTH), nn.Linear(3, WIDTH)
        self.mean, self.scale = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        h = torch.relu(self.left(left) + self.right(right))
        return {"mean": self.mean(h), "scale": F.softplus(self.scale(h))}


def _vectors(*sizes: int) -> Callable[[], Any]:
    return lambda: tuple(torch.randn(2, size) for size in sizes)


EMBEDDINGS_AND_INPUTS = [
    Architecture(
        "nn.Embedding and mean",
        HERE,
        lambda: nn.Sequential(
            nn.Embedding(50, WIDTH), Apply(lambda x: x.mean(1)), nn.ReLU(), nn.Linear(WIDTH, 3)
        ),
        tokens(),
    ),
    Architecture("Positional embedding, class token", HERE, TokenClassifier, tokens()),
    Architecture("Two inputs, dictionary of outputs", HERE, TwoHeads, _vectors(5, 3), "mean"),
    Architecture("Siamese network", HERE, Siamese, _vectors(5, 5)),
]


class FixedGraph(nn.Module):
    """Two graph convolutions over an adjacency that is part of the module."""

    adjacency: Tensor

    def __init__(self, aggregate: Callable[[Tensor, Tensor], Tensor], adjacency: Tensor) -> None:
        super().__init__()
        self.aggregate = aggregate
        self.register_buffer("adjacency", adjacency)
        self.first, self.second = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.aggregate(self.adjacency, self.first(x)))
        y: Tensor = self.second(self.aggregate(self.adjacency, h).mean(1))
        return y


def _ring() -> Tensor:
    """Adjacency of six nodes, each with itself and the node before it."""
    return torch.eye(6) + torch.eye(6).roll(1, 0)


def _sparse_product(adjacency: Tensor, x: Tensor) -> Tensor:
    columns = x.transpose(0, 1).flatten(1)
    return torch.sparse.mm(adjacency, columns).unflatten(1, (-1, x.shape[-1])).transpose(0, 1)


def _sum_over_edges(edges: Tensor, x: Tensor) -> Tensor:
    source, target = edges
    return torch.zeros_like(x).index_add(1, target, x[:, source])


def _graph(
    name: str, aggregate: Callable[[Tensor, Tensor], Tensor], adjacency: Callable[[], Tensor]
) -> Architecture:
    return Architecture(name, HERE, lambda: FixedGraph(aggregate, adjacency()), series())


GRAPHS = [
    _graph("Adjacency as a dense buffer", torch.matmul, _ring),
    _graph("Adjacency as a sparse buffer", _sparse_product, lambda: _ring().to_sparse()),
    _graph("List of edges, `index_add`", _sum_over_edges, lambda: _ring().nonzero().T),
]
