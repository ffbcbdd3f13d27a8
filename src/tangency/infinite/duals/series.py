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

from tangency.errors import UnsupportedOperation
from tangency.infinite.duals.coincidence import metric, radial_versine
from tangency.infinite.duals.kinks import (
    Kinks,
    KnownKinks,
    find_kinks,
    kink_coefficients,
    kink_parts,
    kink_products,
    kink_terms,
)
from tangency.infinite.duals.quadrature import (
    REACH,
    PointwiseFunction,
    Rule,
    gaussian_rule,
    hermite_coefficients,
    value_and_slope,
)

__all__ = ["cross", "expand", "pair", "truncation"]

MOST_TERMS = 512
_FIRST_TERMS = 64
# What remains beside kinks is taken this far at most.
KINKED_TERMS = 256
# A bound on what is omitted beside kinks that is not worth trying another order for.
_GOOD_ENOUGH = 1e-6


# A share of E phi'^2 that is rounding of the integrals, and one that is rounding, squared, of
# coefficients that vanish (polynomials).
_ROUNDING, _FINITE = 1e-14, 1e-27


def tolerance(dtype: torch.dtype) -> float:
    """Share of E phi'^2 that the series may leave out, for results of this dtype."""
    return 1e-16 if dtype == torch.float64 else 1e-8


def expand(
    function: PointwiseFunction,
    sd: Tensor,
    *,
    terms: int | None = None,
    known: KnownKinks | None = None,
) -> dict[str, Tensor]:
    """One side's expansion of phi(sd z).

    function: phi, called in float64 on (Q, *S); differentiable by `torch.func.jvp`.
    sd: shape S, finite, zero allowed.
    terms: number of coefficients; by default the fewest, up to 512, that leave out less than
        1e-16 (float64) or 1e-8 (float32) of E phi'^2. See `truncation`.
    known: what earlier searches for the kinks of this function found.

    Returns tensors in sd's dtype: "sd_in" (S), "sd" = sqrt(E phi^2) (S), "mean" = E phi (S),
    "slope" = E phi' (S), "slope_energy" = E phi'^2 (S), "gain" = sd_in / sd (S; its limit at
    sd_in = 0), "radial_metric" (S), "coefficients" d (L, *S) and "rest" (2, *S): the roots of
    sum d_j^2 and of sum d_j^2 / (j + 1) over j >= L. The rest enters as one more coefficient of
    degree L, so that kappa_dot is exact where the inputs coincide.
    """
    wide = sd.double()
    kinks = find_kinks(function, wide, known=known)
    if kinks is not None:
        return _expand_kinked(function, sd, kinks, terms)
    rule = gaussian_rule(wide)
    values, slopes = value_and_slope(function, rule.nodes * wide)
    check_finite(values, slopes)
    energy, slope_energy = rule.mean(values**2), rule.mean(slopes**2)
    coefficients, rest = _enough_coefficients(
        rule, slopes, slope_energy, tolerance(sd.dtype), terms
    )
    norm = energy.sqrt()
    sides = {
        "sd_in": wide,
        "sd": norm,
        "mean": rule.mean(values),
        "slope": coefficients[0],
        "slope_energy": slope_energy,
        "gain": gain(wide, norm, coefficients),
        "radial_metric": metric(rule, values, slopes),
        "coefficients": coefficients,
        "rest": rest,
    }
    return {key: value.to(sd.dtype) for key, value in sides.items()}


def _expand_kinked(
    function: PointwiseFunction, sd: Tensor, kinks: Kinks, terms: int | None
) -> dict[str, Tensor]:
    """As `expand`, for phi = smooth + kinks; the pair is computed in float64."""
    tolerated = max(tolerance(sd.dtype), 1e-13)
    # At a vanishing sd every quantity is continuous: take it a little to the side.
    wide = sd.double().clamp_min(1e-30)
    split = gaussian_rule(wide, kinks=kinks.positions)
    values, slopes = value_and_slope(function, split.nodes * wide)
    check_finite(values, slopes)
    norm, slope_energy = split.mean(values**2).sqrt(), split.mean(slopes**2)
    rule = gaussian_rule(wide)
    smooth = value_and_slope(function, rule.nodes * wide)[1]
    best: tuple[float, Tensor, dict[str, Tensor]] | None = None
    # High orders converge fastest at small sd, and grow too large to subtract at large sd.
    for order in range(kinks.jumps.shape[1], 0, -1):
        parts = kink_terms(kinks, wide, order)
        row = hermite_coefficients(
            rule, smooth - kink_parts(parts, wide, rule.nodes)[1], KINKED_TERMS
        )
        kink_mean, kink_row = kink_coefficients(parts, KINKED_TERMS)
        kept, omitted = _enough_beside_kinks(row, kink_row, slope_energy, tolerated, terms)
        worst = float(omitted.detach().max()) if omitted.numel() else 0.0
        if best is None or worst < best[0]:
            extra = {"coefficients": row[:kept], "kink_coefficients": kink_row}
            best = worst, omitted, {**extra, **parts, "kink_mean": wide * kink_mean}
        if kept < KINKED_TERMS or worst <= _GOOD_ENOUGH:
            break
    assert best is not None  # kinks have at least one order
    _, omitted, parts = best
    kink_mean = parts.pop("kink_mean")
    at_zero = function(torch.zeros_like(wide)[None])[0].abs()
    shown = torch.where(sd == 0, at_zero, norm)
    return {
        "sd_in": sd,
        "sd": shown.to(sd.dtype),
        "mean": split.mean(values).to(sd.dtype),
        "slope": split.mean(slopes).to(sd.dtype),
        "slope_energy": slope_energy.to(sd.dtype),
        "gain": relative(wide, norm),
        "radial_metric": metric(split, values, slopes),
        "omitted": omitted.to(sd.dtype),
        "kink_means": torch.stack([split.mean(values), kink_mean]),
        "kink_norms": torch.stack([wide, norm]),
        **parts,
    }


def _enough_beside_kinks(
    row: Tensor, kink_row: Tensor, energy: Tensor, tolerated: float, terms: int | None
) -> tuple[int, Tensor]:
    """How many smooth coefficients to keep, and the share of E phi'^2 that is then omitted.

    Beyond L the series omits sum_j (c_j c'_j + c_j k'_j + k_j c'_j) rho^j of smooth (c) and kink
    (k) coefficients: at most S + 2 sqrt(S K) with the sums S, K of squares beyond L, K <= sum k^2.
    """

    def beyond(squares: Tensor) -> Tensor:
        padded = torch.cat([squares, torch.zeros_like(energy)[None]])
        return padded.flip(0).cumsum(0).flip(0)

    smooth, kink = beyond(row**2), beyond(kink_row**2)
    # Coefficients beyond the last that were computed: those of kinks fall as a power.
    smooth, kink = smooth + smooth[-2], kink + KINKED_TERMS * kink_row[-2:].square().sum(0)
    omitted = relative(smooth + 2 * torch.sqrt(smooth * kink), energy)
    enough = (omitted <= tolerated).flatten(1).all(dim=1)
    kept = int(enough.nonzero()[0]) if bool(enough.any()) else KINKED_TERMS
    kept = min(max(1, kept if terms is None else terms), KINKED_TERMS)
    return kept, omitted[kept]


def check_finite(values: Tensor, slopes: Tensor) -> None:
    """Refuse a function with infinite or undefined values or slopes where it is needed."""
    for what, tensor in (("value", values), ("slope", slopes)):
        if not bool(torch.isfinite(tensor).all()):
            raise UnsupportedOperation(
                f"the activation has a {what} that is infinite or NaN within {REACH:g} standard "
                "deviations of its Gaussian input, so its Gaussian moments cannot be computed; "
                "use a function that is finite and differentiable almost everywhere, or scale "
                "its input down"
            )


def _enough_coefficients(
    rule: Rule, slopes: Tensor, energy: Tensor, tolerated: float, terms: int | None
) -> tuple[Tensor, Tensor]:
    """The leading coefficients d_j of the slopes, and the "rest" that they leave out.

    As many as `terms` says, or as the tolerance asks for.
    """
    # A side of small sd needs few terms of its own, but its partner may have a large one.
    fewest = 16 if tolerated > 1e-10 else _FIRST_TERMS
    count = terms or _FIRST_TERMS
    while True:
        coefficients = hermite_coefficients(rule, slopes, count)
        squares = torch.cat([coefficients**2, torch.zeros_like(energy)[None]])
        unseen = energy - squares.sum(0)
        squares[-1] = torch.where(unseen > _ROUNDING * energy, unseen, 0.0)
        share = relative(squares.flip(0).cumsum(0).flip(0), energy).flatten(1).amax(dim=1)
        enough = share <= _FINITE
        enough[fewest:] |= share[fewest:] <= tolerated
        if terms is not None or (count >= MOST_TERMS and not bool(enough.any())):
            return coefficients, rest_of(squares, count)
        if bool(enough.any()):
            kept = max(1, int(enough.nonzero()[0]))
            return coefficients[:kept], rest_of(squares, kept)
        count *= 2


def rest_of(squares: Tensor, kept: int) -> Tensor:
    """(2, *S): roots of sum q_j and of sum q_j / (j + 1) over j >= kept, of squares q (L, *S)."""
    beyond = squares[kept:]
    degrees = torch.arange(kept, len(squares), dtype=squares.dtype, device=squares.device)
    weights = 1 / (degrees + 1).reshape(-1, *[1] * (squares.ndim - 1))
    return torch.stack([beyond.sum(0), (weights * beyond).sum(0)]).sqrt()


def shortened(side: Mapping[str, Tensor], kept: int) -> tuple[Tensor, Tensor]:
    """The leading `kept` coefficients of a side and its rest beyond them."""
    coefficients, rest = side["coefficients"], side["rest"]
    if kept == len(coefficients):
        return coefficients, rest
    more = rest_of(coefficients**2, kept)
    return coefficients[:kept], torch.sqrt(rest**2 + more**2)


def relative(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where the whole is 0."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1.0), 0.0)


def gain(sd_in: Tensor, sd_out: Tensor, coefficients: Tensor) -> Tensor:
    """sd_in / sd_out; where sd_in is 0 and phi(0) too, the limit 1 / |phi'(0)| (0 if infinite)."""
    slope = coefficients[0].abs()
    limit = torch.where(slope > 0, 1 / torch.where(slope > 0, slope, 1.0), 0.0)
    at_rest = (sd_in == 0) & (sd_out == 0)
    return torch.where(at_rest, limit, relative(sd_in, sd_out))


def truncation(expansion: Mapping[str, Tensor]) -> Tensor:
    """Bound (S) on the relative error that truncation leaves in kappa_dot and in kappa.

    With R_L = sum_{j >= L} d_j^2, Cauchy-Schwarz bounds what a pair omits of kappa_dot by
    |rho|^L sqrt(R_L(1) R_L(2)), and of kappa by s1 s2 / (L + 1) times that. The rest, entered as
    one coefficient, is a term no larger. The bound returned is 2 R_L / E phi'^2; that of a pair is
    the geometric mean of its sides', times |rho|^L, relative to sqrt(E phi'(u)^2 E phi'(v)^2).
    Where the inputs coincide the error is 0. Quadrature adds rounding only, for functions that
    are smooth at scale 1 of their argument.
    """
    if "omitted" in expansion:
        return expansion["omitted"]
    return 2 * relative(expansion["rest"][0] ** 2, expansion["slope_energy"])


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
