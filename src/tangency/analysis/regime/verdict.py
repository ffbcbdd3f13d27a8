"""The regime of a training run: a verdict with its evidence and its uncertainty."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.regime.bootstrap import Resamples
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Evidence", "Regime", "Thresholds", "Uncertainty", "Verdict", "verdict"]

Regime: TypeAlias = Literal["lazy", "between", "feature learning", "unstable"]

LEVEL = 0.9
"""Coverage of the intervals."""


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on; all are plain ratios.

    Attributes:
        kernel_drift: |K1 - K0|_F / |K0|_F from before to after training.
        kernel_alignment: cosine of the angle between K0 and K1, in [-1, 1].
        parameter_movement: |theta_1 - theta_0| / |theta_0|; infinite for a start at zero.
        prediction_error: distance of the linearised network's outputs from the real ones over
            the distance that the real ones moved.
        loss_growth: loss at the end over loss at the beginning; infinite for a run that
            overflowed, None where it was not measured.

    Raises:
        InvalidInput: a negative or NaN ratio, or an alignment outside [-1, 1].
    """

    kernel_drift: float
    kernel_alignment: float
    parameter_movement: float
    prediction_error: float
    loss_growth: float | None = None

    def __post_init__(self) -> None:
        for name in ("kernel_drift", "parameter_movement", "prediction_error", "loss_growth"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InvalidInput(f"{name} is {value}, but must be zero or positive.")
        if not -1 <= self.kernel_alignment <= 1:
            raise InvalidInput(
                f"kernel_alignment is {self.kernel_alignment}, but must be in [-1, 1]."
            )


@dataclass(frozen=True)
class Thresholds:
    """Where lazy ends and feature learning begins, for each measure.

    The regimes pass into one another without a sharp border (Geiger et al. 2020), so these are
    conventions; between the two marks a measure speaks for neither.

    Attributes:
        lazy_drift, feature_drift: 0.1: no eigenvalue moves by more than 10 % of the kernel's norm.
            0.5: the change is half as large as the kernel that training began with.
        lazy_alignment, feature_alignment: the same in directions. A drift of 0.1 cannot take the
            cosine below sqrt(1 - 0.1^2) = 0.995, so a kernel below 0.99 has turned; a drift of 0.5
            that only adds new directions takes it to 1 / sqrt(1 + 0.5^2) = 0.894.
        lazy_error, feature_error: 0.1: the linearised network ends within 10 % of the way that
            the outputs went. 0.5: it misses half of the way.
        unstable_growth: 2: a run that ended at more than twice the loss that it began with went
            the wrong way; there is no sense in which it learned.

    Raises:
        InvalidInput: a pair of marks in the wrong order, or an unstable_growth below 1.
    """

    lazy_drift: float = 0.1
    feature_drift: float = 0.5
    lazy_alignment: float = 0.99
    feature_alignment: float = 0.9
    lazy_error: float = 0.1
    feature_error: float = 0.5
    unstable_growth: float = 2.0

    def __post_init__(self) -> None:
        ordered = (
            0 <= self.lazy_drift < self.feature_drift,
            -1 <= self.feature_alignment < self.lazy_alignment <= 1,
            0 <= self.lazy_error < self.feature_error,
        )
        if not all(ordered):
            raise InvalidInput(f"each lazy mark must come before its feature mark: {self}.")
        if not self.unstable_growth >= 1:
            raise InvalidInput(
                f"unstable_growth is {self.unstable_growth}, but must be at least 1."
            )


@dataclass(frozen=True)
class Uncertainty:
    """How far the measures would differ on as many other examples of the same kind.

    It covers the choice of examples only: another initialisation of the network is another run.

    Attributes:
        kernel_drift, kernel_alignment, prediction_error: (low, high), between the 5th and the 95th
            percentile of the resamples.
        support: each regime -> the share of resamples that speak for it; they sum to one.
        resamples: their number.
    """

    kernel_drift: tuple[float, float]
    kernel_alignment: tuple[float, float]
    prediction_error: tuple[float, float]
    support: dict[Regime, float]
    resamples: int


@dataclass(frozen=True, repr=False)
class Verdict:
    """A regime, and what it rests on.

    Attributes:
        regime: "lazy", "between", "feature learning" or "unstable".
        evidence: the measures.
        thresholds: the marks that they were held against.
        uncertainty: of the measures and of the regime; None where it was not measured.
    """

    regime: Regime
    evidence: Evidence
    thresholds: Thresholds = field(default_factory=Thresholds)
    uncertainty: Uncertainty | None = None

    @property
    def confidence(self) -> float | None:
        """Share of resampled sets of examples that give the same regime; None if not measured."""
        return None if self.uncertainty is None else self.uncertainty.support[self.regime]

    def explain(self) -> str:
        """The verdict and its reasons in plain sentences, one a line."""
        evidence, marks = self.evidence, self.thresholds
        votes = _votes(evidence, marks)
        ranges = _ranges(self.uncertainty)
        lines = [
            _HEADLINES[self.regime],
            f"The kernel changed by {evidence.kernel_drift:.1%}{ranges[0]} of its norm: "
            f"{votes[0]} (lazy up to {marks.lazy_drift:.0%}, "
            f"feature learning from {marks.feature_drift:.0%}).",
            f"Its alignment with the initial kernel is {evidence.kernel_alignment:.3f}{ranges[1]}: "
            f"{votes[1]} (lazy from {marks.lazy_alignment:g}, "
            f"feature learning down from {marks.feature_alignment:g}).",
            f"The linearised network missed the real outputs by "
            f"{evidence.prediction_error:.1%}{ranges[2]} of the way that they went: {votes[2]} "
            f"(lazy up to {marks.lazy_error:.0%}, "
            f"feature learning from {marks.feature_error:.0%}).",
            f"The parameters moved by {evidence.parameter_movement:.2%} of their norm "
            "(this does not count: a model that is linear in its parameters may move far).",
        ]
        if self.regime == "unstable":
            lines.insert(
                1,
                f"The loss ended at {evidence.loss_growth:.3g} times what it was at the start "
                f"(unstable above {marks.unstable_growth:g}).",
            )
        if self.uncertainty is not None:
            lines.append(
                f"Of {self.uncertainty.resamples} resampled sets of examples {self.confidence:.0%} "
                "give the same verdict."
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Regime, evidence, thresholds and uncertainty as plain numbers and text."""
        uncertainty = None if self.uncertainty is None else asdict(self.uncertainty)
        return {
            "regime": self.regime,
            "evidence": asdict(self.evidence),
            "thresholds": asdict(self.thresholds),
            "uncertainty": uncertainty,
            "confidence": self.confidence,
        }

    def figure(self) -> Figure:
        """Each measure between its two marks: 0 is where lazy ends, 1 where features begin.

        The kernel's turning counts as 1 - alignment. Bars reach from the 5th to the 95th percentile
        of the resamples, where there are some.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        marks, ranges = self.thresholds, self.uncertainty
        figure = drawing.new_figure(
            f"Verdict: {self.regime}", "0: lazy ends, 1: feature learning begins", ""
        )
        rows = (
            ("kernel drift", "kernel_drift", marks.lazy_drift, marks.feature_drift),
            ("kernel turned", "kernel_alignment", marks.lazy_alignment, marks.feature_alignment),
            ("prediction error", "prediction_error", marks.lazy_error, marks.feature_error),
        )
        for (label, name, lazy, feature), colour in zip(rows, drawing.PALETTE, strict=False):
            value = getattr(self.evidence, name)
            ends = (value, value) if ranges is None else getattr(ranges, name)
            place, *low_high = ((v - lazy) / (feature - lazy) for v in (value, *ends))
            figure.add_scatter(x=sorted(low_high), y=[label] * 2, mode="lines", line_color=colour)
            figure.add_scatter(
                x=[place], y=[label], mode="markers", marker={"color": colour, "size": 12}
            )
        figure.update_layout(showlegend=False)
        figure.update_yaxes(type="category")
        drawing.vertical(figure, 0.0, "lazy")
        drawing.vertical(figure, 1.0, "feature learning")
        return figure

    def __repr__(self) -> str:
        evidence = self.evidence
        sure = "" if self.confidence is None else f", {self.confidence:.0%} sure"
        return (
            f"Verdict({self.regime}{sure}: kernel drift {evidence.kernel_drift:.3g}, "
            f"alignment {evidence.kernel_alignment:.3g}, "
            f"prediction error {evidence.prediction_error:.3g}, "
            f"moved {evidence.parameter_movement:.3g})"
        )


_HEADLINES: dict[Regime, str] = {
    "lazy": "Training was lazy: the network stayed close to its linearisation.",
    "between": "Training was between lazy and feature learning.",
    "feature learning": "The network learned features: its kernel changed with the task.",
    "unstable": "Training was unstable: the steps were too long, and the loss grew.",
}


def verdict(
    evidence: Evidence,
    thresholds: Thresholds | None = None,
    resamples: Resamples | None = None,
) -> Verdict:
    """Lazy, between, feature learning or unstable.

    Unstable is a run whose loss grew, see `Thresholds.unstable_growth`. Otherwise kernel drift,
    kernel alignment and prediction error each speak for one of the other three. Lazy needs
    all three; feature learning needs two of them (a kernel may be rescaled without turning, and a
    linearised network may fit the same training targets by another way). Parameter movement is
    reported but does not count: it depends on the scale of the start.

    Args:
        evidence: the measures.
        thresholds: the marks to hold them against.
        resamples: the same measures on resampled examples (`bootstrap`), for the uncertainty.
    """
    marks = Thresholds() if thresholds is None else thresholds
    regime = _regime(evidence, marks)
    uncertainty = None if resamples is None else _uncertainty(evidence, marks, resamples)
    return Verdict(regime, evidence, marks, uncertainty)


def _regime(evidence: Evidence, marks: Thresholds) -> Regime:
    if evidence.loss_growth is not None and evidence.loss_growth > marks.unstable_growth:
        return "unstable"
    votes = _votes(evidence, marks)
    if all(vote == "lazy" for vote in votes):
        return "lazy"
    return "feature learning" if votes.count("feature learning") >= 2 else "between"


def _uncertainty(evidence: Evidence, marks: Thresholds, found: Resamples) -> Uncertainty:
    series = (found.kernel_drift, found.kernel_alignment, found.prediction_error)
    shares: dict[Regime, float] = dict.fromkeys(_HEADLINES, 0.0)
    count = len(found.kernel_drift)
    for drift, cosine, error in zip(*(s.tolist() for s in series), strict=True):
        one = Evidence(drift, cosine, evidence.parameter_movement, error, evidence.loss_growth)
        shares[_regime(one, marks)] += 1 / count
    drifts, cosines, errors = (_interval(s) for s in series)
    return Uncertainty(drifts, cosines, errors, shares, count)


def _interval(values: Tensor) -> tuple[float, float]:
    """Nearest ranks, so that infinite values do not make NaN by interpolation."""
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(values.double(), tails, interpolation="nearest").tolist()
    return low, high


def _ranges(uncertainty: Uncertainty | None) -> tuple[str, str, str]:
    if uncertainty is None:
        return "", "", ""
    drift, cosine, error = (
        uncertainty.kernel_drift,
        uncertainty.kernel_alignment,
        uncertainty.prediction_error,
    )
    return (
        f" ({drift[0]:.1%} to {drift[1]:.1%})",
        f" ({cosine[0]:.3f} to {cosine[1]:.3f})",
        f" ({error[0]:.1%} to {error[1]:.1%})",
    )


def _votes(evidence: Evidence, marks: Thresholds) -> list[Regime]:
    """What drift, alignment and prediction error speak for, in this order."""
    return [
        _vote(evidence.kernel_drift, marks.lazy_drift, marks.feature_drift),
        _vote(-evidence.kernel_alignment, -marks.lazy_alignment, -marks.feature_alignment),
        _vote(evidence.prediction_error, marks.lazy_error, marks.feature_error),
    ]


def _vote(value: float, lazy: float, feature: float) -> Regime:
    if value <= lazy:
        return "lazy"
    return "feature learning" if value >= feature else "between"
