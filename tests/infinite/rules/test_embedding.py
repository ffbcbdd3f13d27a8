"""Tables, positional parameters and class tokens against re-initialised modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.infinite.sequence_models import agrees, limit, sampled_nngps, sampled_ntks
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.infinite import InfiniteKernel

TOKENS = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 0], [4, 3, 2, 1], [1, 1, 1, 0]])


class TokenClassifier(nn.Module):
    """Tokens with padding, learned positions, a class token; mixed over time by a convolution."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, width, padding_idx=0)
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(9, width))
        self.mixing = nn.Conv1d(width, width, 3, padding=1)
        self.head = nn.Linear(3 * width, out)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.start.expand(x.shape[0], -1, -1), self.embedding(x)], 1)
        h = h + self.position[: h.shape[1]]
        return self.head(F.relu(self.mixing(h.transpose(1, 2)))[..., :3].flatten(1))


class TwoUses(nn.Module):
    """One table looked up twice, positions by arange, a slice of a parameter and its multiple."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.table, self.order = nn.Embedding(8, width), nn.Embedding(6, width)
        self.shift = nn.Parameter(torch.zeros(1, 6, width))
        self.hidden, self.head = nn.Linear(4 * width, width), nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x) + 0.5 * self.table(x.flip(1))
        h = h + self.order(torch.arange(x.shape[1])) + self.shift[:, 1:5] - 2 * self.shift[:, :4]
        return self.head(F.gelu(self.hidden(h.flatten(1))))


class ScaledPlaces(nn.Module):
    """Scales and shifts along the channels first, and a norm over width and positions."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embedding = nn.Embedding(8, width)
        self.gamma = nn.Parameter(torch.ones(width, 1))
        self.beta = nn.Parameter(torch.zeros(width, 1))
        self.per_place = nn.LayerNorm(width)
        with torch.no_grad():
            self.per_place.weight.normal_(1, 0.5, generator=generator)
            self.per_place.bias.normal_(0.3, 0.5, generator=generator)
        self.hidden, self.head = nn.Linear(4 * width, width), nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x).transpose(1, 2)
        h = (h + self.beta).transpose(1, 2)
        h = self.per_place(h)
        return self.head(F.relu(self.hidden(h.flatten(1))))


NETWORKS = {"class token": TokenClassifier, "two uses": TwoUses, "norm": ScaledPlaces}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_tokens(name: str) -> None:
    factory = NETWORKS[name]
    exact = limit(factory, 256, TOKENS).pair(TOKENS)
    assert agrees(sampled_ntks(factory, 256, 25, TOKENS), exact.ntk, 0.15)
    assert agrees(sampled_nngps(factory, 256, 25, TOKENS), exact.nngp, 0.15)


def test_one_table() -> None:
    """K = m2 [same token], T = [same token]; a row of padding is zero and not trained."""
    model = nn.Sequential(nn.Embedding(8, 32, padding_idx=0), nn.Flatten(), nn.Linear(128, 1))
    kernel = InfiniteKernel(model, TOKENS)
    same = (TOKENS[:, None] == TOKENS) & (TOKENS != 0)
    table = model[0].weight[1:].square().mean()
    w2 = model[2].weight.square().mean() * 128
    expected = w2 * table * same.float().mean(-1)
    bias = model[2].bias.square().mean()
    assert torch.allclose(kernel.nngp(TOKENS), expected + bias, rtol=1e-5)
    ntk = (128 * table + w2) * same.float().mean(-1) + 1
    assert torch.allclose(kernel.ntk(TOKENS), ntk, rtol=1e-5)


def test_a_class_token_of_zeros() -> None:
    """torchvision's ViT begins with one: nothing forward, all of its NTK."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 64))
            self.stem, self.head = nn.Linear(3, 64), nn.Linear(64, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.cat([self.token.expand(x.shape[0], -1, -1), self.stem(x)], 1)
            return self.head(h[:, 0])

    x = torch.randn(3, 4, 3)
    model = Model()
    pair = InfiniteKernel(model, x).pair(x)
    w2 = model.head.weight.square().mean() * 64
    assert torch.equal(pair.nngp, torch.zeros(3, 3))
    assert torch.allclose(pair.ntk, w2.expand(3, 3))


def test_frozen_positions_do_not_train() -> None:
    model = TwoUses(32, 1).requires_grad_(False)
    model.head.weight.requires_grad_(True)
    free = limit(lambda w, o: TwoUses(w, o), 32, TOKENS).pair(TOKENS)
    frozen = limit(lambda w, o: model, 32, TOKENS).pair(TOKENS)
    assert torch.allclose(free.nngp, frozen.nngp)
    assert bool((free.ntk.diagonal() > frozen.ntk.diagonal() * 1.5).all())


def test_scales_per_channel_and_position() -> None:
    """A norm over width and positions multiplies by present values: K' = mean(s s') K."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv1d(3, 16, 1, bias=False)
            self.scale = nn.Parameter(torch.rand(16, 4) + 0.5)
            self.head = nn.Linear(64, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.stem(x) * self.scale).flatten(1))

    x, model = torch.randn(3, 3, 4, dtype=torch.float64), Model().double()
    pair = InfiniteKernel(model, x).pair(x)
    inner = torch.einsum("acp,bcp->abp", x, x) / 3
    w1 = model.stem.weight.square().mean() * 3
    w2 = model.head.weight.square().mean() * 64
    square = model.scale.square().mean(0)
    assert torch.allclose(pair.nngp, w2 * (w1 * square * inner).mean(-1))
    tangent = 64 * w1 * square * inner + w2 * (3 * square * inner + w1 * inner)
    assert torch.allclose(pair.ntk, tangent.mean(-1))


def test_a_tied_output_is_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(8, 16)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.table(x).mean(1), self.table.weight)

    with pytest.raises(UnsupportedOperation, match="tied to the embedding"):
        InfiniteKernel(Model(), TOKENS)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scale_grad_by_freq": True}, "frequency"), ({"max_norm": 1.0}, "embedding")],
)
def test_options_that_change_the_gradient_are_refused(
    options: dict[str, object], message: str
) -> None:
    table = nn.Embedding(8, 16, **options)  # type: ignore[arg-type]
    model = nn.Sequential(table, nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(UnsupportedOperation, match=message):
        InfiniteKernel(model, TOKENS)
