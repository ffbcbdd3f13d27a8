"""Scaling laws: the exponent of a learning curve from the tails of eigenvalues and target power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.generalization.population import Population
from tangency.analysis.spectrum import PowerLawTail, power_law_tail
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["CurveExponent", "ScalingLaw", "curve_exponent", "scaling_law"]

Limit: TypeAlias = Literal["target", "saturation"]


@dataclass(frozen=True, eq=False, repr=False)
class ScalingLaw:
    """Test error ~ n^-exponent, predicted from two power laws.

    Attributes:
        eigenvalues: tail i^-b of the eigenvalues.
        power: tail i^-a of the target's power.
        exponent: min(a - 1, 2b): of the test error without noise and ridge.
        standard_error: of the exponent, that of the smaller branch.
        interval: (low, high), 95 %: the smaller of the ends of both branches.
        limit: "target" where a - 1 is smaller: the error is the power in modes not yet learned;
            "saturation" where 2b is: the error is what is missing from modes already learned.
        ridge_exponent: min((a - 1) / b, 2): of the same with a fixed ridge, for n so large that
            kappa is ridge / n.
    """

    eigenvalues: PowerLawTail
    power: PowerLawTail
    exponent: float
    standard_error: float
    interval: tuple[float, float]
    limit: Limit
    ridge_exponent: float

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name, the tails as dictionaries."""
        return {
            "eigenvalues": self.eigenvalues.to_dict(),
            "power": self.power.to_dict(),
            "exponent": self.exponent,
            "standard_error": self.standard_error,
            "interval": self.interval,
            "limit": self.limit,
            "ridge_exponent": self.ridge_exponent,
        }

    def figure(self) -> Figure:
        """Eigenvalues and target power against the mode's rank, with both fitted tails.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure(
            f"Scaling law: test error ~ n^-{self.exponent:.3g} ± {self.standard_error:.2g}",
            "rank of the mode",
            "eigenvalue, target power",
            x_axis="log",
            y_axis="log",
        )
        tails = ((self.eigenvalues, "eigenvalues", "b"), (self.power, "target power", "a"))
        for (tail, name, letter), colour in zip(tails, drawing.PALETTE, strict=False):
            ranks = torch.arange(1, len(tail.values) + 1)
            shown = tail.values > 0
            drawing.points(figure, ranks[shown], tail.values[shown], name, colour, size=4)
            ends = torch.tensor([tail.start + 1, tail.stop])
            label = f"{letter} = {tail.exponent:.3g}"
            drawing.line(figure, ends, tail.law(ends), label, drawing.ACTUAL, dash="dash")
        return figure

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"ScalingLaw(test error ~ n^-{self.exponent:.4g} ± {self.standard_error:.2g}, 95 % "
            f"interval {low:.3g} to {high:.3g}, limited by {self.limit}: eigenvalues "
            f"i^-{self.eigenvalues.exponent:.4g}, target power i^-{self.power.exponent:.4g})"
        )


def scaling_law(
    population: Population, start: int | None = None, stop: int | None = None
) -> ScalingLaw:
    """Predict the exponent of the learning curve from the tails of a population.

    For eigenvalues l_i ~ i^-b, b > 1, and target power v_i^2 ~ i^-a, a > 1, kernel regression
    without ridge and noise has kappa ~ n^-b, and

        test error ~ n^-min(a - 1, 2b)

    (Bordelon, Canatar & Pehlevan 2020; Spigler, Geiger & Wyart 2020; Bahri et al.
    2024). The tails are fitted by `power_law_tail`, on the same range of ranks: modes around
    rank n decide the error at n examples, so a law fitted to ranks start to stop speaks for n in
    this range.

    Where the eigenvalues or the power do not follow a power law, no exponent describes the learning
    curve; see `r_squared` and `half_exponents` of both tails.

    Args:
        population: exact, or estimated from m examples; then ranks above m/3 are left out by
            default, where the finite sample bends the tail.
        start: first rank of the range, as in `power_law_tail`.
        stop: its end.

    Raises:
        InvalidInput: a range too short for a power law, or eigenvalues or a target that do not
            fall faster than 1 / i, so that their sum has no limit.
    """
    eigenvalues = power_law_tail(population.eigenvalues, start, stop)
    power = power_law_tail(population.power, eigenvalues.start, eigenvalues.stop)
    for name, tail in (("eigenvalues", eigenvalues), ("target power", power)):
        if tail.exponent <= 1:
            raise InvalidInput(
                f"the {name} of ranks {tail.start + 1} to {tail.stop} fall like "
                f"i^-{tail.exponent:.3g}, not faster than 1 / i: their sum has no limit, and no "
                "scaling law follows. Labels with much noise look so; so does a range in which "
                "the tail has not begun."
            )
    target, saturation = power.exponent - 1, 2 * eigenvalues.exponent
    limited = target <= saturation
    return ScalingLaw(
        eigenvalues=eigenvalues,
        power=power,
        exponent=min(target, saturation),
        standard_error=power.standard_error if limited else 2 * eigenvalues.standard_error,
        interval=(
            min(power.interval[0] - 1, 2 * eigenvalues.interval[0]),
            min(power.interval[1] - 1, 2 * eigenvalues.interval[1]),
        ),
        limit="target" if limited else "saturation",
        ridge_exponent=min(target / eigenvalues.exponent, 2.0),
    )


@dataclass(frozen=True, eq=False, repr=False)
class CurveExponent:
    """Least squares of log error on log n: error ~ n^-exponent.

    Attributes:
        exponent: positive where the error falls.
        standard_error: of the regression, from the scatter around the line.
        interval: (low, high), 95 %, Student's t.
        half_exponents: of the first and the second half of the sizes: where they differ, the curve
            is bent.
        sizes, errors: (S,) that the line was fitted to, float64.
        amplitude: of the line, amplitude n^-exponent.
    """

    exponent: float
    standard_error: float
    interval: tuple[float, float]
    half_exponents: tuple[float, float]
    sizes: Tensor
    errors: Tensor
    amplitude: float

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name."""
        return {
            "exponent": self.exponent,
            "standard_error": self.standard_error,
            "interval": self.interval,
            "half_exponents": self.half_exponents,
            "sizes": self.sizes,
            "errors": self.errors,
            "amplitude": self.amplitude,
        }

    def figure(self) -> Figure:
        """Errors against sizes, and the line.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure(
            "Exponent of a learning curve", "examples", "error", x_axis="log", y_axis="log"
        )
        drawing.points(figure, self.sizes, self.errors, "errors", drawing.ACTUAL)
        line = self.amplitude * self.sizes**-self.exponent
        drawing.line(figure, self.sizes, line, f"n^-{self.exponent:.3g}")
        return figure

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"CurveExponent({self.exponent:.4g}, 95 % {low:.4g} to {high:.4g}; halves "
            f"{self.half_exponents[0]:.4g} and {self.half_exponents[1]:.4g})"
        )


def curve_exponent(
    sizes: Sequence[float] | Tensor, errors: Sequence[float] | Tensor
) -> CurveExponent:
    """The exponent of a learning curve, predicted or measured.

    Args:
        sizes: (S,) numbers of examples, at least 4.
        errors: (S,) test errors, positive.

    Raises:
        InvalidInput: fewer than 4 points, or numbers that are not positive.
    """
    x = torch.as_tensor(sizes, dtype=torch.float64).log().numpy()
    y = torch.as_tensor(errors, dtype=torch.float64).log().numpy()
    if x.ndim != 1 or x.shape != y.shape or len(x) < 4:
        raise InvalidInput("sizes and errors must be vectors of one length, at least 4.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InvalidInput("sizes and errors must be positive and finite.")
    fit = scipy.stats.linregress(x, y)
    reach = float(scipy.stats.t.ppf(0.975, len(x) - 2)) * float(fit.stderr)
    half = len(x) // 2
    parts = (slice(None, half), slice(-half, None))
    first, second = (-float(np.polyfit(x[part], y[part], 1)[0]) for part in parts)
    exponent = -float(fit.slope)
    return CurveExponent(
        exponent=exponent,
        standard_error=float(fit.stderr),
        interval=(exponent - reach, exponent + reach),
        half_exponents=(first, second),
        sizes=torch.from_numpy(np.exp(x)),
        errors=torch.from_numpy(np.exp(y)),
        amplitude=float(np.exp(fit.intercept)),
    )
