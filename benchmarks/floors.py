"""The least work that any kernel of a suite must do, timed in the same process as ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from measurement import Timing, measure
from torch import Tensor

__all__ = ["FLOORS", "PRODUCT_SIDE"]

PANEL = 500
PRODUCT_SIDE = 2048
"""Side of the square matrices whose product tells the processor's rate of arithmetic."""


def lower_panels(x: Tensor, gram: Tensor) -> Tensor:
    """Fill the lower triangle of ``gram`` (n, n) with x x^T, panel of rows by panel of rows.

    Half of the product's multiply-adds, and the half of the diagonal blocks above the diagonal;
    the upper triangle is left as it is.
    """
    for start in range(0, x.shape[0], PANEL):
        stop = min(start + PANEL, x.shape[0])
        torch.mm(x[start:stop], x[:stop].T, out=gram[start:stop, :stop])
    return gram


def gram_and_passes(x: Tensor, repetitions: int) -> dict[str, Timing]:
    """What every fully connected kernel does: the Gram product of inputs (n, d), and its outputs.

    ``gram_full``: ``x @ x.T``. ``gram_half``: its lower triangle by row panels.
    ``pass_fresh``: one output allocated and filled. ``pass_reused``: one output filled that was
    already there, which costs no page faults.
    """
    n = x.shape[0]
    held = x.new_empty(n, n)
    return {
        "gram_full": measure(lambda: x @ x.T, repetitions)[0],
        "gram_half": measure(lambda: lower_panels(x, held), repetitions)[0],
        "pass_fresh": measure(lambda: x.new_empty(n, n).fill_(1.0), repetitions)[0],
        "pass_reused": measure(lambda: held.fill_(1.0), repetitions)[0],
    }


def arithmetic(x: Tensor, repetitions: int) -> dict[str, Timing]:
    """What bounds a convolutional kernel that stays in cache: arithmetic.

    ``product``: a product of two square matrices of side `PRODUCT_SIDE`, in the dtype of ``x``; no
    other work comes closer to the processor's peak.
    """
    square = torch.ones(PRODUCT_SIDE, PRODUCT_SIDE, dtype=x.dtype)
    result = torch.empty_like(square)
    return {"product": measure(lambda: torch.mm(square, square, out=result), repetitions)[0]}


FLOORS: dict[str, Callable[[Tensor, int], dict[str, Timing]]] = {
    "fully_connected": gram_and_passes,
    "convolutional": arithmetic,
}
"""The parts of each suite's floor, timed on the case's inputs."""
