"""The least work that any fully connected kernel must do, timed in the same process as ours.

Whatever the network, the input Gram matrix product must be formed and each output written once.
"""

from __future__ import annotations

import torch
from measurement import Timing, measure
from torch import Tensor

__all__ = ["time_floors"]

PANEL = 500


def lower_panels(x: Tensor, gram: Tensor) -> Tensor:
    """Fill the lower triangle of ``gram`` (n, n) with x x^T, panel of rows by panel of rows.

    Half of the product's multiply-adds, and the half of the diagonal blocks above the diagonal;
    the upper triangle is left as it is.
    """
    for start in range(0, x.shape[0], PANEL):
        stop = min(start + PANEL, x.shape[0])
        torch.mm(x[start:stop], x[:stop].T, out=gram[start:stop, :stop])
    return gram


def time_floors(x: Tensor, repetitions: int) -> dict[str, Timing]:
    """Time the parts of the floor on inputs ``x`` of shape (n, d).

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
