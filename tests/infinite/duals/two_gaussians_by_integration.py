"""E psi psi', E d1 psi d1 psi' and E d2 psi d2 psi' by nested integrals: the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

_X, _W = np.polynomial.legendre.leggauss(14)
_PANELS = np.arange(-7.5, 7.6, 1.0)


class Bent(NamedTuple):
    """phi(g2 + w(g1)), both piecewise linear: slopes of w and of phi left and right of 0."""

    w_left: float
    w_right: float
    left: float
    right: float

    def __call__(self, g1: Tensor, g2: Tensor) -> Tensor:
        x = g2 + torch.where(g1 > 0, self.w_right * g1, self.w_left * g1)
        return torch.where(x > 0, self.right * x, self.left * x)

    def inner(self, g1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slope = np.where(g1 > 0, self.w_right, self.w_left)
        return slope * g1, slope

    def outer(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slope = np.where(x > 0, self.right, self.left)
        return slope * x, slope

    def mean_outer(self, mean: np.ndarray, sd: float) -> tuple[np.ndarray, np.ndarray]:
        """E phi(x) and E phi'(x) for normal x."""
        z = mean / sd
        above = ndtr(z)
        part = mean * above + sd * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        step = self.right - self.left
        return self.left * mean + step * part, self.left + step * above


def _panels(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and normal weights for panels with the given ends along the last axis."""
    ends = np.sort(np.clip(ends, -7.5, 7.5), axis=-1)
    half = (ends[..., 1:] - ends[..., :-1])[..., None] / 2
    middle = (ends[..., 1:] + ends[..., :-1])[..., None] / 2
    nodes = (middle + half * _X).reshape(*ends.shape[:-1], -1)
    weights = (half * _W).reshape(nodes.shape)
    return nodes, weights * np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)


Sds = tuple[float, float]


def bent_dual(left: Bent, sds: tuple[Sds, Sds], rho: Sds, right: Bent | None = None) -> np.ndarray:
    """(K, A1, A2) for |rho| < 1: g2' in closed form, the others on panels that end at the kinks."""
    right = right or left
    (s1, s2), (t1, t2) = sds
    tau = [math.sqrt(1 - r * r) for r in rho]
    z1, weights1 = _panels(np.append(_PANELS, 0.0))
    cuts = np.broadcast_to(_PANELS, (len(z1), len(_PANELS)))
    y, weights_y = _panels(np.append(cuts, (-rho[0] * z1 / tau[0])[:, None], axis=1))
    shift, bend = left.inner(s1 * z1)
    shift_right, bend_right = right.inner(t1 * (rho[0] * z1[:, None] + tau[0] * y))
    total = np.zeros(3)
    for q, weight in enumerate(weights1):
        z2, weights2 = _panels(np.append(_PANELS, -shift[q] / s2))
        u, slope = left.outer(s2 * z2 + shift[q])
        mean = t2 * rho[1] * z2[:, None] + shift_right[q]
        v, slope_right = right.mean_outer(mean, t2 * tau[1])
        rows = [
            (weights2 * f) @ g @ w
            for f, g, w in (
                (u, v, weights_y[q]),
                (slope, slope_right, weights_y[q] * bend_right[q] * bend[q]),
                (slope, slope_right, weights_y[q]),
            )
        ]
        total += weight * np.array(rows)
    return total


def smooth_dual(
    function: Callable[[Tensor, Tensor], Tensor], sds: tuple[Sds, Sds], rho: Sds
) -> Tensor:
    """(K, A1, A2) of an analytic function by the trapezoidal rule in four variables."""
    z = torch.arange(-7.2, 7.21, 0.36, dtype=torch.float64)
    w = 0.36 * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    n = len(z)

    def all_of(g1: Tensor, g2: Tensor) -> list[Tensor]:
        g1, g2 = g1.clone().requires_grad_(), g2.clone().requires_grad_()
        value = function(g1, g2)
        return [value.detach(), *torch.autograd.grad(value.sum(), (g1, g2))]

    (s1, s2), (t1, t2) = sds
    g1, g2 = torch.meshgrid(s1 * z, s2 * z, indexing="ij")
    left = all_of(g1, g2)
    turned = [r * z[:, None] + math.sqrt(1 - r * r) * z for r in rho]
    total = torch.zeros(3, dtype=torch.float64)
    for q in range(n):
        first = (t1 * turned[0][q])[None, :, None].expand(n, n, n)
        second = (t2 * turned[1])[:, None, :].expand(n, n, n)
        for m, right in enumerate(all_of(first, second)):
            total[m] += w[q] * (w * left[m][q] * torch.einsum("kab,a,b->k", right, w, w)).sum()
    return total
