"""The laws of finite width: variance c / width, bias c' / width."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["LEVEL", "interval", "laws", "mean_square", "power", "solve_width"]

LEVEL = 0.9
"""Coverage of intervals."""


def laws(
    widths: Tensor, off: Tensor, *, known: bool, parts: int = 1
) -> tuple[tuple[float, float], Tensor, Tensor]:
    """(c, c'), variance (w,) and bias (w,) of relative deviations `off` (w, r, n n).

    `parts` is 2 for resampled networks: their variance is too small by (r - 1) / r, since they
    repeat, and their mean has the noise of the networks and that of the resampling.
    """
    sizes, r = widths.double(), off.shape[1]
    mean = off.mean(dim=1)
    variance = (off - mean[:, None]).square().sum(dim=(1, 2)) / (r - 1)
    if parts == 2:
        variance = variance * r / (r - 1)
    c = float((variance * sizes).mean())
    if not known:
        return (c, 0.0), variance, torch.full_like(variance, math.nan)
    noise = parts * variance / r
    bias = (mean.square().sum(dim=1) - noise).clamp(min=0).sqrt()
    # Least squares for mean = B / width with the variance of the mean, c / (r width).
    weight = float((1 / sizes).sum())
    fitted = mean.sum(dim=0) / weight
    excess = float(fitted.square().sum()) - float(noise.sum()) / weight**2
    return (c, math.sqrt(max(0.0, excess))), variance, bias


def mean_square(width: float, c: float, bias: float) -> float:
    """c / width + (bias / width)^2."""
    return c / width + (bias / width) ** 2


def solve_width(closeness: float, c: float, bias: float, spread: float) -> float:
    """Where spread (c / w + bias^2 / w^2) = closeness^2."""
    aim = closeness**2 / spread
    return (c + math.sqrt(c**2 + 4 * aim * bias**2)) / (2 * aim)


def power(widths: Tensor, values: Tensor) -> float:
    """-d log value / d log width by least squares."""
    x, y = widths.double().log(), values.double().log()
    x = x - x.mean()
    return -float((x * y).sum() / x.square().sum())


def interval(values: Tensor) -> tuple[float, float]:
    """What 90 % of the values lie in."""
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(values, tails).tolist()
    return low, high
