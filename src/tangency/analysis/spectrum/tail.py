"""Power-law tails: values that fall like rank^-exponent, and how well they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.stats
import torch
from torch import Tensor

from tangency import drawing
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["PowerLawTail", "power_law_tail"]

_Array: TypeAlias = npt.NDArray[np.float64]

BLOCKS = 6
"""Parts of equal length in log rank that the range is cut into."""

FEWEST_BLOCKS = 4
"""Below it there is no telling how far the exponent depends on the range."""

CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False, repr=False)
class PowerLawTail:
    """A power law amplitude * rank^-exponent fitted to values[start:stop]; ranks count from 1.

    Attributes:
        exponent: positive where the values fall.
        standard_error: of the exponent, by leaving out one sixth of the range (in log rank) after
            the other.
        interval: (low, high), 95 % confidence interval of the exponent.
        amplitude: of the law at rank 1.
        start, stop: the range of the fit, as in `values[start:stop]`.
        r_squared: share of the variance of log(value), averaged over sixths of the range, that
            the power law explains.
        exponential_r_squared: the same for amplitude * exp(-rate * rank), fitted alike. A power
            law is worth its name where `r_squared` is clearly the larger of the two.
        half_exponents: the exponents fitted to the first and the second half of the range, in log
            rank. Where they differ by more than their noise, the curve is bent, and no one
            exponent describes it: `interval` knows nothing of what lies outside of the range.
        values: (N,) float64, all values given.
    """

    exponent: float
    standard_error: float
    interval: tuple[float, float]
    amplitude: float
    start: int
    stop: int
    r_squared: float
    exponential_r_squared: float
    half_exponents: tuple[float, float]
    values: Tensor

    def law(self, ranks: Tensor | Sequence[float]) -> Tensor:
        """amplitude * rank^-exponent at the given ranks, in float64."""
        given = torch.as_tensor(ranks, dtype=torch.float64)
        return self.amplitude * given ** (-self.exponent)

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def figure(self) -> Figure:
        """The values and the law, both axes logarithmic.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure(
            f"Power law: exponent {self.exponent:.3g} ± {self.standard_error:.2g}",
            "rank",
            "value",
            x_axis="log",
            y_axis="log",
        )
        ranks = torch.arange(1, len(self.values) + 1)
        shown = self.values > 0
        drawing.points(figure, ranks[shown], self.values[shown], "values", size=4)
        ends = torch.tensor([self.start + 1, self.stop])
        drawing.line(figure, ends, self.law(ends), "power law", drawing.INFINITE)
        return figure

    def __repr__(self) -> str:
        low, high = self.interval
        first, second = self.half_exponents
        return "\n".join(
            [
                f"PowerLawTail: rank^-{self.exponent:.4g} over ranks {self.start + 1} to "
                f"{self.stop}",
                f"  exponent     {self.exponent:.4g} ± {self.standard_error:.2g}, "
                f"95 % interval {low:.4g} to {high:.4g}",
                f"  by half      {first:.4g}, then {second:.4g}",
                f"  fit          R^2 {self.r_squared:.4g} in log-log "
                f"(an exponential: {self.exponential_r_squared:.4g})",
            ]
        )


def power_law_tail(
    values: Tensor | npt.NDArray[Any] | Sequence[float],
    start: int | None = None,
    stop: int | None = None,
) -> PowerLawTail:
    """The exponent b of values that fall like rank^-b, with its uncertainty and quality.

    For eigenvalues in descending order, or for the targets' power in the modes of these
    eigenvalues; ranks count from 1. The law describes the *mean* of values that scatter around it:
    amplitude and exponent solve

        sum_i w_i (values_i / law_i - 1) (1, log i) = 0,

    which for squares of Gaussian coefficients (target power) and equal weights is the maximum of
    the likelihood; single zeros do no harm, which in a least-squares fit of logarithms they do. The
    weights balance independent scatter, whose mean over a block of n ranks falls like 1/n, against
    slow deviations from the law, which do not average out: both variances are estimated from the
    sixths of the range (in log rank), as in a meta-analysis with random effects (DerSimonian &
    Laird 1986). Smooth curves thus weigh alike at every scale, as the eye sees them in a log-log
    plot, and pure noise by the number of values.

    Deviations of neighbouring eigenvalues are correlated, so that the standard error of a
    regression would be far too small. Here it is that of a jackknife which leaves out whole sixths
    of the range, and the interval takes Student's t with (sixths - 2) degrees of freedom.
    Kolmogorov-Smirnov distances (Clauset, Shalizi & Newman 2009) are not used: they judge
    independent draws from a density, and the eigenvalues of a kernel are no such draws.

    Args:
        values: (N,), not negative in the range of the fit.
        start: the first rank of the range values[start:stop]; by default N^(1/3), where N counts
            the values above rounding: the first modes are not yet in the tail.
        stop: its end; by default N/3: the last modes of a kernel matrix are distorted by the
            finite number of examples.

    Raises:
        InvalidInput: values that are not real numbers in one dimension, NaN, negative in the
            range, a bad range, or too few positive values in it.
    """
    given, rounding = _checked(values)
    first, last = _range(given, rounding, start, stop)
    ranks = np.arange(first + 1, last + 1, dtype=np.float64)
    chosen = given[first:last]
    blocks = _blocks(ranks, chosen)
    logs = np.log(ranks)
    weights = _weights(logs, chosen, blocks)
    intercept, slope = _fit(logs, chosen, weights)
    error = _jackknife(logs, chosen, weights, blocks, slope)
    reach = error * float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, int(blocks[-1]) + 1 - 2))
    flat = 1 / np.bincount(blocks)[blocks]
    exponential = _fit(ranks, chosen, flat)
    return PowerLawTail(
        exponent=-slope,
        standard_error=error,
        interval=(-slope - reach, -slope + reach),
        amplitude=math.exp(intercept),
        start=first,
        stop=last,
        r_squared=_r_squared(chosen, np.exp(intercept + slope * logs), blocks),
        exponential_r_squared=_r_squared(
            chosen, np.exp(exponential[0] + exponential[1] * ranks), blocks
        ),
        half_exponents=_halves(logs, chosen, weights, blocks),
        values=torch.from_numpy(given),
    )


def _checked(values: Tensor | npt.NDArray[Any] | Sequence[float]) -> tuple[_Array, float]:
    """The values in float64, and what cannot be told from zero beside the largest of them."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values if values.dtype == torch.float32 else values.double()).numpy()
    try:
        given = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"values must be real numbers: {error}") from error
    if given.ndim != 1:
        raise InvalidInput(f"values has shape {given.shape}, but must have one dimension.")
    bad = ~np.isfinite(given)
    if bad.any():
        raise InvalidInput(
            f"values holds {int(bad.sum())} NaN or infinite entries, the first at index "
            f"{int(bad.argmax())}."
        )
    kind = np.asarray(values).dtype
    coarse = float(np.finfo(kind).eps) if kind.kind == "f" else 0.0
    relative = len(given) * np.finfo(np.float64).eps + 10 * coarse  # as for an eigensystem
    return given, float(relative * given.max(initial=0.0))


def _range(values: _Array, rounding: float, start: int | None, stop: int | None) -> tuple[int, int]:
    above = np.flatnonzero(values > rounding)
    count = int(above[-1]) + 1 if len(above) else 0
    first = max(round(count ** (1 / 3)) - 1, 0) if start is None else start
    last = round(count / 3) if stop is None else stop
    if not 0 <= first < last <= len(values):
        raise InvalidInput(
            f"the range [{first}:{last}] of the fit does not lie within the {len(values)} values"
            + (f", of which {count} are above rounding" if stop is None else "")
            + ": give start and stop."
        )
    negative = np.flatnonzero(values[first:last] < 0)
    if len(negative):
        at = first + int(negative[0])
        raise InvalidInput(
            f"values[{at}] is {values[at]:.3g}: a power law has no negative values. Eigenvalues "
            f"that cannot be told from zero stand there: end the range before, stop={at}."
        )
    return first, last


def _blocks(ranks: _Array, values: _Array) -> npt.NDArray[np.int64]:
    """(n,) ascending from 0: which part, even in log rank, each value is in.

    Parts with fewer than two positive values go together with what follows.
    """
    where = np.log(ranks / ranks[0]) / max(np.log((ranks[-1] + 1) / ranks[0]), 1e-300)
    part = np.minimum((where * BLOCKS).astype(np.int64), BLOCKS - 1)
    positive = np.bincount(part, weights=values > 0, minlength=BLOCKS)
    numbers, held, number = np.zeros(BLOCKS, dtype=np.int64), 0.0, 0
    for index, count in enumerate(positive):
        numbers[index] = number
        held += count
        if held >= 2:
            number, held = number + 1, 0.0
    numbers = np.minimum(numbers, max(number - 1, 0))
    if number < FEWEST_BLOCKS:
        raise InvalidInput(
            f"ranks {int(ranks[0])} to {int(ranks[-1])} hold {int(positive.sum())} positive "
            "values, too few or too close together for a power law: give a longer range "
            "(start, stop), best of a factor ten in rank or more."
        )
    return np.asarray(numbers[part])


def _fit(x: _Array, values: _Array, weights: _Array) -> tuple[float, float]:
    """(a, b) of exp(a + b x), such that sum_i w_i (values_i / fitted_i - 1) (1, x_i) = 0.

    They minimise the convex sum_i w_i (eta_i + values_i exp(-eta_i)), eta = a + b x, from the least
    squares of the logarithms on.
    """
    positive = values > 0
    centre, scale = float(np.average(x, weights=weights)), float(x.std())
    z = (x - centre) / scale
    first = np.polyfit(z[positive], np.log(values[positive]), 1, w=np.sqrt(weights[positive]))
    design = np.stack([np.ones_like(z), z])
    share = weights / weights.sum()
    relative = values * np.exp(-(first[1] + first[0] * z))

    def objective(beta: _Array) -> tuple[float, _Array]:
        eta = beta @ design
        ratio = relative * np.exp(-eta)
        return float(share @ (eta + ratio)), design @ (share * (1 - ratio))

    def curvature(beta: _Array) -> _Array:
        return np.asarray((design * (share * relative * np.exp(-(beta @ design)))) @ design.T)

    found = scipy.optimize.minimize(
        objective,
        np.zeros(2),
        jac=True,
        hess=curvature,
        method="trust-exact",
        options={"gtol": 1e-11},
    )
    slope = (first[0] + found.x[1]) / scale
    return float(first[1] + found.x[0] - slope * centre), float(slope)


def _weights(logs: _Array, values: _Array, blocks: npt.NDArray[np.int64]) -> _Array:
    """1 / (s^2 + n t^2) in a block of n values: s^2 is the variance of independent scatter, t^2
    that of slow deviations from the law.
    """
    counts = np.bincount(blocks)
    even = 1 / counts[blocks]
    intercept, slope = _fit(logs, values, even)
    deviation = values / np.exp(intercept + slope * logs) - 1
    means = np.bincount(blocks, weights=deviation) / counts
    within = deviation - means[blocks]
    scatter = float(within @ within) / max(len(values) - len(counts), 1)
    slow = max(float((means**2).mean()) - scatter * float((1 / counts).mean()), 0.0)
    if scatter + slow < 1e-24:  # exact up to rounding
        return even
    return np.asarray(1 / (scatter + counts[blocks] * slow))


def _jackknife(
    logs: _Array, values: _Array, weights: _Array, blocks: npt.NDArray[np.int64], slope: float
) -> float:
    count = int(blocks[-1]) + 1
    slopes = [
        _fit(logs[blocks != block], values[blocks != block], weights[blocks != block])[1]
        for block in range(count)
    ]
    spread = (np.array(slopes) - slope) ** 2
    return math.sqrt((count - 1) / count * float(spread.sum()))


def _halves(
    logs: _Array, values: _Array, weights: _Array, blocks: npt.NDArray[np.int64]
) -> tuple[float, float]:
    first = 2 * blocks < blocks[-1] + 1
    return (
        -_fit(logs[first], values[first], weights[first])[1],
        -_fit(logs[~first], values[~first], weights[~first])[1],
    )


def _r_squared(values: _Array, fitted: _Array, blocks: npt.NDArray[np.int64]) -> float:
    """Of the logarithms of block means; each block counts alike."""
    counts = np.bincount(blocks)
    seen = np.log(np.bincount(blocks, weights=values) / counts)
    # An exponential may underflow where a power law does not.
    law = np.log(np.maximum(np.bincount(blocks, weights=fitted) / counts, 1e-300))
    total = float(((seen - seen.mean()) ** 2).sum())
    return 1 - float(((seen - law) ** 2).sum()) / total if total > 0 else 0.0
