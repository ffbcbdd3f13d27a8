"""How length map and gradient gain depend on the moments of weights and biases.

A block with one layer of weights, after its activations, depends on them in the simplest way,
Q(q) = w2 M(q) + b2 and B(q) = w2 N(q) (for phi and a dense layer M = E phi^2 and N = E phi'^2), so
that M and N, tabulated once, say everything about all moments. Other blocks are asked anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from tangency.diagnosis.trainability.fixed_points import LARGEST, SMALLEST, length_fixed_points
from tangency.diagnosis.trainability.maps import BlockMaps
from tangency.infinite import Init

__all__ = ["Scaled", "gain_at_fixed_point", "scaled"]

Scaled: TypeAlias = Callable[[float, float], Callable[[Tensor], tuple[Tensor, Tensor]]]
"""(w2, b2) -> the maps q -> Q(q), B(q, 1)."""

NODES = 400
"""Chebyshev nodes in ln q: ln M and ln N are smooth on the scale of one, and here nodes are closer
than a tenth, which leaves rounding errors alone."""

LINEAR = 1e-11
"""Relative deviation that passes as rounding."""


def scaled(maps: BlockMaps) -> Scaled:
    """Length map and gradient gain at all moments."""
    tabulated = _tabulated(maps)
    return (lambda w2, b2: maps.at(Init(w2, b2)).lengths) if tabulated is None else tabulated


def gain_at_fixed_point(lengths: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """q* (from 1) and chi_1."""
    found = length_fixed_points(lambda q: lengths(q)[0])
    one = torch.ones(1, dtype=torch.float64)
    length = found.attracting(1.0, float(lengths(one)[0]) > 1)
    at = min(max(length, SMALLEST), LARGEST)
    return length, float(lengths(one * at)[1])


def _tabulated(maps: BlockMaps) -> Scaled | None:
    """By tables of M and N; None for a block that is not linear in the moments."""
    few = torch.logspace(-6, 6, 7, dtype=torch.float64)
    (M, N), (M2, N2), (Mb, Nb) = (
        maps.at(Init(w2, b2)).lengths(few) for w2, b2 in ((1.0, 0.0), (2.0, 0.0), (1.0, 1.0))
    )
    pairs = ((2 * M, M2), (2 * N, N2), (M + 1, Mb), (N, Nb))
    if any(bool(((a - b).abs() > LINEAR * b.abs()).any()) for a, b in pairs):
        return None
    low, high = math.log(SMALLEST), math.log(LARGEST)
    nodes = torch.from_numpy(chebyshev.chebpts1(NODES))
    logs = (low + high) / 2 + (high - low) / 2 * nodes
    tables = [
        chebyshev.Chebyshev(chebyshev.chebfit(nodes.numpy(), t.log().numpy(), NODES - 1))
        for t in maps.at(Init(1.0)).lengths(logs.exp())
    ]

    def at(w2: float, b2: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        def lengths(q: Tensor) -> tuple[Tensor, Tensor]:
            place = ((q.log() - (low + high) / 2) * 2 / (high - low)).clamp(-1, 1).numpy()
            M, N = (torch.from_numpy(table(place)).exp() for table in tables)
            return w2 * M + b2, w2 * N

        return lengths

    return at
