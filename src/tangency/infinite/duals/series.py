r"""The dual of an arbitrary pointwise function of one zero-mean Gaussian, by its Hermite series.

For u = s1 z1, v = s2 z2 with standard normal z1, z2 of correlation rho, Mehler's formula gives

    E[phi'(u) phi'(v)] = sum_j d_j(s1) d_j(s2) rho^j,          d_j(s) = E[phi'(s z) h_j(z)],
    E[phi(u) phi(v)] = E phi(u) E phi(v) + s1 s2 sum_j d_j(s1) d_j(s2) rho^(j+1) / (j + 1),

with normalised probabilists' Hermite polynomials h_j. The second follows from the first by Price's
theorem; starting from the slopes keeps all digits as s goes to 0, and includes s = 0. The
coefficients are one-dimensional integrals, one per side. What is left per pair is one Horner
recursion in rho. In it the differences 1 - rho^(j+1) are never formed:

    sum_j e_j (1 - rho^(j+1)) = (1 - rho) sum_i rho^i sum_{j >= i} e_j,

so near-duplicate inputs lose nothing, whatever the precision.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tangency.infinite.duals.coincidence import radial_versine
from tangency.infinite.duals.expansion import KINKED_TERMS, relative, rest_of
from tangency.infinite.duals.kinks import kink_products

__all__ = ["cross", "pair"]


def shortened(side: Mapping[str, Tensor], kept: int) -> tuple[Tensor, Tensor]:
    """The leading `kept` coefficients of a side and its rest beyond them."""
    coefficients, rest = side["coefficients"], side["rest"]
    if kept == len(coefficients):
        return coefficients, rest
    more = rest_of(coefficients**2, kept)
    return coefficients[:kept], torch.sqrt(rest**2 + more**2)


def pair(
    left: Mapping[str, Tensor], right: Mapping[str, Tensor], versine: Tensor
) -> tuple[Tensor, Tensor]:
    """(versine_out, kappa_dot) of one function for all pairs of two sides.

    left, right: results of `expand` for the same function, each tensor shaped to broadcast
        against `versine` in its trailing dimensions (leading dimensions stay).
    versine: 1 - correlation of the inputs, in [0, 2].

    versine_out = 1 - E phi(u) phi(v) / (sd sd) is exactly 0 where the inputs coincide and keeps
    its relative accuracy when it is small. Where phi(sd z) vanishes (sd = 0) it is the limit
    for small sd. Elementwise operations only, without branches on data.
    """
    if "kink_places" in left or "kink_places" in right:
        return _pair_kinked(_as_kinked(left), _as_kinked(right), versine)
    rho = 1 - versine
    terms = min(len(left["coefficients"]), len(right["coefficients"]))
    (a, rest_a), (b, rest_b) = shortened(left, terms), shortened(right, terms)
    gain_a, gain_b = left["gain"], right["gain"]
    slopes = rest_a[0] * rest_b[0] + torch.zeros_like(rho)
    total = tail = rest_a[1] * rest_b[1] + torch.zeros_like(rho)
    apart = (gain_a * rest_a[1] - gain_b * rest_b[1]) ** 2
    for degree in reversed(range(terms)):
        product = a[degree] * b[degree]
        tail = tail + product / (degree + 1)
        total = total * rho + tail
        slopes = slopes * rho + product
        apart = apart + (gain_a * a[degree] - gain_b * b[degree]) ** 2 / (degree + 1)
    mean_apart = relative(left["mean"], left["sd"]) - relative(right["mean"], right["sd"])
    far = 0.5 * (mean_apart**2 + apart)
    near = radial_versine(left, right)
    # The sum of squares loses digits as the difference, the metric gains as its square.
    joint = torch.finfo(versine.dtype).eps ** (2 / 3)
    radial = torch.where(near <= joint, near, far)
    return radial + versine * gain_a * gain_b * total, slopes


def _products_beside_kinks(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[Tensor]:
    """(c + k)(c' + k') - k k' for smooth c and kink k coefficients, degree by degree."""
    a, b = left["coefficients"], right["coefficients"]
    products = []
    for degree in range(max(len(a), len(b))):
        product = torch.zeros_like(left["gain"] * right["gain"])
        if degree < len(a):
            product = product + a[degree] * right["kink_coefficients"][degree]
        if degree < len(b):
            product = product + b[degree] * left["kink_coefficients"][degree]
        if degree < min(len(a), len(b)):
            product = product + a[degree] * b[degree]
        products.append(product)
    return products


def _as_kinked(side: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A side that sees no kinks (they are beyond ten of its sd) in the form of one that does."""
    if "kink_places" in side:
        return side
    wide = {key: value.double() for key, value in side.items()}
    one = torch.zeros_like(wide["sd"])
    none = one.expand(0, *one.shape)
    return wide | {
        "coefficients": wide["coefficients"][:KINKED_TERMS],
        "kink_coefficients": one.expand(KINKED_TERMS, *one.shape),
        "kink_means": torch.stack([wide["mean"], one]),
        "kink_norms": torch.stack([wide["sd_in"], wide["sd"]]),
        "kink_places": none,
        "kink_sides": none,
        "kink_jumps": none.unsqueeze(1),
    }


def _pair_kinked(
    left: Mapping[str, Tensor], right: Mapping[str, Tensor], versine: Tensor
) -> tuple[Tensor, Tensor]:
    """`pair` with the kinks' own moments in closed form, in float64 throughout.

    float64 leaves 1e-15 of absolute error: below a versine of 1e-9 the change along the sphere is
    (kappa_dot(1) + 2 kappa_dot(rho)) / 3, exact for slopes that fall as the root of the versine,
    as they do at a kink; below 1e-10 the radial part is that of the metric.
    """
    wide = versine.double()
    rho = 1 - wide
    total = tail = slopes = torch.zeros_like(rho)
    products = _products_beside_kinks(left, right)
    for degree in reversed(range(len(products))):
        tail = tail + products[degree] / (degree + 1)
        total = total * rho + tail
        slopes = slopes * rho + products[degree]
    value, slope = kink_products(left, right, wide)
    value_at_1, slope_at_1 = kink_products(left, right, None)
    slopes = slopes + slope
    slopes_at_1 = sum(products, slope_at_1)
    sds, means = (left[k] * right[k] for k in ("kink_norms", "kink_means"))
    gains = left["gain"] * right["gain"]
    at_1 = means[0] - means[1] + sds[0] * (value_at_1 + tail)
    near = radial_versine(left, right)
    radial = torch.where(near <= 1e-10, near, 1 - at_1 / sds[1])
    around = torch.where(
        wide <= 1e-9, wide * (slopes_at_1 + 2 * slopes) / 3, wide * total + (value_at_1 - value)
    )
    return (radial + gains * around).to(versine.dtype), slopes.to(versine.dtype)


def cross(
    left: Mapping[str, Tensor], right: Mapping[str, Tensor], versine: Tensor
) -> tuple[Tensor, Tensor]:
    """(E phi1(u) phi2(v), E phi1'(u) phi2'(v)) of two different functions.

    Arguments as in `pair`, expansions of different functions. The first is the uncentred second
    moment; it is a plain sum, since two functions have no coincidence to be accurate about.
    """
    wide = versine.double() if "kink_places" in left and "kink_places" in right else versine
    rho = 1 - wide
    moment, slopes = torch.zeros_like(rho), torch.zeros_like(rho)
    both_kinked = wide is not versine
    products = _products_beside_kinks(left, right) if both_kinked else _products(left, right)
    for degree in reversed(range(len(products))):
        moment = moment * rho + products[degree] / (degree + 1)
        slopes = slopes * rho + products[degree]
    moment = left["mean"] * right["mean"] + left["sd_in"] * right["sd_in"] * rho * moment
    if both_kinked:
        value, slope = kink_products(left, right, wide)
        kink_means = left["kink_means"][1] * right["kink_means"][1]
        moment = moment + left["sd_in"] * right["sd_in"] * value - kink_means
        slopes = slopes + slope
    return moment.to(versine.dtype), slopes.to(versine.dtype)


def _products(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[Tensor]:
    """Products of the coefficients of phi1' and phi2', of which one at most has kinks."""
    rows = []
    for side in (left, right):
        row = side["coefficients"]
        if "kink_places" in side:
            kink_row = side["kink_coefficients"]
            fill = torch.zeros_like(kink_row[len(row) :])
            row = torch.cat([row, fill]) + kink_row
        rows.append(row)
    return [a * b for a, b in zip(*rows, strict=False)]
