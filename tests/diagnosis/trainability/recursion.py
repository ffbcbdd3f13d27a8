"""The mean-field recursion by plain Gauss-Hermite quadrature, independent of the package."""

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn


class Erf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


FUNCTIONS = {
    "erf": (
        erf,
        lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2)),
        lambda x: -4 * x / np.sqrt(np.pi) * np.exp(-(x**2)),
    ),
    "tanh": (
        np.tanh,
        lambda x: 1 / np.cosh(x) ** 2,
        lambda x: -2 * np.tanh(x) / np.cosh(x) ** 2,
    ),
}
"""Activation, its derivative and its second derivative."""

MODULES = {"erf": Erf, "tanh": nn.Tanh}

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(160)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def mean(function, q):
    """E function(sqrt(q) z)."""
    return float(WEIGHTS @ function(np.sqrt(q) * NODES))


def mean_of_two(function, q, c):
    """E function(u) function(v) with variances q and correlation c."""
    u = np.sqrt(q) * NODES[:, None]
    v = np.sqrt(q) * (c * NODES[:, None] + np.sqrt(1 - c * c) * NODES[None, :])
    return float(WEIGHTS @ (function(u) * function(v)) @ WEIGHTS)


def step(name, w2, b2, q, c):
    """q', c', chi(q, c) = w2 E phi' phi', chi_1(q) of one block phi, dense."""
    phi, slope, _ = FUNCTIONS[name]
    length = w2 * mean(lambda x: phi(x) ** 2, q) + b2
    covariance = w2 * mean_of_two(phi, q, c) + b2
    gains = w2 * mean_of_two(slope, q, c), w2 * mean(lambda x: slope(x) ** 2, q)
    return length, covariance / length, *gains


def dense(name, width=16):
    """The block phi, dense."""
    return nn.Sequential(MODULES[name](), nn.Linear(width, width))


def deep(make, depth, width=32, inputs=5, outputs=2, seed=0):
    """An ordinary deep network with activations `make()`."""
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, width)]
    for _ in range(depth):
        layers += [make(), nn.Linear(width, width)]
    return nn.Sequential(*layers, make(), nn.Linear(width, outputs))


def redraw(model, w2, b2=0.0, seed=0):
    """Gaussian weights and biases of the given moments, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            scale = (w2 / p.shape[1]) ** 0.5 if p.dim() > 1 else b2**0.5
            p.copy_(scale * torch.randn(p.shape, generator=generator))
    return model
