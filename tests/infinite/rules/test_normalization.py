"""Normalisations of ReLU features, whose means and covariances are known in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.infinite.images import (
    BIAS,
    COLUMNS,
    HEIGHT,
    INIT,
    WEIGHT,
    WIDTH,
    OneOperation,
    assert_same,
    expected,
    hidden,
    images,
    kernels,
)
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.infinite import InfiniteKernel
from tangency.kernel_pair import KernelPair

EPS = 0.05
WHOLE = (WIDTH, HEIGHT, COLUMNS)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and second moment of the ReLU features of every pixel, `(n, H, W)`."""
    variance = WEIGHT * x.square().mean(1) + BIAS
    return (variance / (2 * torch.pi)).sqrt(), variance / 2


def rows(values: Tensor) -> Tensor:
    """`(n1, H, W)` along the first example and pixel of a covariance."""
    return values[:, None, :, :, None, None]


def columns(values: Tensor) -> Tensor:
    """`(n2, H, W)` along the second."""
    return values[None, :, None, None]


def statistics(centre: bool, over_pixels: bool) -> list[tuple[Tensor, Tensor]]:
    """Mean and 1 / sd for the two sets of images, `(n, H, W)` or `(n, 1, 1)`."""
    found = []
    for x in (images(), images(2, seed=1)):
        mean, square = moments(x)
        if over_pixels:
            mean, square = (z.mean((1, 2), keepdim=True) for z in (mean, square))
        mean = mean if centre else torch.zeros_like(mean)
        found.append((mean, (square - mean.square() + EPS).rsqrt()))
    return found


def normalised(centre: bool, over_pixels: bool) -> tuple[Tensor, Tensor]:
    """Covariance and NTK of (u - mean) / sd."""
    after, ntk = hidden()
    (mean1, inverse1), (mean2, inverse2) = statistics(centre, over_pixels)
    own1, own2 = moments(images())[0], moments(images(2, seed=1))[0]
    after = after - rows(mean1) * columns(own2) - rows(own1) * columns(mean2)
    after = after + rows(mean1) * columns(mean2)
    scale = rows(inverse1) * columns(inverse2)
    return after * scale, ntk * scale


def per_channel(after: Tensor, ntk: Tensor) -> tuple[Tensor, Tensor]:
    """With a trained scale (at 1) and shift (at 0) per channel."""
    return after, ntk + after + 1


def per_place(after: Tensor, ntk: Tensor) -> tuple[Tensor, Tensor]:
    """With a trained scale and shift per channel and pixel."""
    same = torch.eye(HEIGHT * COLUMNS, dtype=torch.float64).reshape(
        HEIGHT, COLUMNS, HEIGHT, COLUMNS
    )
    return after, ntk + same * (after + 1)


class ChannelsLast(nn.Module):
    """A norm of the last dimension, applied to channels."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS: dict[str, tuple[nn.Module, tuple[Tensor, Tensor]]] = {
    "layer norm of channels": (
        ChannelsLast(nn.LayerNorm(WIDTH, EPS)),
        per_channel(*normalised(True, False)),
    ),
    "layer norm of everything": (
        nn.LayerNorm(WHOLE, EPS, elementwise_affine=False),
        normalised(True, True),
    ),
    "layer norm of everything, trained": (
        nn.LayerNorm(WHOLE, EPS),
        per_place(*normalised(True, True)),
    ),
    "layer norm of everything, channels last": (
        ChannelsLast(nn.LayerNorm((HEIGHT, COLUMNS, WIDTH), EPS, elementwise_affine=False)),
        normalised(True, True),
    ),
    "rms norm of channels": (
        ChannelsLast(nn.RMSNorm(WIDTH, EPS, elementwise_affine=False)),
        normalised(False, False),
    ),
    "rms norm of everything": (
        nn.RMSNorm(WHOLE, EPS, elementwise_affine=False),
        normalised(False, True),
    ),
    "one group": (nn.GroupNorm(1, WIDTH, EPS), per_channel(*normalised(True, True))),
    "three groups": (nn.GroupNorm(3, WIDTH, EPS), per_channel(*normalised(True, True))),
}


@pytest.mark.parametrize("name", NORMS)
def test_on_closed_covariances(name: str) -> None:
    norm, (after, ntk) = NORMS[name]
    assert_same(kernels(norm, "all"), expected(after, ntk, "all"))


def test_unit_vectors() -> None:
    """`F.normalize` divides by the Euclidean norm: sqrt(width) times the RMS."""
    after, ntk = hidden()
    (_, square1), (_, square2) = moments(images()), moments(images(2, seed=1))
    scale = (rows(square1) * columns(square2)).rsqrt()
    assert_same(
        kernels(lambda h: F.normalize(h, dim=1) * WIDTH**0.5, "all"),
        expected(after * scale, ntk * scale, "all"),
    )


def batch_norm(uniform: bool) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(WIDTH, EPS)
    generator = torch.Generator().manual_seed(5)
    size = 1 if uniform else WIDTH
    norm.running_mean = torch.randn(size, generator=generator).expand(WIDTH).clone()
    norm.running_var = torch.rand(size, generator=generator).expand(WIDTH) + 0.5
    return norm


def test_a_sum_over_the_width_counts_it() -> None:
    class Network(nn.Module):
        def __init__(self, way: str):
            super().__init__()
            self.first = nn.Conv2d(3, WIDTH, 1)
            self.last = nn.Conv2d(WIDTH, 1, 1)
            self.vector = nn.Parameter(torch.randn(WIDTH, 1, 1))
            self.way = way

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            if self.way == "sum of squares":
                h = h / (h.square().sum(1, keepdim=True) / WIDTH + EPS).sqrt()
            elif self.way == "mean of squares":
                h = h / (h.square().mean(1, keepdim=True) + EPS).sqrt()
            elif self.way == "sum":
                h = h + h.sum(1, keepdim=True)
            else:
                h = h + (torch.relu(h) * self.vector).sum(1, keepdim=True)
            return self.last(torch.relu(h)).mean((2, 3))

    def pair(way: str) -> KernelPair:
        x, x2 = images(), images(2, seed=1)
        return InfiniteKernel(Network(way).double(), x, init=INIT).pair(x, x2)

    assert_same(pair("sum of squares"), pair("mean of squares"))
    for way in ("sum", "weighted sum"):
        with pytest.raises(UnsupportedOperation, match="the sum is a random number"):
            pair(way)


@pytest.mark.parametrize("uniform", [True, False])
def test_running_statistics(uniform: bool) -> None:
    """Per channel s u + t with given s and t: their joint moments over the channels count."""
    norm = batch_norm(uniform)
    scale = (norm.running_var.double() + EPS).rsqrt()
    shift = -norm.running_mean.double() * scale
    after, ntk = hidden()
    (mean1, _), (mean2, _) = moments(images()), moments(images(2, seed=1))
    after = scale.square().mean() * after + shift.square().mean()
    after = after + (scale * shift).mean() * (rows(mean1) + columns(mean2))
    ntk = scale.square().mean() * ntk
    assert_same(kernels(norm, "all"), expected(*per_channel(after, ntk), "all"))


def test_groups_of_a_concatenation_differ() -> None:
    """Groups see natures of their own where the width was put together from several."""

    class Joined(nn.Module):
        def __init__(self, grouped: bool):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.second = nn.Conv2d(3, 8, 1)
            self.last = nn.Conv2d(16, 1, 1)
            self.grouped = grouped

        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.relu(self.first(x)), torch.tanh(self.second(x))
            if self.grouped:
                return self.last(F.group_norm(torch.cat([a, b], dim=1), 2, eps=EPS)).mean((2, 3))
            parts = [F.layer_norm(h, h.shape[1:], eps=EPS) for h in (a, b)]
            return self.last(torch.cat(parts, dim=1)).mean((2, 3))

    x, x2 = images(), images(2, seed=1)
    pairs = [InfiniteKernel(Joined(g).double(), x, init=INIT).pair(x, x2) for g in (True, False)]
    assert_same(*pairs)


@pytest.mark.parametrize("trained", [True, False])
def test_batch_norm_before_a_nonlinearity(trained: bool) -> None:
    """Equal statistics are a factor and a constant; a trained scale s sees (u - m) / sd."""
    norm = nn.BatchNorm2d(8, EPS, affine=trained)
    norm.running_mean, norm.running_var = torch.full((8,), 0.3), torch.full((8,), 1.7)

    class Normed(nn.Module):
        def __init__(self, by_hand: bool):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.norm = norm
            self.last = nn.Conv2d(8, 1, 1)
            self.by_hand = by_hand

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h = (h - 0.3) / (1.7 + EPS) ** 0.5 if self.by_hand else self.norm(h)
            return self.last(torch.relu(h)).mean((2, 3))

    x, x2 = images(), images(2, seed=1)
    by_hand, found = (
        InfiniteKernel(Normed(way).double().eval(), x, init=INIT).pair(x, x2)
        for way in (True, False)
    )
    torch.testing.assert_close(found.nngp, by_hand.nngp, rtol=1e-6, atol=0)
    if trained:
        assert bool((found.ntk > by_hand.ntk).all())
    else:
        torch.testing.assert_close(found.ntk, by_hand.ntk, rtol=1e-6, atol=0)


class Gated(nn.Module):
    """Multiplies by a parameter times a number: the gradient has the number, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 512), nn.Linear(512, 1, bias=False)
        self.gates = nn.Parameter(torch.linspace(0.5, 1.5, 512))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name == "gates")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x) * (self.gates * -3))
        return y


def test_a_multiple_of_a_scale() -> None:
    """Its NTK is 9 w2 K(x, x') of the first layer, at any values of the gates."""
    x = torch.randn(3, 3, dtype=torch.float64)
    found = InfiniteKernel(Gated().double(), x, init=INIT).ntk(x)
    torch.testing.assert_close(found, 9 * WEIGHT * (WEIGHT * x @ x.T / 3 + BIAS))


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.LayerNorm((HEIGHT, COLUMNS)), "positions of one channel"),
        (nn.GroupNorm(WIDTH, WIDTH), "group_norm.*no closed form: pass numerical"),
        (nn.BatchNorm2d(WIDTH, track_running_stats=False), "couples the examples"),
        (nn.Sequential(batch_norm(False), nn.ReLU()), "one Gaussian"),
    ],
)
def test_refused_with_the_reason(norm: nn.Module, reason: str) -> None:
    model = OneOperation(norm, "mean").double().eval()
    model(images(1))
    with pytest.raises(UnsupportedOperation, match=reason):
        InfiniteKernel(model, images(), init=INIT)
