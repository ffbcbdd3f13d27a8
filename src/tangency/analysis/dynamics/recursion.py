"""A recursion z <- M z + c with 2 x 2 matrices, one for each mode, at many steps at once.

Powers of two of the step are made by squaring, and every step asked for is put together from the
powers in its binary form: 50 products for any number of steps up to 2^50, whether the
characteristic roots are real, double or complex.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["affine_steps", "linear_steps"]


def linear_steps(matrix: Tensor, steps: Tensor) -> Tensor:
    """(M^k)_11 for M (N, 2, 2) and whole steps k, (T, 1): (T, N).

    Right in relative terms where the powers decay: the error is about k roundings.
    """
    first, second = _states(matrix, steps)
    first = first + 1.0
    for bit in _bits(steps):
        chosen = _has(steps, bit)
        new_first = matrix[:, 0, 0] * first + matrix[:, 0, 1] * second
        new_second = matrix[:, 1, 0] * first + matrix[:, 1, 1] * second
        first = torch.where(chosen, new_first, first)
        second = torch.where(chosen, new_second, second)
        matrix = matrix @ matrix
    return first


def affine_steps(change: Tensor, constant: Tensor, steps: Tensor) -> Tensor:
    """First component of z_k, where z_0 = 0 and z <- z + P z + c, with P = M - I.

    Carrying P instead of M keeps the digits of modes that hardly move in one step:
    (I + P)^2 = I + (2 P + P^2).

    Args:
        change: P, (N, 2, 2).
        constant: c, (N, 2).
        steps: k, (T, 1), whole.

    Returns:
        (T, N).
    """
    first, second = _states(change, steps)
    for bit in _bits(steps):
        chosen = _has(steps, bit)
        more_first = change[:, 0, 0] * first + change[:, 0, 1] * second + constant[:, 0]
        more_second = change[:, 1, 0] * first + change[:, 1, 1] * second + constant[:, 1]
        first = torch.where(chosen, first + more_first, first)
        second = torch.where(chosen, second + more_second, second)
        constant = 2 * constant + (change @ constant[:, :, None])[:, :, 0]
        change = 2 * change + change @ change
    return first


def _states(matrix: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    zeros = matrix.new_zeros(len(steps), len(matrix))
    return zeros, zeros


def _bits(steps: Tensor) -> range:
    return range(int(steps.max()).bit_length())


def _has(steps: Tensor, bit: int) -> Tensor:
    """Whether the bit is set in steps, which are floating-point numbers beyond 2^53 too."""
    return torch.floor(steps / 2.0**bit) % 2 == 1
