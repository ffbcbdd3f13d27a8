r"""The dual of a smooth function for pairs that nearly coincide, without cancellation.

Write e(s) = phi(s z) / sqrt(E phi(s z)^2) for the unit vector in L2 of the normal density. At
correlation 1 two inputs with standard deviations s1, s2 have

    1 - <e(s1), e(s2)> = 1/2 |e(s1) - e(s2)|^2 = 1/2 m (s1 - s2)^2 + O((s1 - s2)^4),
    m(s) = |e'(s)|^2 = [E(z phi')^2 E phi^2 - (E z phi phi')^2] / (E phi^2)^2,

the error being of that order when m is the mean of the two sides'. Away from correlation 1, with
kappa(rho) = E phi(u) phi(v) and Price's theorem d kappa / d rho = s1 s2 E phi' phi',

    kappa(1) - kappa(rho) = s1 s2 t (E[phi'(u) phi'(v)] + t / 2 sd^2 E phi''^2) + O(t^3)

for the versine t = 1 - rho. Both are sums of terms that are not negative: nothing cancels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tangency.infinite.duals.quadrature import (
    PointwiseFunction,
    Rule,
    gaussian_rule,
    hermite_coefficients,
    value_and_slope,
)

__all__ = [
    "coincidence_terms",
    "curvature",
    "metric",
    "near_coincidence",
    "radial_metric",
    "radial_versine",
]

# The curvature only corrects the first-order term: a few digits of it are plenty.
_CURVATURE_TERMS = 128


def metric(rule: Rule, values: Tensor, slopes: Tensor) -> Tensor:
    """m from values and slopes (Q, *S); as E of a square, so that it is never negative."""
    energy = rule.mean(values**2)
    safe = torch.where(energy > 0, energy, torch.ones_like(energy))
    along = rule.mean(rule.nodes * values * slopes) / safe
    result = rule.mean((rule.nodes * slopes - along * values) ** 2) / safe
    return torch.where(energy > 0, result, torch.zeros_like(result))


def radial_metric(function: PointwiseFunction, sd: Tensor) -> Tensor:
    """m(sd) of the module's docstring for a smooth function; 0 where phi(sd z) vanishes.

    function: pointwise, called on (Q, *S) in float64, Q about 800. sd: shape S. Returns shape S
    in sd's dtype, in units of 1 / sd^2.
    """
    rule = gaussian_rule(sd)
    values, slopes = value_and_slope(function, rule.nodes * sd.double())
    return metric(rule, values, slopes).to(sd.dtype)


def coincidence_terms(function: PointwiseFunction, sd: Tensor) -> dict[str, Tensor]:
    """What `near_coincidence` needs of one side beside "sd_in" and "gain", for a smooth function.

    Returns, of shape S, "radial_metric" (as `radial_metric`) and "curvature" = sd^2 E phi''^2,
    the latter from the Hermite coefficients d_l of phi', as sum_l l d_l^2: second derivatives of
    the callable are not asked for. For a function with kinks E phi''^2 does not exist.
    """
    rule = gaussian_rule(sd)
    values, slopes = value_and_slope(function, rule.nodes * sd.double())
    coefficients = hermite_coefficients(rule, slopes, _CURVATURE_TERMS)
    return {
        "radial_metric": metric(rule, values, slopes).to(sd.dtype),
        "curvature": curvature(coefficients).to(sd.dtype),
    }


def curvature(coefficients: Tensor) -> Tensor:
    """sd^2 E phi''^2 = sum_l l d_l^2 from the Hermite coefficients d (L, *S) of phi'."""
    degrees = torch.arange(len(coefficients), dtype=coefficients.dtype, device=coefficients.device)
    return torch.einsum("l,l...->...", degrees, coefficients**2)


def radial_versine(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """1/2 m (sd1 - sd2)^2: 1 - correlation of phi(sd1 z) and phi(sd2 z) for close sd1, sd2."""
    return (
        0.25
        * (left["radial_metric"] + right["radial_metric"])
        * (left["sd_in"] - right["sd_in"]) ** 2
    )


def near_coincidence(
    left: Mapping[str, Tensor],
    right: Mapping[str, Tensor],
    versine: Tensor,
    versine_out_far: Tensor,
    kappa_dot: Tensor,
) -> Tensor:
    """Replace a cancelling versine of the outputs, where the inputs nearly coincide.

    left, right: per side, shaped to broadcast against `versine`: "sd_in", "gain" = sd_in / sd with
        sd = sqrt(E phi^2), "radial_metric" and "curvature" (see `coincidence_terms`).
    versine: 1 - correlation of the inputs. versine_out_far: 1 - kappa / (sd sd), computed
        directly, with an absolute error of some units of rounding. kappa_dot: E phi'(u) phi'(v).

    The expansion of the module's docstring stands where both of its small parameters are small:
    the radial part below 2 eps^(1/2), and the ratio of the second to the first term in the
    versine below eps^(1/3) / 4. Relative error about 2e-5 in float32, 1e-10 in float64, at the
    joint, less away from it. Exactly 0 when the inputs coincide. Smooth functions only.
    """
    eps = torch.finfo(versine.dtype).eps
    radial = radial_versine(left, right)
    bend = 0.25 * versine * (left["curvature"] + right["curvature"])
    near = radial + left["gain"] * right["gain"] * versine * (kappa_dot + bend)
    is_near = (radial <= 2 * eps**0.5) & (bend <= 0.25 * eps ** (1 / 3) * kappa_dot)
    return torch.where(is_near, near, versine_out_far)
