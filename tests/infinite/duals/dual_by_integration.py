"""E phi(u) phi(v) and E phi'(u) phi'(v) by two nested integrals, split at the kinks: the truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_X, _W = np.polynomial.legendre.leggauss(16)


def slope_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """phi' by automatic differentiation."""
    return lambda x: torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]


def _rule(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and normal weights for panels with the given ends along the last axis."""
    ends = np.sort(np.clip(ends, -9, 9), axis=-1)
    half = (ends[..., 1:] - ends[..., :-1])[..., None] / 2
    middle = (ends[..., 1:] + ends[..., :-1])[..., None] / 2
    nodes = (middle + half * _X).reshape(*ends.shape[:-1], -1)
    weights = (half * _W).reshape(nodes.shape)
    return nodes, weights * np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)


def dual(
    function: Callable[[Tensor], Tensor],
    sd1: float,
    sd2: float,
    versine: float,
    kinks: tuple[float, ...] = (),
    other: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """(kappa, kappa_dot) for u = sd1 x, v = sd2 (rho x + tau y) with independent x, y."""
    other = other or function
    rho, tau = 1 - versine, math.sqrt(versine * (2 - versine))
    grid = np.arange(-9, 9.1, 0.5)
    centres = [k / sd1 for k in kinks] + [k / (sd2 * rho) for k in kinks if abs(rho) > 0.05]
    steps = tau * np.concatenate([[0.0], 0.5 * 2.0 ** np.arange(5)])
    around = [c + sign * steps for c in centres for sign in (-1, 1)]
    x, wx = _rule(np.concatenate([grid, *around]))
    cuts = [(k / sd2 - rho * x) / max(tau, 1e-300) for k in kinks]
    inner = np.broadcast_to(np.linspace(-9, 9, 31), (len(x), 31))
    y, wy = _rule(np.concatenate([inner, *[c[:, None] for c in cuts]], axis=1))
    u, v = torch.from_numpy(sd1 * x), torch.from_numpy(sd2 * (rho * x[:, None] + tau * y))
    weights = torch.from_numpy(wx), torch.from_numpy(wy)

    def expectation(f: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor]) -> float:
        return float((weights[0] * f(u) * (weights[1] * g(v)).sum(1)).sum())

    return expectation(function, other), expectation(slope_of(function), slope_of(other))
