"""Kernels as means over independent groups of samples, with standard errors from their spread."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from tangency.errors import InvalidInput
from tangency.infinite.sampling.draw import Sampling
from tangency.kernel_pair import KernelPair

__all__ = ["GROUPS", "Estimate", "average", "groups"]

GROUPS = 8
"""Independent groups of samples."""


class Estimate(NamedTuple):
    """NNGP and NTK with the standard error of each entry; zero where nothing was sampled."""

    nngp: Tensor
    ntk: Tensor
    nngp_error: Tensor
    ntk_error: Tensor

    @property
    def pair(self) -> KernelPair:
        """The two kernels."""
        return KernelPair(self.nngp, self.ntk)


def groups(samples: int, seed: int) -> list[Sampling]:
    """Independent groups, of equal size, of at least `samples` samples in all."""
    return [Sampling(math.ceil(samples / GROUPS), seed, group) for group in range(GROUPS)]


def check(samples: int, seed: int) -> None:
    """Refuse numbers of samples of which no standard error follows.

    Raises:
        InvalidInput: too few samples, or a negative seed.
    """
    if samples < 2 * GROUPS:
        raise InvalidInput(f"samples={samples}: at least {2 * GROUPS} are needed.")
    if seed < 0:
        raise InvalidInput(f"seed={seed} is negative.")


def average(sampled: Iterable[KernelPair]) -> Estimate:
    """Mean and standard error of the kernels of the groups, one entry at a time in memory."""
    count = 0
    means: list[Tensor] = []
    squares: list[Tensor] = []
    for pair in sampled:
        count += 1
        if count == 1:
            means, squares = list(pair), [torch.zeros_like(kernel) for kernel in pair]
            continue
        for k, kernel in enumerate(pair):  # Welford's update
            apart = kernel - means[k]
            means[k] = means[k] + apart / count
            squares[k] = squares[k] + apart * (kernel - means[k])
    errors = [(square / (count * (count - 1))).sqrt() for square in squares]
    return Estimate(means[0], means[1], errors[0], errors[1])
