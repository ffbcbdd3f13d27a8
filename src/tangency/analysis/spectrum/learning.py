"""What eigenvalues and targets say of learning: how long a mode takes, and how much hangs on it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tangency.analysis.numbers import check_fraction, check_rate

__all__ = ["cumulative_power", "learning_times"]


def learning_times(
    eigenvalues: Tensor,
    floor: Tensor | float,
    learning_rate: float,
    fraction: float,
    *,
    examples: int = 1,
) -> Tensor:
    """n / (learning_rate * lambda) * ln(1 / fraction), when that fraction of the residual is left.

    Under gradient flow on 1/(2n) sum_i |f(x_i) - y_i|^2. Infinite where the eigenvalue is not above
    `floor`, and cannot be told from zero. In the dtype of the eigenvalues (N,).

    Raises:
        InvalidInput: a learning rate that is not positive, or a fraction outside (0, 1).
    """
    check_rate(learning_rate)
    check_fraction(fraction)
    values = eigenvalues.double()
    times = examples * math.log(1 / fraction) / (learning_rate * values)
    return torch.where(values > floor, times, math.inf).to(eigenvalues.dtype)


def cumulative_power(power: Tensor, rest: float = 0.0) -> Tensor:
    """(N,) fraction of the power in the first modes, up to each, where all others hold `rest`.

    The curve C(k) of Canatar, Bordelon & Pehlevan, Nature Communications 12 (2021). Targets that
    are all zero give ones.
    """
    total = power.double().sum() + rest
    if total == 0:
        return torch.ones_like(power)
    return (power.double().cumsum(0) / total).to(power.dtype)
