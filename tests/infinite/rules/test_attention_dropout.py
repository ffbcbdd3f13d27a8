"""Dropout of attention weights in training semantics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.infinite.sequence_models import initialisation, redraw
from tests.infinite.test_monte_carlo import allowed, distance
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.infinite import InfiniteKernel, Init

WIDTH, HEADS, KEEP = 128, 8, 0.5


def series(n: int = 3, length: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.7 * torch.randn(n, length, 5, generator=generator, dtype=torch.float64)


class Multihead(nn.Module):
    """`nn.MultiheadAttention`, in one operation or, if it gives its weights, in many."""

    def __init__(self, out: int, *, need_weights: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, out)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=1 - KEEP, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        y = self.attention(h, h, h, need_weights=self.need_weights)[0]
        return self.head(F.relu(y).mean(1))


class Encoder(nn.Module):
    """A layer of `nn.TransformerEncoder`: dropout of weights, of both branches and between."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, out)
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 2 * WIDTH, 1 - KEEP, batch_first=True, norm_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x)).mean(1))


class Uniform(nn.Module):
    """Attention under 1/d, whose weights are certain but for their masks; tokens on a grid."""

    def __init__(self, out: int, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, WIDTH) for _ in range(3))
        self.out, self.head, self.attend = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, out), attend

    def forward(self, x: Tensor) -> Tensor:
        heads = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in self.layers)
        y = self.attend(*heads).transpose(1, 2).flatten(2)
        return self.head(F.relu(self.out(y)).mean(1))


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scale = 1 / q.shape[-1]
    return F.scaled_dot_product_attention(q, k, v, dropout_p=1 - KEEP, scale=scale)


def dropped_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.dropout(torch.softmax(q @ k.mT / q.shape[-1], -1), 1 - KEEP) @ v


def of_nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=1.0, scale=1 / q.shape[-1])


Factory = Callable[[int], nn.Module]

NETWORKS: dict[str, Factory] = {
    "multihead": lambda out: Multihead(out, need_weights=False),
    "multihead, weights returned": lambda out: Multihead(out, need_weights=True),
    "encoder layer": Encoder,
    "certain weights": lambda out: Uniform(out, dropped),
}


def limit(factory: Factory, x: Tensor, **options: object) -> InfiniteKernel:
    model = factory(1).double()
    init = initialisation(model)
    return InfiniteKernel(
        model,
        x,
        init=init,
        numerical="sample",
        **options,  # type: ignore[arg-type]
    )


def drawn(factory: Factory, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Empirical NNGPs and NTKs in training, every example of a batch with masks of its own."""
    generator = torch.Generator().manual_seed(1)
    nngps, ntks = [], []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide, single = factory(256).double().train(), factory(1).double().train()
        for _ in range(count):
            redraw(wide, generator)
            outputs = wide(x).detach()
            nngps.append(outputs @ outputs.T / outputs.shape[1])
            redraw(single, generator)
            rows = [
                torch.autograd.grad(output.sum(), list(single.parameters()), retain_graph=True)
                for output in single(x)
            ]
            jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
            ntks.append(jacobian @ jacobian.T)
    return torch.stack(nngps), torch.stack(ntks)


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_are_the_limits_of_the_means(name: str) -> None:
    factory, x = NETWORKS[name], series()
    found = limit(factory, x, dropout=True).pair(x)
    for k, draws in enumerate(drawn(factory, x, 60)):
        bound = allowed(draws, found[k])
        assert float(distance(draws.mean(0), found[k])) < bound < 0.25


@pytest.mark.parametrize("name", ["multihead", "encoder layer"])
def test_the_kernel_without_dropout_is_another(name: str) -> None:
    factory, x = NETWORKS[name], series()
    with_masks, without = (limit(factory, x, dropout=on).pair(x) for on in (True, False))
    for kernel, other in zip(with_masks, without, strict=True):
        assert float(distance(kernel, other)) > 0.1


def test_what_masks_add_to_uniform_weights() -> None:
    """K(i, i) of an example with itself grows by (1 / keep - 1) / T^2 sum_j K_v(j, j)."""
    x = series()
    length = x.shape[1]

    class Gathered(Uniform):
        def forward(self, x: Tensor) -> Tensor:
            heads = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in self.layers)
            return self.head(self.attend(*heads).transpose(1, 2).flatten(2))

    kernel = InfiniteKernel(
        Gathered(1, dropped).double(), x, init=Init(weight=1.0, bias=0.0), parametrization="ntk"
    )
    values = torch.einsum("aic,bjc->abij", x, x) / 5  # their NTK is the same
    expected = values.mean((2, 3))[:, :, None, None].repeat(1, 1, length, length)
    for a in range(len(x)):
        added = (1 / KEEP - 1) * values[a, a].trace() / length**2
        expected[a, a] += added * torch.eye(length)
    for found, truth in zip(kernel.pair(x), (expected, 2 * expected), strict=True):
        torch.testing.assert_close(found, truth)
    for found, truth in zip(kernel.diagonal(x), (expected, 2 * expected), strict=True):
        own = truth.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1)
        torch.testing.assert_close(found, own)
    # The masks of two data sets are independent, however alike these are.
    between = values.mean((2, 3))[:, :, None, None].expand_as(expected)
    torch.testing.assert_close(kernel.nngp(x, x), between)


def test_by_hand_is_the_same() -> None:
    x = series()
    first, second = (
        limit(lambda out, attend=attend: Uniform(out, attend), x).pair(x)
        for attend in (dropped, dropped_by_hand)
    )
    for kernel, other in zip(first, second, strict=True):
        torch.testing.assert_close(kernel, other)


def test_a_nonlinearity_on_the_values_draws_the_masks() -> None:
    """Of one token, attention is a mask: dropout of whole heads, which a ReLU lets through."""
    x = series(4, 1)

    class OneToken(Uniform):
        def forward(self, x: Tensor) -> Tensor:
            heads = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in self.layers)
            y = self.attend(*heads).transpose(1, 2).flatten(2)
            return self.head(F.relu(y).mean(1))

    init = Init(weight=1.3, bias=0.2)
    masked = InfiniteKernel(
        OneToken(1, dropped).double(), x, init=init, numerical="sample", samples=16384
    )
    result = masked.estimate(x)
    plain = InfiniteKernel(OneToken(1, lambda q, k, v: v).double(), x, init=init).pair(x)
    grows = 1 + (1 / KEEP - 1) * torch.eye(len(x), dtype=torch.float64)
    # The head's bias adds the same to both, and counts once in the NTK.
    for found, error, kernel, own in zip(result[:2], result[2:], plain, (0.2, 1.0), strict=True):
        truth = (kernel - own) * grows + own
        assert bool(((found - truth).abs() < 4.5 * error).all())
        assert float(error.norm() / truth.norm()) < 0.02


def test_dropping_all_weights_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="drops everything"):
        limit(lambda out: Uniform(out, of_nothing), series())
