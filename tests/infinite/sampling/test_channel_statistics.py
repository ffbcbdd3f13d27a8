"""Norms of every channel over its own positions: groups of one channel, global response norm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.infinite.sampling.networks import Case
from tests.infinite.sampling.test_monte_carlo import drawn_nngps, drawn_ntks, gap
from torch import Tensor, nn

from tangency.infinite import InfiniteKernel, Init

WIDTH = 192
INIT = Init(weight=1.7, bias=0.1)
WITH_SHIFT = Init(weight=1.7, bias=0.1, overrides={"norm.shift": 0.0})


class ResponseNorm(nn.Module):
    """Woo et al. 2023, section 3.2, channels last, as timm writes it."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm_scale = nn.Parameter(scale * torch.linspace(0.5, 1.5, width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(1, 2), keepdim=True)
        response = size / (size.mean(-1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.shift, self.norm_scale, x * response)


class Normed(nn.Module):
    """A convolution, an activation, a norm, and what a linear layer and a ReLU make of it."""

    def __init__(
        self,
        width: int,
        out: int,
        activation: Callable[[Tensor], Tensor],
        norm: nn.Module,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, width, 3)
        self.norm = norm
        self.second, self.last = nn.Linear(width, width), nn.Linear(width, out)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.first(x))
        if isinstance(self.norm, ResponseNorm):
            hidden = self.norm(hidden.permute(0, 2, 3, 1))
        else:
            hidden = self.norm(hidden).permute(0, 2, 3, 1)
        y: Tensor = self.last(F.relu(self.second(hidden)).mean((1, 2)))
        return y


def _group_norm(width: int) -> nn.Module:
    norm = nn.GroupNorm(width, width)
    nn.init.constant_(norm.weight, 1.2)
    nn.init.constant_(norm.bias, 0.1)
    return norm


def _case(
    activation: Callable[[Tensor], Tensor],
    norm: Callable[[int], nn.Module],
    size: tuple[int, int],
    *,
    exact: bool = False,
) -> Case:
    def factory(width: int, out: int) -> nn.Module:
        return Normed(width, out, activation, norm(width))

    return Case(factory, (2, *size), exact)


def _response(scale: float) -> Callable[[int], nn.Module]:
    return lambda width: ResponseNorm(width, scale)


CASES: dict[str, Case] = {
    "groups of one channel": _case(torch.tanh, _group_norm, (4, 5)),
    "response": _case(F.gelu, _response(0.7), (4, 5)),
    "response at the start of training": _case(F.gelu, _response(0.0), (4, 4)),
    "response of rectified values": _case(F.relu, _response(0.7), (4, 3)),
    "response of one position": _case(F.gelu, _response(0.7), (3, 3), exact=True),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_the_limits_of_the_means(name: str) -> None:
    case = CASES[name]
    model = case.factory(WIDTH, 1).double()
    init = WITH_SHIFT if name.startswith("response") else INIT
    numerical = None if case.exact else "sample"
    limit = InfiniteKernel(model, case.inputs(), init=init, numerical=numerical)
    assert limit.sampled != case.exact
    estimate = limit.estimate(case.inputs())
    ntk, bound = gap(drawn_ntks(case, WIDTH, 300), estimate.ntk, estimate.ntk_error)
    assert ntk < bound < 0.12
    nngp, bound = gap(drawn_nngps(case, WIDTH, 120), estimate.nngp, estimate.nngp_error)
    assert nngp < bound < 0.12


def test_groups_of_one_channel_are_an_instance_norm() -> None:
    grouped = _case(torch.tanh, _group_norm, (4, 5)).factory(16, 1)
    normed = Normed(16, 1, torch.tanh, nn.InstanceNorm2d(16, affine=True))
    normed.load_state_dict(grouped.state_dict())
    x = torch.randn(3, 2, 4, 5)
    first, second = (
        InfiniteKernel(model, x, init=INIT, numerical="sample", samples=64).pair(x)
        for model in (grouped, normed)
    )
    torch.testing.assert_close(first, second)
