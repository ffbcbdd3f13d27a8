"""Expectations of pointwise functions over one zero-mean Gaussian, by panels of Gauss-Legendre.

Gauss-Hermite nodes serve neither kinks nor large variances: a function with features at
scale 1 in x has features at scale 1/sd in z = x / sd. The rule here has panels that halve
towards z = 0 until they resolve 1/sd, and never exceed 1/2, so that it also resolves Hermite
polynomials of degree some hundreds. Weights are those of the standard normal density.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "REACH",
    "PointwiseFunction",
    "Rule",
    "gaussian_rule",
    "hermite_coefficients",
    "hermite_functions",
    "normal_pdf",
    "value_and_slope",
]

PointwiseFunction = Callable[[Tensor], Tensor]

# Beyond |z| = 12 the normal density is below 1e-31: exp(B x) is integrated to float64
# precision, squared, as long as B sd <= 1.5, and any function of polynomial growth is.
REACH = 12.0
_NODES_PER_PANEL = 16
_WIDEST_PANEL = 0.5


class Rule(NamedTuple):
    """Nodes z and weights w with sum_q w_q f(z_q) = E f(z) for a standard normal z.

    `nodes` and `weights` are float64, of shape (Q, 1, ..., 1) when all examples share them, and
    (Q, *S) when each example has its own panels.
    """

    nodes: Tensor
    weights: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """E f for the values (Q, *S) of f at the nodes: a tensor of shape S."""
        return (self.weights * values).sum(dim=0)


def normal_pdf(z: Tensor) -> Tensor:
    """Density of the standard normal distribution."""
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


@lru_cache(maxsize=16)
def _legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return nodes, weights


def _breakpoints(largest_sd: float) -> np.ndarray:
    """Panel ends in [-REACH, REACH]: dyadic towards 0 down to about 1 / (4 sd), then uniform."""
    levels = max(0, math.ceil(math.log2(max(largest_sd, 1.0)))) + 1
    dyadic = _WIDEST_PANEL * 2.0 ** -np.arange(1, levels + 1)
    uniform = np.arange(_WIDEST_PANEL, REACH + _WIDEST_PANEL / 2, _WIDEST_PANEL)
    positive = np.concatenate([dyadic[::-1], uniform])
    return np.concatenate([-positive[::-1], [0.0], positive])


def gaussian_rule(sd: Tensor, *, kinks: Sequence[float] = ()) -> Rule:
    """The rule for functions of x = sd z with features at scale 1 or wider in x.

    sd: standard deviations, any shape S, finite and not negative.
    kinks: positions in x at which the function is not smooth; they become panel ends, which
        gives every example its own nodes.
    """
    largest = float(sd.detach().max()) if sd.numel() else 1.0
    ends = torch.from_numpy(_breakpoints(largest)).to(sd.device)
    ends = ends.reshape(-1, *[1] * sd.ndim)
    if kinks:
        places = torch.tensor(kinks, dtype=torch.float64, device=sd.device)
        places = places.reshape(-1, *[1] * sd.ndim) / sd.double().clamp_min(1e-300)
        ends = torch.cat([ends.expand(-1, *sd.shape), places.clamp(-REACH, REACH)])
        ends = ends.sort(dim=0).values
    unit_nodes, unit_weights = (
        torch.from_numpy(part).to(sd.device).reshape(1, -1, *[1] * sd.ndim)
        for part in _legendre(_NODES_PER_PANEL)
    )
    half = (ends[1:] - ends[:-1]).unsqueeze(1) / 2
    middle = (ends[1:] + ends[:-1]).unsqueeze(1) / 2
    nodes = (middle + half * unit_nodes).flatten(0, 1)
    weights = (half * unit_weights).flatten(0, 1) * normal_pdf(nodes)
    return Rule(nodes, weights)


def value_and_slope(function: PointwiseFunction, x: Tensor) -> tuple[Tensor, Tensor]:
    """phi(x) and phi'(x), the slope by forward-mode differentiation of the callable itself."""
    result: tuple[Tensor, Tensor] = torch.func.jvp(  # type: ignore[assignment]
        function, (x,), (torch.ones_like(x),)
    )
    return result


def hermite_functions(rule: Rule, terms: int) -> Tensor:
    """w_q h_l(z_q) for l < terms: the matrix (terms, Q) that takes values to coefficients.

    h_l are the normalised probabilists' Hermite polynomials. The recursion runs on
    h_l(z) sqrt(density), which stays below 1, and so neither overflows nor loses digits.
    The rule must be shared by all examples (no kinks).
    """
    z = rule.nodes.flatten()
    root = normal_pdf(z).sqrt()
    rows = [root, z * root]
    for degree in range(2, terms):
        step = z * rows[-1] - math.sqrt(degree - 1) * rows[-2]
        rows.append(step / math.sqrt(degree))
    return torch.stack(rows[:terms]) * (rule.weights.flatten() / root)


def hermite_coefficients(rule: Rule, values: Tensor, terms: int) -> Tensor:
    """E[f(z) h_l(z)], l < terms, of values (Q, *S) on a shared rule: shape (terms, *S)."""
    matrix = hermite_functions(rule, terms)
    return (matrix @ values.flatten(1)).reshape(terms, *values.shape[1:])
