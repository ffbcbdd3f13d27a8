"""Networks of differing kind, each a function of (width, outputs), on inputs of shape (n, 4, 5)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME, FEATURES = 4, 5
FLAT = TIME * FEATURES


class Mlp(nn.Module):
    def __init__(self, width: int, out: int, activation: Callable[[Tensor], Tensor] = F.relu):
        super().__init__()
        self.first = nn.Linear(FLAT, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, out)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.first(x.flatten(1)))
        return self.last(self.activation(self.second(hidden)))


class NoBias(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(FLAT, width, bias=False),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 2 * width, bias=False),
            nn.Dropout(0.3),
            nn.Tanh(),
            nn.Linear(2 * width, out, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Recurrent(nn.Module):
    """A recurrent network as a Python loop; its weights are shared over time."""

    def __init__(self, width: int, out: int, readout: str = "last"):
        super().__init__()
        self.inputs = nn.Linear(FEATURES, width)
        self.recurrent = nn.Linear(width, width)
        self.last = nn.Linear(width, out)
        self.readout = readout

    def forward(self, x: Tensor) -> Tensor:
        state = torch.tanh(self.inputs(x[:, 0]))
        states = [state]
        for t in range(1, TIME):
            state = torch.tanh(self.inputs(x[:, t]) + self.recurrent(state))
            states.append(state)
        if self.readout == "last":
            return self.last(state)
        return self.last(torch.stack(states, dim=1)).mean(dim=1)


class ResidualRecurrent(nn.Module):
    """States that depend on each other: the cross pairs of the residual sum matter."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.inputs = nn.Linear(FEATURES, width)
        self.recurrent = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        state = self.inputs(x[:, 0])
        for t in range(1, TIME):
            state = state + 0.7 * self.recurrent(F.relu(state)) + self.inputs(x[:, t])
        return self.last(F.relu(state))


class SameLayer(nn.Module):
    """One layer called several times."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(FLAT, width)
        self.again = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))
        for _ in range(3):
            hidden = self.again(F.relu(hidden))
        return self.last(F.relu(hidden))


class PreActivationResidual(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(FLAT, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))
        for block in self.blocks:
            hidden = (hidden + block(F.gelu(hidden))) / math.sqrt(2)
        return self.last(F.relu(hidden))


class DependentBranches(nn.Module):
    """A pre-activation added to functions of itself: correlated terms in one sum."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(FLAT, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))
        branch = F.silu(self.second(torch.tanh(hidden)))
        return self.last(0.7 * hidden + F.relu(hidden) + branch)


class TokensFlattened(nn.Module):
    """A layer over tokens, then channels-first flattening, then a layer over everything."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.tokens = nn.Linear(FEATURES, width)
        self.mix = nn.Linear(TIME * width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.tokens(x)).transpose(1, 2).flatten(1)
        return self.last(F.relu(self.mix(hidden)))


class TokensRolled(nn.Module):
    """Slices and concatenation along positions, products with data, a mean over positions."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.tokens = nn.Linear(FEATURES, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.tokens(x), 0.1)
        hidden = hidden + self.second(hidden)
        hidden = torch.cat([hidden[:, 1:], hidden[:, :1]], dim=1) * x[:, :, :1]
        return self.last(hidden).mean(dim=1)


class DenselyConnected(nn.Module):
    """Concatenation along the width, of data and of hidden layers."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(FLAT, width)
        self.second = nn.Linear(width + FLAT, width)
        self.last = nn.Linear(2 * width + FLAT, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.flatten(1)
        hidden = torch.cat([hidden, F.relu(self.first(hidden))], dim=-1)
        hidden = torch.cat([hidden, torch.sin(self.second(hidden))], dim=-1)
        return self.last(hidden)


class Chunked(nn.Module):
    """Chunks and slices of one width go different ways."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(FLAT, 2 * width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x.flatten(1)).chunk(2, dim=-1)
        half = a.shape[-1] // 2
        hidden = torch.cat([torch.tanh(a)[:, :half], F.relu(b[:, :half])], dim=-1)
        return self.last(F.relu(self.second(hidden)))


class LayerNormed(nn.Module):
    """LayerNorm before and after a nonlinearity, its scale and shift away from 1 and 0."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(FLAT, width)
        self.norm1 = nn.LayerNorm(width)
        self.second = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.last = nn.Linear(width, out)
        nn.init.constant_(self.norm1.bias, 0.3)
        nn.init.constant_(self.norm2.weight, 1.3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.first(x.flatten(1))))
        return self.last(self.norm2(F.relu(self.second(hidden))))


class RmsNormed(nn.Module):
    """`nn.RMSNorm` and a hand-written one, whose mean over the width is a limit statistic."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(FLAT, width)
        self.norm = nn.RMSNorm(width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.norm(F.relu(self.first(x.flatten(1)))))
        hidden = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-3)
        return self.last(torch.tanh(hidden))


class HandWritten(nn.Module):
    """Bare parameters, matrix products, input normalisation, composite activations."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.W = nn.Parameter(torch.empty(width, FLAT))
        self.b = nn.Parameter(torch.empty(width))
        self.V_in_out = nn.Parameter(torch.empty(width, width))
        self.last_in_out = nn.Parameter(torch.empty(width, out))
        self.register_buffer("mean", torch.linspace(-1, 1, FLAT))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = (x - self.mean) / x.std(dim=-1, keepdim=True)
        hidden = F.softplus(1.5 * (F.linear(x, self.W) + self.b) + 0.2) @ self.V_in_out
        hidden = hidden * torch.sigmoid(1.702 * hidden) + 1
        return (hidden * 2) @ self.last_in_out / 2


class Kinked(nn.Module):
    """Activations with kinks away from zero, and in the second derivative only."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(FLAT, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(F.hardtanh(self.first(x.flatten(1)), -0.5, 1.5))
        return self.last(F.elu(hidden))


class Siamese(nn.Module):
    """One tower on two halves of the input, and their difference."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.tower = nn.Linear(2 * FEATURES, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.flatten(1).split(2 * FEATURES, dim=1)
        difference = F.relu(self.tower(a)) - F.relu(self.tower(b))
        return self.last(torch.tanh(self.second(difference)))


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "relu": Mlp,
    "abs": lambda width, out: Mlp(width, out, torch.abs),
    "erf": lambda width, out: Mlp(width, out, torch.erf),
    "cos": lambda width, out: Mlp(width, out, torch.cos),
    "sign": lambda width, out: Mlp(width, out, torch.sign),
    "step": lambda width, out: Mlp(width, out, lambda x: (x > 0).to(x.dtype)),
    "no bias, dropout": NoBias,
    "recurrent, last state": Recurrent,
    "recurrent, mean": lambda width, out: Recurrent(width, out, "mean"),
    "residual recurrent": ResidualRecurrent,
    "same layer": SameLayer,
    "pre-activation residual": PreActivationResidual,
    "dependent branches": DependentBranches,
    "tokens flattened": TokensFlattened,
    "tokens rolled": TokensRolled,
    "densely connected": DenselyConnected,
    "chunked": Chunked,
    "layer norm": LayerNormed,
    "rms norm": RmsNormed,
    "hand-written": HandWritten,
    "kinked": Kinked,
    "siamese": Siamese,
}


def reinitialise(model: nn.Module, weight: float, bias: float, generator: torch.Generator) -> None:
    """Draw weights of variance weight / fan_in and biases of variance `bias`; norms stay."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                continue
            scale = math.sqrt(bias)
            if parameter.dim() == 2:
                fan_in = parameter.shape[0 if name.endswith("in_out") else 1]
                scale = math.sqrt(weight / fan_in)
            values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(scale * values)
