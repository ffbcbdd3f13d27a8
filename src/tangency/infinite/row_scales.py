"""Scales of weights whose rows are standardised or normalised before they are used.

With Gaussian rows w of d entries of variance v, let P project off the mean where it is subtracted
and be the identity where it is not, f = d - 1 or d its rank, and s = |P w|^2 / d, v chi2_f / d in
law: s = v f / d in the limit. A row becomes lambda(s) P w. In the mean

- forward, E[lambda^2 P w w' P] = lambda^2 v P;
- in the gradient, the Jacobian lambda P + 2 lambda' P w w' P / d gives with its transpose, with the
  elasticity t = s lambda' / lambda, E[lambda^2] (1 + 4 t (1 + t) / f) P.

Both are exact for any d where a row is divided by the root of s (t = -1/2, and
E[1 / s] = d / (v (f - 2))) and where it is not (t = 0); in the limit of many entries always.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tangency.program.row_maps import RowMap

__all__ = ["RowScale", "TooFewEntries", "row_scale"]

LEAST = 3
"""Degrees of freedom from which E[1 / s] is finite."""


class TooFewEntries(Exception):
    """The gradient of a row's scale has no finite mean."""


class RowScale(NamedTuple):
    """What multiplies E[u u'] of the input, forward and in the standard NTK, at gain one."""

    forward: Tensor
    gradient: Tensor


def row_scale(rows: RowMap, moment: float | Tensor, fan_in: int) -> RowScale:
    """The scales of a weight with second moment (times fan-in) `moment` before the map.

    Raises:
        TooFewEntries: the rows are so short that the mean NTK is infinite.
    """
    variance = torch.as_tensor(moment, dtype=torch.float64) / fan_in
    freedom = fan_in - int(rows.centred)
    typical = variance * (freedom / fan_in)
    strength = rows.strength(variance, typical)
    forward = fan_in * variance * strength.square()
    lower = max(freedom - 2, 0.5) / freedom
    small = rows.strength(variance, typical * lower)
    elasticity = (small / strength).log() / torch.tensor(lower).double().log()
    if freedom < LEAST and bool(elasticity.detach().abs() > 1e-4):
        raise TooFewEntries
    correction = 1 + 4 * elasticity * (1 + elasticity) / freedom
    return RowScale(forward, fan_in * small.square() * correction)
