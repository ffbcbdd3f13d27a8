"""What each suite holds a time against, beside the peer: numbers that follow from a result."""

from __future__ import annotations

from collections.abc import Callable

from comparison import CaseResult
from convolutional import position_pairs
from floors import PRODUCT_SIDE
from measurement import pooled

__all__ = ["FLOPS", "YARDSTICKS"]

OUTPUTS = 2

FLOPS = {
    "window sums along rows, then columns, of both kernels": 8,
    "filter scale and bias, NNGP added to NTK": 4,
    "correlation and its clipping": 4,
    "sine": 3,
    "angle (polynomial of degree 7, root, reflection)": 20,
    "both dual activations": 5,
    "deviations and chain rule": 3,
}
"""Floating-point operations of one position pair in one layer (convolution and ReLU), NNGP and NTK.

A multiply-add counts as two, a square root as one, comparisons and selections as one.
"""


def gram_floor(result: CaseResult) -> dict[str, float]:
    """The fully connected floor in seconds, and our time in multiples of it.

    Full: the input Gram product and one pass over memory per output. Half: both halved by
    symmetry, Gram by panels and half a pass per output.
    """
    floors = result.floors
    full = floors["gram_full"].best_s + OUTPUTS * floors["pass_fresh"].best_s
    half = floors["gram_half"].best_s + OUTPUTS * floors["pass_fresh"].best_s / 2
    return {
        "floor_full_s": full,
        "floor_half_s": half,
        "times_floor_full": result.ours_best_s / full,
        "times_floor_half": result.ours_best_s / half,
    }


def pair_cost(result: CaseResult) -> dict[str, float]:
    """Nanoseconds per position pair and layer, NNGP and NTK together, and the arithmetic floor.

    ``asked`` counts the whole question, as the peer computes it; ``distinct`` what symmetry leaves
    of it. The floor is `FLOPS` at the rate of the matrix product of this run: no shuffle, no root,
    no load costs more than an addition there, so nothing reaches it.
    """
    pairs = position_pairs(result.case)
    floor_ns = 1e9 * sum(FLOPS.values()) * result.floors["product"].best_s / (2 * PRODUCT_SIDE**3)
    distinct_ns = 1e9 * result.ours_best_s / pairs.distinct
    return {
        "pairs_asked": pairs.asked,
        "pairs_distinct": pairs.distinct,
        "peer_asked_ns": 1e9 * pooled(result.peer).best_s / pairs.asked,
        "ours_asked_ns": 1e9 * result.ours_best_s / pairs.asked,
        "ours_distinct_ns": distinct_ns,
        "floor_ns": floor_ns,
        "times_floor": distinct_ns / floor_ns,
    }


YARDSTICKS: dict[str, Callable[[CaseResult], dict[str, float]]] = {
    "fully_connected": gram_floor,
    "convolutional": pair_cost,
}
"""The derived numbers of each suite, for its tables and the JSON file."""
