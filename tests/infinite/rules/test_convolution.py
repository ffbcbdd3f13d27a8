"""Convolutions by identities, by a dense recursion, and at random against Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.infinite.convolutional import Architecture, LocallyConnected
from tests.infinite.images import BIAS, INIT, WEIGHT, assert_same, images
from tests.infinite.test_convolutional_monte_carlo import (
    WIDE,
    allowed,
    distance,
    limit,
    sampled,
    sampled_nngp,
)
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.infinite import InfiniteKernel
from tangency.kernel_pair import KernelPair


def kernel(model: nn.Module, x: Tensor) -> InfiniteKernel:
    model = model.double().eval()
    model(x)
    return InfiniteKernel(model, x, init=INIT)


def pair(model: nn.Module) -> KernelPair:
    """Kernels between two sets of images of differing size."""
    x = images()
    return kernel(model, x).pair(x, images(2, seed=1))


def cnn(*middle: nn.Module, first: nn.Module | None = None) -> nn.Module:
    first = first or nn.Conv2d(3, 8, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), *middle, nn.Flatten(), nn.LazyLinear(1))


def dense(x1: Tensor, x2: Tensor, first: Callable[[Tensor], Tensor], taps: int) -> KernelPair:
    """Conv, ReLU, flatten, linear, with patches laid out by torch itself, `(n, inputs, P)`."""
    p1, p2 = first(x1), first(x2)

    def block(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        gram = torch.einsum("ncp,mcp->nmp", a, b)
        return WEIGHT * gram / taps + BIAS, gram + 1

    before, ntk = block(p1, p2)
    own1, own2 = (WEIGHT * p.square().sum(1) / taps + BIAS for p in (p1, p2))
    scale = (own1[:, None] * own2[None]).sqrt()
    theta = torch.acos((before / scale).clamp(-1, 1))
    slopes = (torch.pi - theta) / (2 * torch.pi)
    after = (scale * torch.sin(theta) / (2 * torch.pi) + before * slopes).mean(-1)
    positions = p1.shape[-1]
    readout = WEIGHT * (slopes * ntk).mean(-1) + 8 * positions * after + 1
    return KernelPair(WEIGHT * after + BIAS, readout)


FILTERS: dict[str, tuple[dict, Callable[[Tensor], Tensor]]] = {
    "valid": ({"kernel_size": (2, 3)}, lambda x: F.unfold(x, (2, 3))),
    "padded": (
        {"kernel_size": 3, "padding": (2, 1)},
        lambda x: F.unfold(x, 3, padding=(2, 1)),
    ),
    "strided and dilated": (
        {"kernel_size": (2, 3), "stride": (2, 1), "dilation": (1, 2), "padding": (1, 0)},
        lambda x: F.unfold(x, (2, 3), stride=(2, 1), dilation=(1, 2), padding=(1, 0)),
    ),
    "same, even": (
        {"kernel_size": (2, 4), "padding": "same"},
        lambda x: F.unfold(F.pad(x, (1, 2, 0, 1)), (2, 4)),
    ),
    "circular": (
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        lambda x: F.unfold(F.pad(x, (1, 1, 1, 1), mode="circular"), 3),
    ),
    "reflected": (
        {"kernel_size": (3, 2), "padding": (2, 1), "padding_mode": "reflect", "stride": (1, 2)},
        lambda x: F.unfold(F.pad(x, (1, 1, 2, 2), mode="reflect"), (3, 2), stride=(1, 2)),
    ),
    "replicated": (
        {"kernel_size": 2, "padding": (1, 3), "padding_mode": "replicate"},
        lambda x: F.unfold(F.pad(x, (3, 3, 1, 1), mode="replicate"), 2),
    ),
    "as large as the image": ({"kernel_size": (5, 6)}, lambda x: F.unfold(x, (5, 6))),
}


@pytest.mark.parametrize("name", FILTERS)
def test_one_layer_in_closed_form(name: str) -> None:
    options, patches = FILTERS[name]
    layer = nn.Conv2d(3, 8, **options)
    taps = layer.weight[0].numel()
    expected = dense(images(), images(2, seed=1), patches, taps)
    assert_same(pair(cnn(first=layer)), expected)


PADDED: dict[str, list[nn.Module]] = {
    "zeros": [nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(3, 8, (2, 3), padding=(1, 0))],
    "zeros twice, then the other end": [
        nn.ZeroPad2d((1, 0, 0, 1)),
        nn.ZeroPad2d((2, 0, 1, 0)),
        nn.CircularPad2d((2, 0, 1, 1)),
        nn.Conv2d(3, 8, 3),
    ],
    "the other end, then zeros": [nn.CircularPad2d((2, 1, 3, 0)), nn.Conv2d(3, 8, 3, padding=2)],
    "the other end in each dimension": [
        nn.CircularPad2d((2, 1, 0, 0)),
        nn.CircularPad2d((0, 0, 3, 1)),
        nn.Conv2d(3, 8, (3, 2), stride=2, dilation=(1, 2)),
    ],
    "the other end twice": [nn.CircularPad2d(1), nn.CircularPad2d(2), nn.Conv2d(3, 8, 3)],
    "cropped": [nn.CircularPad2d((-1, 2, 0, 0)), nn.ZeroPad2d((0, 0, -2, 1)), nn.Conv2d(3, 8, 2)],
    "a number": [nn.ConstantPad2d(1, 0.5), nn.Conv2d(3, 8, 2)],
}


@pytest.mark.parametrize("name", PADDED)
def test_padding_in_front_of_a_filter(name: str) -> None:
    """One layer in closed form, and the same padding in front of hidden positions."""
    *pads, last = PADDED[name]
    assert isinstance(last, nn.Conv2d)
    options = {"dilation": last.dilation, "padding": last.padding, "stride": last.stride}

    def patches(x: Tensor) -> Tensor:
        return F.unfold(nn.Sequential(*pads)(x), last.kernel_size, **options)

    taps = last.weight[0].numel()
    expected = dense(images(), images(2, seed=1), patches, taps)
    assert_same(pair(cnn(first=nn.Sequential(*pads, last))), expected)
    # A padded copy that something else reads too is no part of the filter's windows.
    hidden = nn.Conv2d(8, 8, last.kernel_size, **options)
    copy = nn.Sequential(*pads, Copied())
    joined, apart = (pair(cnn(*front, hidden, nn.ReLU())) for front in (pads, [copy]))
    assert_same(joined, apart)


class Copied(nn.Module):
    """The identity, written so that what comes before it stands alone."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.stack([h, h]).mean(0)


def test_transposed_is_a_filter_of_the_stuffed_input() -> None:
    """Zeros in between and around, then a flipped filter, whose taps are exchangeable."""
    layer = nn.ConvTranspose2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 0), output_padding=(1, 0))

    def patches(x: Tensor) -> Tensor:
        stuffed = x.new_zeros(x.shape[0], 3, 9, 6)
        stuffed[:, :, ::2] = x
        return F.unfold(F.pad(stuffed, (1, 1, 1, 2)), (3, 2))

    expected = dense(images(), images(2, seed=1), patches, 3 * 6)
    assert_same(pair(cnn(first=layer)), expected)


def test_transposed_in_the_middle_is_its_own_spelling() -> None:
    """Upsampling by zeros written with a transposed filter, or with a pad of a new axis."""
    layer = nn.ConvTranspose2d(8, 8, 2, stride=2)

    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Conv2d(8, 8, 2)

        def forward(self, h: Tensor) -> Tensor:
            h = F.pad(h[:, :, :, None, :, None], (0, 1, 0, 0, 0, 1)).flatten(4).flatten(2, 3)
            return self.filter(F.pad(h, (1, 0, 1, 0)))

    assert_same(pair(cnn(ByHand(), nn.ReLU())), pair(cnn(layer, nn.ReLU())))


SAME: dict[str, tuple[list[nn.Module], list[nn.Module]]] = {
    "a filter as large as its input is a linear layer": (
        [nn.Conv2d(8, 8, (5, 6)), nn.ReLU()],
        [nn.Flatten(), nn.Linear(240, 8), nn.ReLU()],
    ),
    "a 1x1 filter of one pixel is a linear layer": (
        [nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.ReLU()],
        [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.ReLU()],
    ),
    "pooling commutes with a 1x1 filter": (
        [nn.AvgPool2d(2), nn.Conv2d(8, 8, 1, bias=False), nn.ReLU()],
        [nn.Conv2d(8, 8, 1, bias=False), nn.AvgPool2d(2), nn.ReLU()],
    ),
    "zeros around and a valid filter are a padded filter": (
        [nn.ZeroPad2d((1, 1, 0, 2)), nn.Conv2d(8, 8, 3), nn.ReLU()],
        [nn.ZeroPad2d((0, 0, 0, 2)), nn.Conv2d(8, 8, 3, padding=(0, 1)), nn.ReLU()],
    ),
    "groups of alike channels": (
        [nn.Conv2d(8, 8, (2, 3), groups=2), nn.ReLU()],
        [nn.Conv2d(8, 8, (2, 3)), nn.ReLU()],
    ),
    "a 2-d filter of one row is a 1-d filter of rows": (
        [nn.Conv2d(8, 8, (1, 3)), nn.ReLU(), nn.AdaptiveAvgPool2d(1)],
        [nn.Conv3d(8, 8, (1, 1, 3)), nn.ReLU(), nn.AdaptiveAvgPool3d(1)],
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_spellings_of_one_function(name: str) -> None:
    one, other = SAME[name]
    if name.startswith("groups"):
        found, expected = pair(cnn(*one)), pair(cnn(*other))
        torch.testing.assert_close(found.nngp, expected.nngp, rtol=1e-12, atol=0)
        return  # the NTK counts the fan-in of the weights as they are
    if name.startswith("a 2-d"):
        other = [nn.Unflatten(3, (1, 6)), other[0], *other[1:]]
    assert_same(pair(cnn(*one)), pair(cnn(*other)))


def test_locally_connected_and_flatten_are_a_convolution_and_flatten() -> None:
    """Only equal positions are compared there; under pooling all are, and filters differ."""

    def after(layer: nn.Module, *end: nn.Module) -> KernelPair:
        return pair(cnn(layer, nn.Flatten(2), nn.ReLU(), *end))

    local, shared = LocallyConnected(8, 8, (2, 3), 16), nn.Conv2d(8, 8, (2, 3), bias=False)
    assert_same(after(local), after(shared))
    pooled = [after(layer, nn.AdaptiveAvgPool1d(1)).nngp for layer in (local, shared)]
    assert float((pooled[0] - pooled[1]).abs().max()) > 1e-3


def test_circular_padding_is_translation_invariant() -> None:
    """... under global pooling: a shifted image is the same image."""
    circular = {"padding": 1, "padding_mode": "circular"}
    model = cnn(
        nn.Conv2d(8, 8, 3, **circular), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        first=nn.Conv2d(3, 8, 3, **circular),
    )  # fmt: skip
    x, other = images(), images(2, seed=1)
    limit_kernel = kernel(model, x)
    found, shifted = (limit_kernel.pair(z, other) for z in (x, torch.roll(x, (2, 1), (2, 3))))
    assert_same(found, shifted)
    # ... while zero padding sees where the borders are.
    zeros = cnn(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    limit_kernel = kernel(zeros, x)
    found, shifted = (limit_kernel.nngp(z, other) for z in (x, torch.roll(x, (2, 1), (2, 3))))
    assert float((found - shifted).abs().max()) > 1e-3


def consistent_models() -> dict[str, nn.Module]:
    strided = nn.Conv2d(8, 8, (2, 3), stride=(1, 2), padding=1)
    return {
        "flattened": cnn(strided, nn.ReLU()),
        "pooled": cnn(nn.AvgPool2d(2), strided, nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        "positions kept": nn.Sequential(
            nn.Conv2d(3, 8, 2), nn.ReLU(), nn.AvgPool2d(2, 1), nn.Conv2d(8, 1, (2, 3))
        ),
    }


@pytest.mark.parametrize("name", consistent_models())
def test_diagonals_duplicates_and_tiles(name: str) -> None:
    x = images(5)
    x[3] = x[1]
    limit_kernel = kernel(consistent_models()[name], x)
    gram, diagonal = limit_kernel.pair(x), limit_kernel.diagonal(x)
    flat = [k.diagonal(dim1=0, dim2=1).movedim(-1, 0) for k in gram]
    if name == "positions kept":
        assert gram.ntk.shape == (5, 5, 2, 2, 2, 2)
        flat = [torch.einsum("nijij->nij", k) for k in flat]
    for whole, own in zip(flat, diagonal, strict=True):
        torch.testing.assert_close(whole.reshape(own.shape), own, rtol=1e-8, atol=0)
    order = torch.tensor([4, 1, 3, 0])
    again = limit_kernel.pair(x[order])
    for k, permuted in zip(gram, again, strict=True):
        torch.testing.assert_close(permuted, k[order][:, order], rtol=1e-8, atol=1e-12)
    parts = [limit_kernel.ntk(x[:2], x[k : k + 1]) for k in range(5)]
    torch.testing.assert_close(torch.cat(parts, dim=1), gram.ntk[:2], rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["flattened", "pooled"])
def test_float32_keeps_near_duplicates(name: str) -> None:
    """Inputs apart by 1e-6 of their norm, or of norm 1e-6, or all zero."""
    x = images(6)
    x[1] = x[0] * (1 + 1e-6)
    x[2] = x[0] + 1e-6 * x[3]
    x[4] *= 1e-6
    x[5] = 0.0
    limit_kernel = kernel(consistent_models()[name], x)
    wide, narrow = limit_kernel.pair(x), limit_kernel.pair(x.float())
    for expected, found in zip(wide, narrow, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)
        eigenvalues = torch.linalg.eigvalsh(found.double())
        assert float(eigenvalues.min()) > -1e-6 * float(found.diagonal().mean())


# -- random networks --------------------------------------------------------------------------

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "filter": lambda w: nn.Conv2d(w, w, (2, 3), padding=(1, 1)),
    "strided": lambda w: nn.Conv2d(w, w, (3, 1), stride=(1, 2), padding=(1, 0), bias=False),
    "circular": lambda w: nn.Conv2d(w, w, 2, padding=1, padding_mode="circular"),
    "point": lambda w: nn.Conv2d(w, w, 1),
    "transposed": lambda w: nn.ConvTranspose2d(w, w, 2, bias=False),
    "pooled": lambda w: nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False),
    "upsampled": lambda w: nn.Upsample(size=(4, 3), mode="bilinear"),
    "adaptive": lambda w: nn.AdaptiveAvgPool2d((3, 2)),
    "group norm": lambda w: nn.GroupNorm(2, w),
    "padded": lambda w: nn.ReflectionPad2d((1, 0, 1, 0)),
    "residual": lambda w: Residual(w),
}


class Residual(nn.Module):
    """Pre-activation, added to what comes in."""

    def __init__(self, width: int):
        super().__init__()
        self.filter = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return (h + self.filter(torch.relu(h))) / math.sqrt(2)


class Random(nn.Module):
    """Layers given as (name, ReLU before a filter), channels last or first, a readout."""

    def __init__(self, plan: list[str], last: bool, readout: str, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(3, width) if last else nn.Conv2d(3, width, 1)
        self.layers = nn.ModuleList(LAYERS[name](width) for name in plan)
        self.last = nn.LazyLinear(out)
        self.plan, self.channels_last, self.readout = plan, last, readout

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:
            h = self.first(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            h = self.first(x)
        for name, layer in zip(self.plan, self.layers, strict=True):
            filters = name in ("filter", "strided", "circular", "point", "transposed")
            h = layer(torch.relu(h) if filters else h)
        h = torch.relu(h)
        return self.last(h.flatten(1) if self.readout == "flatten" else h.mean((2, 3)))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    plan=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4),
    last=st.booleans(),
    readout=st.sampled_from(["flatten", "mean"]),
    shape=st.tuples(st.just(3), st.integers(2, 4), st.integers(2, 5)),
)
def test_random_networks(
    plan: list[str], last: bool, readout: str, shape: tuple[int, int, int]
) -> None:
    architecture = Architecture(lambda w, out: Random(plan, last, readout, w, out), shape)
    x = architecture.data()
    kernels = limit(architecture, WIDE, x).pair(x)
    draws, outputs = sampled(architecture, WIDE, x), sampled_nngp(architecture, x)
    assert float(distance(draws.mean(0), kernels.ntk)) < allowed(draws, kernels.ntk)
    assert float(distance(outputs.mean(0), kernels.nngp)) < allowed(outputs, kernels.nngp)


class AlongWidth(nn.Module):
    """A filter that slides along channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.filter = nn.Conv1d(30, 8, 3)
        self.last = nn.LazyLinear(1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x)).flatten(2).transpose(1, 2)
        return self.last(torch.relu(self.filter(h)).flatten(1))


def test_sliding_along_a_width_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="slides along a width"):
        kernel(AlongWidth(), images())
