"""Weights whose rows are standardised or normalised before they are used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.infinite.sampling.test_monte_carlo import drawn_nngps, drawn_ntks, gap
from tests.infinite.standardised import (
    CASES,
    ScaledConv,
    WeightNormed,
    batch_normed,
    by_hand,
    divided,
)
from torch import Tensor, nn

from tangency import InfiniteKernel, Init
from tangency.errors import UnsupportedOperation

WIDTH = 96
INIT = Init(weight=1.7, bias=0.1)


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_the_limits_of_the_means(name: str) -> None:
    case = CASES[name]
    limit = InfiniteKernel(case.factory(WIDTH, 1).double(), case.inputs(), init=INIT)
    exact = limit.estimate(case.inputs())
    assert not limit.sampled
    count = 160 if len(case.shape) == 3 else 400
    ntk, bound = gap(drawn_ntks(case, WIDTH, count), exact.ntk, exact.ntk_error)
    assert ntk < bound < 0.07
    nngp, bound = gap(drawn_nngps(case, WIDTH, count // 2), exact.nngp, exact.nngp_error)
    assert nngp < bound < 0.09


class Alone(nn.Module):
    """The kernel of one row-scaled matrix on data: few entries in a row, and exact moments."""

    def __init__(
        self, scaling: Callable[[Tensor, Tensor | None], Tensor], inputs: int, rows: int
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, inputs))
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.scaling(self.weight, None))


@pytest.mark.parametrize("scaling", [batch_normed, by_hand, divided])
def test_rows_of_few_entries(scaling: Callable[[Tensor, Tensor | None], Tensor]) -> None:
    """Means over 40,000 rows, each of which is a network of its own with one output."""
    generator = torch.Generator().manual_seed(0)
    inputs, count = 7, 40_000
    x = torch.randn(4, inputs, generator=generator, dtype=torch.float64) + 1
    model = Alone(scaling, inputs, count).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(model.weight.shape, generator=generator))
    kernels = InfiniteKernel(model, x, init=Init(weight=float(inputs))).pair(x)
    outputs = model(x).detach()
    gradients = torch.stack(
        [torch.autograd.grad(model(row[None]).sum(), model.weight)[0] for row in x]
    )  # of each row's own output
    products = torch.einsum("iro,jro->rij", gradients, gradients)
    squares = outputs.T[:, :, None] * outputs.T[:, None]
    for kernel, drawn in ((kernels.nngp, squares), (kernels.ntk, products)):
        apart = (drawn.mean(0) - kernel).abs()
        assert bool((apart < 4 * drawn.std(0) / count**0.5).all())


def test_one_limit_for_both_spellings_of_weight_normalisation() -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    own, spelled = (
        InfiniteKernel(WeightNormed(64, own=own).double(), x, init=INIT).pair(x)
        for own in (True, False)
    )
    torch.testing.assert_close(own, spelled)


def test_ntk_parametrisation() -> None:
    """W = sqrt(w2 / fan_in) w: the gradient of w is that of W times w2 / fan_in."""
    model = CASES["recurrent"].factory(WIDTH, 1).double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "weight")
    x = CASES["recurrent"].inputs()
    standard = InfiniteKernel(model, x, init=INIT)
    own = InfiniteKernel(model, x, init=INIT, parametrization="ntk")
    torch.testing.assert_close(own.ntk(x), standard.ntk(x) * 1.7 / WIDTH)
    torch.testing.assert_close(own.nngp(x), standard.nngp(x))


def test_frozen_parameters_do_not_count() -> None:
    model = CASES["batch norm, gain"].factory(16, 1).double()
    x = CASES["batch norm, gain"].inputs()
    whole = InfiniteKernel(model, x, init=INIT).ntk(x)
    parts = torch.zeros_like(whole)
    for chosen, _ in list(model.named_parameters()):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name == chosen)
        parts = parts + InfiniteKernel(model, x, init=INIT).ntk(x)
    torch.testing.assert_close(parts, whole)


def test_derivatives_in_the_scale() -> None:
    """The larger the weights that are standardised, the smaller their gradients."""
    case = CASES["batch norm"]
    model, x = case.factory(16, 1).double(), case.inputs()

    def ntk(moment: float | Tensor) -> Tensor:
        return InfiniteKernel(model, x, init=Init(weight=moment), compile=False).ntk(x).sum()

    moment = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ntk(moment), moment)
    difference = (ntk(1.71) - ntk(1.69)) / 0.02
    torch.testing.assert_close(slope, difference, rtol=1e-3, atol=0.0)


class Refused(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.enter, self.layer, self.last = nn.Conv2d(2, 8, 1), layer, nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(F.relu(self.layer(self.enter(x))).mean((2, 3)))
        return y


class Upsampling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, batch_normed(self.weight, None), stride=2)


def test_a_depthwise_filter_is_refused() -> None:
    model = Refused(ScaledConv(8, 8, by_hand, None, groups=8))
    with pytest.raises(UnsupportedOperation, match=r"module 'layer'.*every channel's own filter"):
        InfiniteKernel(model, torch.randn(2, 2, 4, 4))


def test_a_transposed_convolution_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="a transposed convolution with"):
        InfiniteKernel(Refused(Upsampling()), torch.randn(2, 2, 4, 4))


def test_rows_without_a_mean_ntk_are_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="normalises rows of 3 entries"):
        InfiniteKernel(Alone(batch_normed, 3, 1), torch.randn(2, 3), init=INIT)
