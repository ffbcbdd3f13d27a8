"""Attention against re-initialised modules, closed forms, and what must hold of any attention."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.infinite.sequence_models import Factory, agrees, limit, sampled_nngps, sampled_ntks
from tests.infinite.test_monte_carlo import distance
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.examples import Examples
from tangency.infinite import InfiniteKernel, Init
from tangency.infinite.rules.attention import FewHeadsWarning

HEADS = 8


def series(n: int = 4, length: int = 3, features: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.7 * torch.randn(n, length, features, generator=generator, dtype=torch.float64)


class Attention(nn.Module):
    """Projections, attention by `attend(q, k, v)`, an output projection and a readout.

    Arguments of `attend` are `(n, heads, length, d)`.
    """

    def __init__(
        self,
        width: int,
        out: int,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        heads: int = HEADS,
        *,
        tied: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.query = nn.Linear(5, width, bias)
        self.key = self.query if tied else nn.Linear(5, width, bias)
        self.value = nn.Linear(5, width, bias)
        self.out, self.head = nn.Linear(width, width, bias), nn.Linear(width, out, bias)
        self.attend, self.heads = attend, heads

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in layers)
        y = self.attend(q, k, v).transpose(1, 2).flatten(2)
        return self.head(F.relu(self.out(y))).mean(1)


def by_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def uniform(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scale 1/d: uniform attention where queries and keys are independent."""
    return F.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1])


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    length = q.shape[2]
    below = torch.ones(length, length, dtype=torch.bool).tril()
    logits = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
    return logits.masked_fill(~below, -math.inf).softmax(-1) @ v


def by_added_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    length = q.shape[2]
    mask = torch.full((length, length), -math.inf, dtype=q.dtype).triu(1)
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5 + mask, dim=-1) @ v


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1]) @ v


def relu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.relu(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])) / k.shape[2] @ v


def network(attend: Callable[[Tensor, Tensor, Tensor], Tensor], **options: object) -> Factory:
    return lambda width, out: Attention(width, out, attend, **options)  # type: ignore[arg-type]


class Crossed(nn.Module):
    """nn.MultiheadAttention from one sequence to another, with padding."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.stem = nn.Linear(5, width)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.head = nn.Linear(width, out)

    def forward(self, x: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        m = self.stem(memory)
        y, _ = self.attention(self.stem(x), m, m, key_padding_mask=padding, need_weights=False)
        return self.head(y.mean(1))


class Encoder(nn.Module):
    """Two layers of nn.TransformerEncoder."""

    def __init__(self, width: int, out: int, *, first: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, out)
        layer = nn.TransformerEncoderLayer(
            width, HEADS, 2 * width, activation="gelu", batch_first=True, norm_first=first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x)).mean(1))


class Queries(nn.Module):
    """Learned queries gather a sequence."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, 2, width))
        self.stem = nn.Linear(5, width)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.head = nn.Linear(2 * width, out)

    def forward(self, x: Tensor) -> Tensor:
        h, q = self.stem(x), self.queries.expand(x.shape[0], -1, -1)
        y, _ = self.attention(q, h, h, need_weights=False)
        return self.head((q + y).flatten(1))


class Weighted(nn.Module):
    """nn.MultiheadAttention that returns its weights too: in plain operations, with a mask."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, out)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        mask = torch.full((x.shape[1], x.shape[1]), -math.inf, dtype=x.dtype).triu(1)
        y, _ = self.attention(h, h, h, attn_mask=mask)
        return self.head(y.mean(1))


class RelativePositions(nn.Module):
    """A table of biases per head and offset, as in Swin; products by einsum."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Linear(5, width), nn.Linear(width, 3 * width)
        self.table = nn.Parameter(torch.zeros(5, HEADS))
        self.register_buffer("offsets", torch.arange(3)[:, None] - torch.arange(3) + 2)
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (z.unflatten(-1, (HEADS, -1)) for z in self.qkv(self.stem(x)).chunk(3, dim=-1))
        logits = torch.einsum("nihd,njhd->nhij", q * q.shape[-1] ** -0.5, k)
        bias = self.table[self.offsets.view(-1)].view(3, 3, -1).permute(2, 0, 1)
        z = (logits + 3 * bias.unsqueeze(0)).softmax(-1)
        return self.head(self.out(torch.einsum("nhij,njhd->nihd", z, v).flatten(2)).mean(1))


class EncoderDecoder(nn.Module):
    """nn.Transformer: self-attention, cross attention, norms last."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, out)
        self.layers = nn.Transformer(width, HEADS, 1, 1, 2 * width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(self.layers(h, h[:, :2]).mean(1))


def padded() -> Examples:
    padding = torch.zeros(4, 3, dtype=torch.bool)
    padding[1, 2:] = padding[3, 1:] = True
    return series(length=2), series(seed=1), padding


SAMPLED: dict[str, tuple[Factory, Examples]] = {
    "attention": (network(by_torch), series()),
    "by hand, causal": (network(by_hand), series()),
    "cross, padded": (Crossed, padded()),
    "encoder": (lambda width, out: Encoder(width, out, first=False), series()),
    "encoder, norm first": (lambda width, out: Encoder(width, out, first=True), series()),
    "learned queries": (Queries, series()),
    "weights returned": (Weighted, series()),
    "relative positions": (RelativePositions, series()),
    "encoder and decoder": (EncoderDecoder, series()),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_attention(name: str) -> None:
    """Many heads, and heads of some width: both of order sqrt(width)."""
    factory, x = SAMPLED[name]
    found = limit(factory, 128, x, numerical="sample", samples=4096).pair(x)
    assert agrees(sampled_ntks(factory, 128, 60, x), found.ntk, 0.25)
    assert agrees(sampled_nngps(factory, 128, 40, x), found.nngp, 0.25)


# -- one layer of attention, written out ------------------------------------------------------

WeightMoments = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the inputs, E[A A'] of the logits A = q k / sqrt(d), and their NTK, both as
`(n, n, i, i', j, j')`, the same of the attention weights."""

W2, B2 = 1.3, 0.2


def relu_dual(k: Tensor, t: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Cho and Saul (2009): E[relu relu'] and E[step step'] t; `variances` broadcast."""
    angle = torch.arccos((k / variances.sqrt()).clamp(-1, 1))
    moment = variances.sqrt() * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
    return moment, t * (math.pi - angle) / (2 * math.pi)


def written_out(x: Tensor, weight_moments: WeightMoments) -> tuple[Tensor, Tensor]:
    """NNGP and NTK of `Attention` in the NTK parametrisation."""
    inner = torch.einsum("aic,bjc->abij", x, x) / x.shape[-1]
    k = W2 * inner + B2  # of queries, keys and values alike; the NTK of a first layer is the same
    logits = torch.einsum("abim,abjn->abimjn", k, k)
    z, dz = weight_moments(x, logits, 2 * logits)
    gathered = torch.einsum("abimjn,abjn->abim", z, k)
    tangent = torch.einsum("abimjn,abjn->abim", z + dz, k)
    k = W2 * gathered + B2
    t = k + W2 * tangent
    own = k.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1)
    k, t = relu_dual(k, t, torch.einsum("ai,bm->abim", own, own))
    k = W2 * k + B2
    return k.mean((2, 3)), (k + W2 * t).mean((2, 3))


def linear_moments(x: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return k, t


def relu_moments(x: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    n, length = x.shape[:2]
    own = torch.stack([k[a, a] for a in range(n)])  # (n, i, i', j, j')
    own = own.diagonal(dim1=1, dim2=2).diagonal(dim1=1, dim2=2)  # (n, i, j)
    moment, tangent = relu_dual(k, t, torch.einsum("aij,bmn->abimjn", own, own))
    return moment / length**2, tangent / length**2


def softmax_moments(x: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """From many samples of the logits, with the Jacobian of the softmax written out."""
    n, length = x.shape[:2]
    covariance = k.permute(0, 2, 4, 1, 3, 5).reshape(n * length**2, -1)
    lower = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(len(covariance)))
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(100_000, len(lower), generator=generator, dtype=torch.float64)
    z = (noise @ lower.T).reshape(-1, n, length, length).softmax(-1)
    moment = torch.einsum("saij,sbmn->abimjn", z, z) / len(z)
    jacobian = torch.diag_embed(z) - z[..., :, None] * z[..., None, :]
    product = torch.einsum("saijp,sbmnq->abimjnpq", jacobian, jacobian) / len(z)
    return moment, torch.einsum("abimjnpq,abimpq->abimjn", product, t)


def certain_moments(tied: bool) -> WeightMoments:
    """1/d: the logits are E[q k]; the weights do not move."""

    def moments(x: Tensor, k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.einsum("aic,ajc->aij", x, x) / x.shape[-1]
        z = ((W2 * inner + B2) * tied).softmax(-1)
        return torch.einsum("aij,bmn->abimjn", z, z), torch.zeros_like(k)

    return moments


EXACT = 1e-7
"""The arccosine of `relu_dual` is good to 1e-8 where its argument is one."""

WRITTEN: dict[str, tuple[Factory, WeightMoments, float]] = {
    "linear": (network(linear_attention), linear_moments, EXACT),
    "relu": (network(relu_attention), relu_moments, EXACT),
    "uniform": (network(uniform), certain_moments(False), EXACT),
    "shared weights, 1/d": (network(uniform, tied=True), certain_moments(True), EXACT),
    "softmax": (network(by_torch), softmax_moments, 0.01),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_one_layer_written_out(name: str) -> None:
    factory, moments, tolerance = WRITTEN[name]
    x = 1.5 * series(3)
    found = InfiniteKernel(
        factory(64, 1).double(),
        x,
        init=Init(weight=W2, bias=B2),
        parametrization="ntk",
        numerical="sample",
        samples=32768,
    )
    assert found.sampled == (name == "softmax")
    pair = found.pair(x)
    nngp, ntk = written_out(x, moments)
    assert torch.allclose(pair.nngp, nngp, rtol=tolerance)
    assert torch.allclose(pair.ntk, ntk, rtol=tolerance)


# -- what must hold ---------------------------------------------------------------------------


def test_by_hand_is_the_same() -> None:
    """The two ways of writing a causal attention draw the same samples."""
    x = series()
    pairs = [
        limit(network(attend), 64, x, numerical="sample", samples=512).pair(x)
        for attend in (causal, by_hand, by_added_mask)
    ]
    for pair in pairs[1:]:
        assert torch.allclose(pair.nngp, pairs[0].nngp, rtol=1e-6)
        assert torch.allclose(pair.ntk, pairs[0].ntk, rtol=1e-6)


def test_masked_positions_have_no_influence() -> None:
    queries, memory, padding = padded()  # type: ignore[misc]
    kernel = limit(Crossed, 64, padded(), numerical="sample", samples=2048)
    other = torch.where(padding[..., None], 5 * torch.randn_like(memory), memory)
    first = kernel.estimate((queries, memory, padding))
    second = kernel.estimate((queries, other, padding))
    error = 5 * (first.ntk_error + second.ntk_error)
    assert bool(((first.ntk - second.ntk).abs() <= error + 1e-9 * first.ntk.abs()).all())
    shown = kernel.estimate((queries, other, torch.zeros_like(padding)))
    assert float(distance(shown.ntk, first.ntk)) > 0.1


def test_permuted_tokens_permute_nothing() -> None:
    """Attention without positions, then a mean: the order of the tokens does not matter."""
    kernel = limit(network(uniform, tied=True), 64, series())
    x = series()
    assert torch.allclose(kernel.ntk(x, x), kernel.ntk(x[:, [2, 0, 1]], x))


def test_the_gram_matrix_is_positive() -> None:
    x = torch.cat([series(), series(seed=7), series()])
    factory = SAMPLED["encoder, norm first"][0]
    pair = limit(factory, 64, x, numerical="sample", samples=256).pair(x)
    for matrix in pair:
        assert torch.allclose(matrix, matrix.T)
        values = torch.linalg.eigvalsh(matrix)
        assert float(values[0]) > -1e-8 * float(values[-1])


def test_what_is_not_sampled_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match='numerical="sample"'):
        limit(network(by_torch), 64, series())
    with pytest.raises(UnsupportedOperation, match='numerical="sample"'):
        limit(network(by_hand), 64, series())


def test_logits_that_diverge_are_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="grow like sqrt"):
        limit(network(by_torch, tied=True), 64, series(), numerical="sample")


def test_masks_that_differ_among_heads_are_refused() -> None:
    slopes = -torch.arange(1.0, HEADS + 1)[:, None, None] * torch.ones(3, 3)

    def biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=slopes.to(q.dtype))

    kernel = limit(network(biased), 64, series(), numerical="sample")
    with pytest.raises(UnsupportedOperation, match="another mask for each head"):
        kernel.ntk(series())


def test_a_single_head_draws_a_warning() -> None:
    with pytest.warns(FewHeadsWarning, match="many heads"):
        limit(network(by_torch, heads=1), 64, series(), numerical="sample")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FewHeadsWarning)
        limit(network(uniform, heads=1), 64, series())


def test_logits_by_way_of_queries_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """With very many positions, the logits are drawn without their joint covariance."""
    monkeypatch.setattr("tangency.infinite.sampling.draws.FACTORED", 2)
    x = 1.5 * series(3)
    kernel = InfiniteKernel(
        network(by_torch)(64, 1).double(),
        x,
        init=Init(weight=W2, bias=B2),
        parametrization="ntk",
        numerical="sample",
        samples=32768,
    )
    pair = kernel.pair(x)
    nngp, ntk = written_out(x, softmax_moments)
    assert torch.allclose(pair.nngp, nngp, rtol=0.01)
    assert torch.allclose(pair.ntk, ntk, rtol=0.01)
    assert torch.allclose(kernel.nngp(x[:2]), pair.nngp[:2, :2], rtol=1e-6)


class SharedLayers(nn.Module):
    """The same attention twice, as in a universal transformer."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, out)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for _ in range(2):
            parts = self.qkv(F.layer_norm(h, h.shape[-1:])).chunk(3, dim=-1)
            q, k, v = (z.unflatten(-1, (HEADS, -1)).transpose(1, 2) for z in parts)
            h = h + self.out(causal(q, k, v).transpose(1, 2).flatten(2))
        return self.head(h.mean(1))


def test_layers_that_share_their_weights() -> None:
    x = series()
    found = limit(SharedLayers, 128, x, numerical="sample", samples=4096).pair(x)
    assert agrees(sampled_ntks(SharedLayers, 128, 120, x), found.ntk, 0.2)
    assert agrees(sampled_nngps(SharedLayers, 128, 80, x), found.nngp, 0.2)
