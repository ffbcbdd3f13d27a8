"""Depthwise convolutions with several filters for each channel, and groups of few channels."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.infinite.sampling.networks import reinitialise
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.infinite import InfiniteKernel, Init
from tangency.infinite.rules.convolution import FewChannelsWarning

WIDTH = 12
INIT = Init(weight=1.7, bias=0.1)


def images(n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(n, 2, 4, 4, generator=generator, dtype=torch.float64)


def pair(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = images()
    return InfiniteKernel(model.double(), x, init=INIT, parametrization="ntk").pair(x)


def filtered(times: int, kind: type[nn.Module] = nn.Conv2d) -> nn.Module:
    filters = kind(WIDTH, times * WIDTH, 3, stride=2, padding=1, groups=WIDTH)
    return nn.Sequential(
        nn.Conv2d(2, WIDTH, 1),
        nn.ReLU(),
        filters,
        nn.BatchNorm2d(times * WIDTH).eval(),
        nn.Conv2d(times * WIDTH, WIDTH, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(1, dtype=torch.float64),
    )


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_weight_after_it_does_not_know_how_many_filters_a_channel_has(
    kind: type[nn.Module],
) -> None:
    """It sums over channels and filters; the filters are independent."""
    models = [filtered(times, kind).double() for times in (1, 2, 3)]
    for model in models:
        model(images())
    one, *others = (pair(model) for model in models)
    for other in others:
        for kernel, truth in zip(other, one, strict=True):
            torch.testing.assert_close(kernel, truth)


class Concatenated(nn.Module):
    """Filters of concatenated channels, or concatenated filters of channels."""

    def __init__(self, *, before: bool):
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(2, WIDTH, 1) for _ in range(2))
        self.filter = nn.Conv2d(2 * WIDTH, 4 * WIDTH, 3, groups=2 * WIDTH)
        self.filters = nn.ModuleList(nn.Conv2d(WIDTH, 2 * WIDTH, 3, groups=WIDTH) for _ in range(2))
        self.last = nn.Conv2d(4 * WIDTH, 3, 2)
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        parts = [torch.relu(self.first[0](x)), torch.sin(self.first[1](x))]
        if self.before:
            return self.last(self.filter(torch.cat(parts, 1))).flatten(1)
        wide = [layer(part) for layer, part in zip(self.filters, parts, strict=True)]
        return self.last(torch.cat(wide, 1)).flatten(1)


def test_filters_of_a_concatenation() -> None:
    found, truth = pair(Concatenated(before=True)), pair(Concatenated(before=False))
    for kernel, other in zip(found, truth, strict=True):
        torch.testing.assert_close(kernel, other)


def test_filters_of_one_channel_are_not_divided() -> None:
    class Divided(Concatenated):
        def forward(self, x: Tensor) -> Tensor:
            wide = self.filters[0](torch.relu(self.first[0](x)))
            return self.last(torch.cat([wide[:, :9], wide[:, 9:], wide], 1)).flatten(1)

    with pytest.raises(UnsupportedOperation, match=r"makes 2 channels of each.*multiple"):
        pair(Divided(before=True))


def test_filters_of_one_channel_are_not_independent_pixels() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, WIDTH, 1)
            self.filter = nn.Conv2d(WIDTH, 4 * WIDTH, 3, groups=WIDTH)
            self.last = nn.Conv2d(WIDTH, 3, 4)

        def forward(self, x: Tensor) -> Tensor:
            wide = self.filter(torch.relu(self.first(x)))
            return self.last(nn.functional.pixel_shuffle(wide, 2)).flatten(1)

    with pytest.raises(UnsupportedOperation, match="pixels of channels that depend on each other"):
        pair(Shuffled())


class Grouped(nn.Module):
    """Groups of channels between nonlinearities."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        width = channels * groups
        self.first = nn.Conv2d(2, width, 1)
        self.grouped = nn.Conv2d(width, width, 2, groups=groups)
        self.last = nn.Conv2d(width, 64, 3)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.grouped(torch.relu(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(x)).flatten(1)


def gap(channels: int, groups: int, draws: int = 100) -> tuple[float, float]:
    """Relative distance of the mean kernel of modules from its limit, and its standard error."""
    model, x = Grouped(channels, groups).double(), images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewChannelsWarning)
        limit = InfiniteKernel(model, x, init=INIT).nngp(x)
    generator = torch.Generator().manual_seed(1)
    kernels = []
    for _ in range(draws):
        reinitialise(model, 1.7, 0.1, generator)
        hidden = model.hidden(x).flatten(1).detach()
        kernels.append(1.7 * hidden @ hidden.T / hidden.shape[1] + 0.1)
    drawn = torch.stack(kernels)
    error = (drawn.var(0) / draws).sum().sqrt() / limit.norm()
    return float((drawn.mean(0) - limit).norm() / limit.norm()), float(error)


def test_what_goes_to_infinity_is_the_number_of_channels_of_a_group() -> None:
    """With it, and not with the number of groups, the error of the limit falls, as its inverse."""
    narrow, error = gap(2, 32)
    more, more_error = gap(2, 128)
    assert abs(narrow - more) < 4 * (error + more_error) < 0.07 < more
    wide, error = gap(32, 4)
    assert wide < 0.01 + 3 * error < 0.05


def test_narrow_groups_draw_a_warning() -> None:
    with pytest.warns(FewChannelsWarning, match=r"32 groups of 2 channels.*order 1 / 2"):
        InfiniteKernel(Grouped(2, 32).double(), images())
    with warnings.catch_warnings():
        warnings.simplefilter("error", FewChannelsWarning)
        InfiniteKernel(Grouped(8, 4).double(), images())
