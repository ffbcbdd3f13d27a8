"""Networks that need samples, or products, each a function of (width, outputs)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Factory = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class Case:
    """A network, the shape of one example, and whether its limit is exact."""

    factory: Factory
    shape: tuple[int, ...]
    exact: bool = False

    def inputs(self, n: int = 3) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(n, *self.shape, generator=generator, dtype=torch.float64)


class Tokens(nn.Module):
    """A layer over tokens, an operation over them, and the mean."""

    def __init__(self, width: int, out: int, operation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, out)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.operation(self.first(x))
        hidden = F.relu(self.second(hidden))
        return self.last(hidden.mean(1) if hidden.dim() == 3 else hidden)


class MaxPooled(nn.Module):
    """Overlapping max-pooling windows between convolutions."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Conv2d(2, width, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.second = nn.Conv2d(width, width, 2)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.pool(F.relu(self.first(x)))
        return self.last(F.relu(self.second(hidden)).mean((2, 3)))


class InstanceNormed(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Conv2d(2, width, 3)
        self.norm = nn.InstanceNorm2d(width, affine=True)
        self.last = nn.Linear(width, out)
        with torch.no_grad():
            self.norm.weight.fill_(1.2)
            self.norm.bias.fill_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.norm(self.first(x))).mean((2, 3)))


class Depthwise(nn.Module):
    """An inverted residual without norms: expand, filter every channel, project, and a ReLU."""

    def __init__(self, width: int, out: int, *, activated: bool):
        super().__init__()
        self.expand = nn.Conv2d(2, width, 1)
        self.filter = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.project = nn.Conv2d(width, width, 1)
        self.last = nn.Linear(width, out)
        self.activated = activated

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.filter(F.relu(self.expand(x)))
        hidden = F.relu(hidden) if self.activated else hidden
        return self.last(F.relu(self.project(hidden)).mean((2, 3)))


class Multiplied(nn.Module):
    """Two depthwise convolutions with several filters for each channel, one upon the other."""

    def __init__(self, width: int, out: int, *, activated: bool):
        super().__init__()
        self.expand = nn.Conv2d(2, width, 1)
        self.first = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
        self.norm = nn.GroupNorm(1, 2 * width, affine=False)
        self.second = nn.Conv2d(2 * width, 6 * width, 3, groups=2 * width, bias=False)
        self.project = nn.Conv2d(6 * width, width, 1)
        self.last = nn.Linear(width, out)
        self.activated = activated

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(F.relu(self.expand(x))))
        hidden = self.second(F.relu(hidden) if self.activated else hidden)
        hidden = torch.tanh(hidden) if self.activated else hidden
        return self.last(F.relu(self.project(hidden)).mean((2, 3)))


class MultipliedBeside(nn.Module):
    """Of each channel two, added to the channels twice over: coordinates that do not meet."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.expand = nn.Conv2d(2, width, 1)
        self.filter = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
        self.gate = nn.Conv2d(width, 2 * width, 1, groups=width)
        self.last = nn.Linear(2 * width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.expand(x))
        filtered = self.filter(hidden) * torch.sigmoid(self.gate(hidden))
        twice = torch.cat([hidden, hidden], 1)
        return self.last(F.relu(filtered + 2 * twice - 1.5).mean((2, 3)))


class FilteredResidual(nn.Module):
    """u + a depthwise convolution of u, where u is a function of two Gaussians."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Conv2d(2, width, 1)
        self.second = nn.Conv2d(width, width, 1)
        self.filter = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        hidden = F.relu(hidden + self.second(hidden))
        return self.last((hidden + self.filter(hidden)).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, width: int, out: int, cell: type[nn.RNNBase]):
        super().__init__()
        self.cell = cell(5, width, batch_first=True)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.cell(x)[0]
        return self.last(states[:, -1])


class SwiGlu(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.gate = nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden = hidden + self.down(F.silu(self.gate(hidden)) * self.up(hidden))
        return self.last(F.relu(hidden))


class GatedUnits(nn.Module):
    """`nn.GLU` on one layer's two halves, and a product of three independent factors."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(5, 2 * width)
        self.a = nn.Linear(width, width)
        self.b = nn.Linear(width, width)
        self.c = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.glu(self.first(x))
        product = (
            torch.sigmoid(self.a(hidden)) * F.relu(self.b(hidden)) * torch.tanh(self.c(hidden))
        )
        return self.last(product)


class Squeezed(nn.Module):
    """Squeeze and excitation: channels gated by functions of their means."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Conv2d(2, width, 3, padding=1)
        self.squeeze = nn.Linear(width, width)
        self.excite = nn.Linear(width, width)
        self.second = nn.Conv2d(width, width, 3)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        gates = torch.sigmoid(self.excite(F.relu(self.squeeze(hidden.mean((2, 3))))))
        hidden = hidden * gates[:, :, None, None]
        return self.last(F.relu(self.second(hidden)).mean((2, 3)))


class DependentGate(nn.Module):
    """Factors and terms that share weights: sampled, with the exact branch beside them."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.gate = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        gate = self.gate(torch.tanh(hidden))
        mixed = torch.sigmoid(gate + hidden) * hidden + F.relu(hidden)
        return self.last(mixed)


class PostActivationResidual(nn.Module):
    """relu(g3 + relu(g2 + relu(g1))): three Gaussians in one value."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        hidden = F.relu(hidden + self.second(hidden))
        hidden = F.relu(hidden + self.third(hidden))
        return self.last(hidden)


class ResidualBlock(nn.Module):
    """phi(g2 + phi(g1)): two Gaussians in one value, and a linear branch beside it."""

    def __init__(self, width: int, out: int, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, out)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.first(x))
        branch = self.second(hidden)
        return self.last(self.activation(hidden + branch) - 0.5 * branch)


class Normalised(nn.Module):
    """A LayerNorm with spread-out scales before a maximum over tokens."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, out)
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).amax(1))


def tokens(operation: Callable[[Tensor], Tensor]) -> Case:
    return Case(lambda width, out: Tokens(width, out, operation), (3, 5))


SAMPLED: dict[str, Case] = {
    "max pooling": Case(MaxPooled, (2, 4, 4)),
    "amax": tokens(lambda h: h.amax(1)),
    "max with indices": tokens(lambda h: h.max(dim=1).values),
    "softmax over tokens": tokens(lambda h: 3 * torch.softmax(h, 1)),
    "sort": tokens(lambda h: torch.sort(h, 1).values),
    "cumulative product": tokens(lambda h: torch.cumprod(1 + 0.5 * torch.tanh(h), 1)),
    "log-sum-exp": tokens(lambda h: torch.logsumexp(h, 1)),
    "instance norm": Case(InstanceNormed, (2, 4, 4)),
    "gru": Case(lambda width, out: Recurrent(width, out, nn.GRU), (3, 5)),
    "lstm": Case(lambda width, out: Recurrent(width, out, nn.LSTM), (3, 5)),
    "dependent gate": Case(DependentGate, (5,)),
    "post-activation residual": Case(PostActivationResidual, (5,)),
    "layer norm, amax": Case(Normalised, (3, 5)),
    "depthwise, activated": Case(lambda w, o: Depthwise(w, o, activated=True), (2, 3, 3)),
    "multiplied, activated": Case(lambda w, o: Multiplied(w, o, activated=True), (2, 3, 3)),
    "multiplied beside the channels": Case(MultipliedBeside, (2, 2, 2)),
}

EXACT: dict[str, Case] = {
    "swiglu": Case(SwiGlu, (5,), exact=True),
    "gated units": Case(GatedUnits, (5,), exact=True),
    "squeeze and excitation": Case(Squeezed, (2, 4, 4), exact=True),
    "residual block, relu": Case(lambda w, o: ResidualBlock(w, o, F.relu), (5,), exact=True),
    "residual block, gelu": Case(lambda w, o: ResidualBlock(w, o, F.gelu), (5,), exact=True),
    "depthwise": Case(lambda w, o: Depthwise(w, o, activated=False), (2, 3, 3), exact=True),
    "filtered residual": Case(FilteredResidual, (2, 3, 3), exact=True),
    "multiplied": Case(lambda w, o: Multiplied(w, o, activated=False), (2, 3, 3), exact=True),
}


def reinitialise(model: nn.Module, weight: float, bias: float, generator: torch.Generator) -> None:
    """Weights of variance weight / fan_in, biases of variance `bias`; norms stay."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                continue
            scale = math.sqrt(bias)
            if parameter.dim() > 1:
                scale = math.sqrt(weight / parameter[0].numel())
            values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(scale * values)
