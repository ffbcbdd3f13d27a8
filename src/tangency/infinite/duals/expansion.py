"""One side of the Hermite series of a pointwise function (`tangency.infinite.duals.series`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tangency.errors import UnsupportedOperation
from tangency.infinite.duals import in_parts
from tangency.infinite.duals.coincidence import metric
from tangency.infinite.duals.kinks import (
    Kinks,
    KnownKinks,
    find_kinks,
    kink_coefficients,
    kink_parts,
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

__all__ = [
    "KINKED_TERMS",
    "Form",
    "check_finite",
    "expand",
    "expand_all",
    "gain",
    "relative",
    "rest_of",
    "tolerance",
    "truncation",
]

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
    return _expand(function, sd, Form(find_kinks(function, sd.double(), known=known), terms))


class Form(NamedTuple):
    """How far an expansion goes: which kinks are treated apart, the number of coefficients, and the
    highest derivative whose jumps are; None where the standard deviations decide.
    """

    kinks: Kinks | None
    terms: int | None = None
    order: int | None = None


def expand_all(
    function: PointwiseFunction, sd: Tensor, *, known: KnownKinks | None = None
) -> dict[str, Tensor]:
    """As `expand`, for a function that is the same for all of very many standard deviations."""
    if sd.numel() <= in_parts.PART:
        return expand(function, sd, known=known)
    kinks = find_kinks(function, sd.double(), known=known)
    flat = sd.flatten()
    few = _expand(function, flat[in_parts.representatives(flat)], Form(kinks))
    order = None if kinks is None else few["kink_jumps"].shape[1]
    form = Form(kinks, len(few["coefficients"]), order)
    return in_parts.joined(lambda part: _expand(function, part, form), flat, shape=sd.shape)


def _expand(function: PointwiseFunction, sd: Tensor, form: Form) -> dict[str, Tensor]:
    if form.kinks is not None:
        return _expand_kinked(function, sd, form.kinks, form)
    wide = sd.double()
    rule = gaussian_rule(wide)
    values, slopes = value_and_slope(function, rule.nodes * wide)
    check_finite(values, slopes)
    energy, slope_energy = rule.mean(values**2), rule.mean(slopes**2)
    coefficients, rest = _enough_coefficients(
        rule, slopes, slope_energy, tolerance(sd.dtype), form.terms
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
    function: PointwiseFunction, sd: Tensor, kinks: Kinks, form: Form
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
    highest = kinks.jumps.shape[1]
    for order in range(highest, 0, -1) if form.order is None else (form.order,):
        parts = kink_terms(kinks, wide, order)
        row = hermite_coefficients(
            rule, smooth - kink_parts(parts, wide, rule.nodes)[1], KINKED_TERMS
        )
        kink_mean, kink_row = kink_coefficients(parts, KINKED_TERMS)
        kept, omitted = _enough_beside_kinks(row, kink_row, slope_energy, tolerated, form.terms)
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
