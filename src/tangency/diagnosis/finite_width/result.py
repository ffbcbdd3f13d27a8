"""`WidthStudy`: kernels of several widths against the infinite-width limit."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangency import drawing
from tangency.diagnosis.finite_width.laws import interval, mean_square, power, solve_width
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["PowerOfWidth", "WidthNeeded", "WidthStudy"]


@dataclass(frozen=True)
class PowerOfWidth:
    """coefficient / width^power with power fixed by theory, and the power that fits freely.

    Attributes:
        coefficient: of the law with the theoretical power.
        coefficient_range: (low, high), 90 % by resampling networks.
        power: -d log / d log width of a free fit; None where a value is not positive.
        power_range: (low, high), 90 % by resampling networks; None where that is not measured.
    """

    coefficient: float
    coefficient_range: tuple[float, float]
    power: float | None
    power_range: tuple[float, float] | None


@dataclass(frozen=True)
class WidthNeeded:
    """The width at which the kernel of a network is as close to its limit as was asked.

    Attributes:
        width: the estimate.
        low, high: 90 % by resampling networks: what other draws of networks would have answered.
        closeness: relative Frobenius distance asked for.
        probability: share of networks that are as close; None for the root mean square.
    """

    width: int
    low: int
    high: int
    closeness: float
    probability: float | None


@dataclass(frozen=True, eq=False, repr=False)
class WidthStudy:
    """Empirical NTKs of w widths, r networks each, against their infinite-width limits.

    Everything is relative to the norm |K_inf|_F of the limit of its width (in the standard
    parametrisation parts of the kernel grow with the width, and the limit with them). Without a
    limit, to that of the mean kernel, and `bias` is unknown.

    The mean squared distance of a network from the limit is variance + bias^2, where the variance
    of the kernel over initialisations falls as 1/width and the bias of its mean as 1/width (Hanin
    & Nica 2020; Dyer & Gur-Ari 2020), exactly so in the NTK parametrisation to leading order: then
    |K - K_inf| is of order 1/sqrt(width) for one network.

    Attributes:
        widths: (w,) int64, ascending.
        errors: (w, r) relative Frobenius distance |K - K_inf| / |K_inf| of every network, K the
            mean over outputs (from the mean kernel without a limit).
        variance: (w,) relative variance of the kernel over networks, E |K - E K|^2 / |K_inf|^2,
            unbiased.
        bias: (w,) relative distance |E K - K_inf| / |K_inf|, with the part that is due to the
            finite number of networks taken off (0 where nothing is left); NaN without a limit.
        variance_law: variance = c / width.
        bias_law: bias = c' / width, fitted to signed matrices of all widths together; None without
            a limit.
        examples: number of examples that the kernels are taken on.
        reason: why there is no limit; None where there is one.
        resampled: (B, 2) the coefficients c and c' of resampled networks.
    """

    widths: Tensor
    errors: Tensor
    variance: Tensor
    bias: Tensor
    variance_law: PowerOfWidth
    bias_law: PowerOfWidth | None
    examples: int
    reason: str | None
    resampled: Tensor

    @property
    def mean(self) -> Tensor:
        """(w,) mean error over the networks."""
        return self.errors.mean(dim=1)

    @property
    def slope(self) -> float:
        """Exponent of the power of width that fits the mean errors; theory says -1/2."""
        return -power(self.widths, self.mean)

    @property
    def guide(self) -> Tensor:
        """(w,) the line c / sqrt(width) that fits the mean errors best in logarithms."""
        roots = self.widths.double().sqrt()
        level = (self.mean.double() * roots).log().mean().exp()
        return level / roots

    def distance(self, width: float) -> float:
        """Root mean square relative distance from the limit at `width`, by the fitted laws.

        sqrt(c / width + (c' / width)^2).

        Raises:
            InvalidInput: a width that is not positive.
        """
        if not width > 0:
            raise InvalidInput(f"width is {width}, but must be positive.")
        bias = 0.0 if self.bias_law is None else self.bias_law.coefficient
        return math.sqrt(mean_square(width, self.variance_law.coefficient, bias))

    def width_for(self, closeness: float, probability: float | None = None) -> WidthNeeded:
        """The width at which networks are within `closeness` of the limit, relative Frobenius.

        Args:
            closeness: above 0; 0.1 is 10 % of the norm of the limit.
            probability: share of networks that shall be within; None: in the root mean square.
                The spread about the mean square is taken from the networks of all widths.

        Raises:
            InvalidInput: a closeness that is not positive, or a probability outside (0, 1).
        """
        if not (math.isfinite(closeness) and closeness > 0):
            raise InvalidInput(f"closeness is {closeness}, but must be positive.")
        spread = 1.0 if probability is None else self._spread(probability)
        bias = 0.0 if self.bias_law is None else self.bias_law.coefficient
        best = solve_width(closeness, self.variance_law.coefficient, bias, spread)
        found = sorted(solve_width(closeness, c, b, spread) for c, b in self.resampled.tolist())
        low, high = interval(torch.tensor(found, dtype=torch.float64))
        width, least, most = (max(1, math.ceil(v)) for v in (best, low, high))
        return WidthNeeded(width, least, most, closeness, probability)

    def to_dict(self) -> dict[str, Any]:
        """Attributes by name, and the slope of the mean error."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"slope": self.slope}

    def figure(self) -> Figure:
        """Distances, variance and bias against the width, with the fitted laws.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        drawn = drawing.new_figure(
            "Distance of the kernel from infinite width",
            "width",
            "relative to the limit",
            x_axis="log",
            y_axis="log",
        )
        widths = self.widths.double()
        repeated = widths[:, None].expand_as(self.errors)
        drawing.points(drawn, repeated, self.errors, "one network", drawing.EMPIRICAL, size=5)
        grid = torch.logspace(
            math.log10(float(widths[0])), math.log10(float(widths[-1])), 50, dtype=torch.float64
        )
        laws = torch.tensor([self.distance(float(w)) for w in grid])
        drawing.line(drawn, grid, laws, "√(c/width + c'²/width²)", drawing.EMPIRICAL)
        deviation = self.variance.sqrt()
        drawing.points(drawn, widths, deviation, "standard deviation", drawing.INFINITE)
        if self.bias_law is not None:
            drawing.points(drawn, widths, self.bias, "bias of the mean", drawing.PALETTE[2])
            law = self.bias_law.coefficient / grid
            drawing.line(drawn, grid, law, "c'/width", drawing.PALETTE[2], dash="dot")
        return drawn

    def __repr__(self) -> str:
        law = self.variance_law
        lines = [
            f"WidthStudy of {self.errors.shape[1]} networks at widths "
            f"{', '.join(str(w) for w in self.widths.tolist())}, {self.examples} examples",
            f"  distance  {float(self.mean[0]):.3g} to {float(self.mean[-1]):.3g} of the limit, "
            f"as width^{self.slope:.2f} (theory: -0.5)",
            f"  variance  {_said(law)} / width{_freely(law)}",
        ]
        if self.bias_law is None:
            lines.append(f"  bias      unknown: {self.reason}")
        else:
            lines.append(f"  bias      {_said(self.bias_law)} / width")
        needed = self.width_for(0.1)
        lines.append(
            f"  within 10 % of the limit from width {needed.width} ({needed.low} to {needed.high})"
        )
        return "\n".join(lines)

    def _spread(self, probability: float) -> float:
        """Quantile of squared distance over its mean square, of the networks of all widths."""
        if not 0 < probability < 1:
            raise InvalidInput(f"probability is {probability}, but must be between 0 and 1.")
        squares = self.errors.square()
        return float(torch.quantile((squares / squares.mean(dim=1, keepdim=True)), probability))


def _said(law: PowerOfWidth) -> str:
    low, high = law.coefficient_range
    return f"{law.coefficient:.3g} ({low:.3g} to {high:.3g})"


def _freely(law: PowerOfWidth) -> str:
    if law.power is None or law.power_range is None:
        return ""
    low, high = law.power_range
    return f", freely width^-{law.power:.2f} ({low:.2f} to {high:.2f})"
