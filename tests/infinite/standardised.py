"""Networks whose weights are computed by scaling the rows of parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from tests.infinite.sampling.networks import Case
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

RowScaling = Callable[[Tensor, Tensor | None], Tensor]
"""Of a weight and a gain for each of its rows."""


def batch_normed(weight: Tensor, gain: Tensor | None) -> Tensor:
    """As timm spells it: rows of variance one."""
    rows = weight.reshape(1, weight.shape[0], -1)
    return F.batch_norm(rows, None, None, weight=gain, training=True, eps=1e-6).view_as(weight)


def by_hand(weight: Tensor, gain: Tensor | None) -> Tensor:
    """As Qiao et al. 2019 spell it."""
    dims = tuple(range(1, weight.dim()))
    centred = weight - weight.mean(dims, keepdim=True)
    scaled = centred / (weight.std(dims, keepdim=True) + 1e-5)
    return scaled if gain is None else scaled * gain.view(-1, *[1] * len(dims))


def divided(weight: Tensor, gain: Tensor | None) -> Tensor:
    """Rows of norm sqrt(fan_in), as of weight normalisation; their means stay."""
    rows = F.normalize(weight.flatten(1), dim=1).view_as(weight) * weight[0].numel() ** 0.5
    return rows if gain is None else gain.view(-1, *[1] * (weight.dim() - 1)) * rows


class ScaledConv(nn.Module):
    """A convolution by a weight of variance about 1 / fan_in."""

    def __init__(
        self, inputs: int, outputs: int, scaling: RowScaling, gain: float | None, **options: int
    ) -> None:
        super().__init__()
        groups = options.get("groups", 1)
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, 3, 3))
        self.norm_gain = None if gain is None else nn.Parameter(torch.full((outputs,), gain))
        self.scaling, self.options = scaling, options

    def forward(self, x: Tensor) -> Tensor:
        weight = self.scaling(self.weight, self.norm_gain) / self.weight[0].numel() ** 0.5
        return F.conv2d(x, weight, padding=1, **self.options)


class Convolutional(nn.Module):
    """Zero padding, a stride, groups: after ReLU, inputs have means that rows do not see."""

    def __init__(
        self, width: int, out: int, scaling: RowScaling, gain: float | None, groups: int = 1
    ) -> None:
        super().__init__()
        self.first = ScaledConv(8, width, scaling, gain)
        self.second = ScaledConv(width, width, scaling, gain, stride=2, groups=groups)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.second(F.relu(self.first(x + 0.5))))
        y: Tensor = self.last(hidden.mean((2, 3)))
        return y


class Rectangular(nn.Module):
    """Standardised matrices, one of them applied as x @ W; data and random values concatenated."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.first = nn.Linear(5, width)
        self.joined = nn.Parameter(torch.empty(width, width + 5))
        self.turned = nn.Parameter(torch.empty(width, width))
        self.norm_gain = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        joined = torch.cat([hidden, x + 1], -1)
        weight = by_hand(self.joined, None) / self.joined.shape[1] ** 0.5
        hidden = F.relu(F.linear(joined, weight))
        weight = by_hand(self.turned.T, self.norm_gain).T / self.turned.shape[0] ** 0.5
        y: Tensor = self.last(hidden @ weight)
        return y


class Recurrent(nn.Module):
    """One standardised weight, computed anew at every step."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.enter = nn.Linear(5, width)
        self.weight = nn.Parameter(torch.empty(width, width))
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        state = F.relu(self.enter(x[:, 0]))
        for t in range(1, 3):
            weight = batch_normed(self.weight, None) / self.weight.shape[1] ** 0.5
            state = F.relu(F.linear(state, weight) + self.enter(x[:, t]))
        y: Tensor = self.last(state)
        return y


class WeightNormed(nn.Module):
    """torch's own weight normalisation, or the same by hand."""

    def __init__(self, width: int, *, own: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, width), nn.Linear(width, width)
        self.norm_gain = nn.Parameter(torch.full((width,), width**0.5))
        if own:
            weight_norm(self.second)
            with torch.no_grad():
                self.second.parametrizations.weight.original0.copy_(self.norm_gain[:, None])
        self.last = nn.Linear(width, 1)
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        if self.own:
            hidden = self.second(hidden)
        else:
            rows = F.normalize(self.second.weight, dim=1)
            hidden = F.linear(hidden, self.norm_gain[:, None] * rows, self.second.bias)
        y: Tensor = self.last(F.relu(hidden))
        return y


def _convolutional(scaling: RowScaling, gain: float | None, groups: int = 1) -> Case:
    def factory(width: int, out: int) -> nn.Module:
        return Convolutional(width, out, scaling, gain, groups)

    return Case(factory, (8, 4, 5), exact=True)


CASES: dict[str, Case] = {
    "batch norm": _convolutional(batch_normed, None),
    "batch norm, gain": _convolutional(batch_normed, 1.2),
    "by hand, gain, groups": _convolutional(by_hand, 1.2, groups=2),
    "weight norm, gain": _convolutional(divided, 1.2),
    "matrices": Case(Rectangular, (5,), exact=True),
    "recurrent": Case(Recurrent, (3, 5), exact=True),
}
