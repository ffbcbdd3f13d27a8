"""How lazy a training run was: measures of change, and a verdict with its reasons.

Lazy training is training in which the network stays its own linearisation: the kernel stands
still and predicts the outputs (Chizat, Oyallon & Bach 2019). In feature learning the kernel turns
towards the task.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tangency.analysis.matrix import ArrayLike, Kernel, KernelMatrix, kernel_matrix, targets
from tangency.errors import InvalidInput

__all__ = [
    "Evidence",
    "Regime",
    "Thresholds",
    "Verdict",
    "alignment",
    "kernel_drift",
    "prediction_error",
    "target_alignment",
    "verdict",
]

Regime: TypeAlias = Literal["lazy", "between", "feature learning"]


def kernel_drift(K0: Kernel, K1: Kernel) -> float:
    """Relative change |K1 - K0|_F / |K0|_F of a kernel matrix, (n, n) or (n, n, out, out).

    Raises:
        InvalidInput: matrices that are no kernel matrices, differ in shape, or K0 = 0.
    """
    first, second = _pair(K0, K1)
    scale = _norm(first.matrix, "K0")
    return float((second.matrix - first.matrix).norm()) / scale


def alignment(K0: Kernel, K1: Kernel) -> float:
    """Cosine <K0, K1>_F / (|K0|_F |K1|_F) of the angle between two kernel matrices.

    It does not see a change of scale; between positive semi-definite matrices it is in [0, 1].

    Raises:
        InvalidInput: matrices that are no kernel matrices, differ in shape, or are zero.
    """
    first, second = _pair(K0, K1)
    return _cosine(first.matrix, second.matrix, ("K0", "K1"))


def target_alignment(K: Kernel, y: ArrayLike, centered: bool = False) -> float:
    """Alignment of a kernel matrix with the ideal kernel y y^T of the targets.

    <K, y y^T>_F / (|K|_F |y y^T|_F) (Cristianini et al. 2001); `centered` subtracts the mean
    over examples from kernel and targets first (Cortes, Mohri & Rostamizadeh 2012, definition 4).

    Args:
        K: (n, n) or (n, n, out, out).
        y: (n,) or (n, out), real.

    Raises:
        InvalidInput: a bad kernel or bad targets, or one of them (after centring) zero.
    """
    kernel = kernel_matrix(K, "K")
    values = targets(y, kernel, "y").values
    matrix = kernel.matrix
    if centered:
        scale = float(matrix.norm()), float(values.norm())
        matrix = _center(kernel)
        values = values - values.mean(dim=0)
        _refuse_constant(matrix, values, scale)
    columns = kernel.flatten(values)
    return _cosine(matrix, columns @ columns.mT, ("K", "y"))


def prediction_error(predicted: Tensor, actual: Tensor, scale: Tensor | float) -> float:
    """Distance |predicted - actual| of two outputs, relative to `scale`.

    Args:
        predicted: outputs of the linearised network, any shape.
        actual: outputs of the real network, same shape.
        scale: what counts as 1: a norm, or a tensor shaped as the outputs whose norm is taken.
            For `Evidence`, the distance moved in function space, `actual - f0`.

    Returns:
        The relative error; infinite if the prediction overflowed.

    Raises:
        InvalidInput: shapes that differ, NaN, or a scale that is not positive.
    """
    if predicted.shape != actual.shape:
        raise InvalidInput(
            f"predicted has shape {tuple(predicted.shape)}, but actual {tuple(actual.shape)}."
        )
    distance = float((predicted.detach().double() - actual.detach().double()).norm())
    if isinstance(scale, Tensor):
        if scale.dim() and scale.shape != actual.shape:
            raise InvalidInput(
                f"scale has shape {tuple(scale.shape)}, but the outputs {tuple(actual.shape)}."
            )
        scale = float(scale.detach().double().norm())
    if math.isnan(distance):
        raise InvalidInput("predicted or actual holds NaN (or both are infinite).")
    if not (math.isfinite(scale) and scale > 0):
        raise InvalidInput(f"scale is {scale}, but must be positive: did the outputs move at all?")
    return distance / scale


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on; all four are plain ratios.

    Attributes:
        kernel_drift: |K1 - K0|_F / |K0|_F from before to after training.
        kernel_alignment: cosine of the angle between K0 and K1, in [-1, 1].
        parameter_movement: |theta_1 - theta_0| / |theta_0|; infinite for a start at zero.
        prediction_error: distance of the linearised network's outputs from the real ones over
            the distance that the real ones moved.

    Raises:
        InvalidInput: a negative or NaN ratio, or an alignment outside [-1, 1].
    """

    kernel_drift: float
    kernel_alignment: float
    parameter_movement: float
    prediction_error: float

    def __post_init__(self) -> None:
        for name in ("kernel_drift", "parameter_movement", "prediction_error"):
            value = getattr(self, name)
            if not value >= 0:
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

    Raises:
        InvalidInput: a pair of marks in the wrong order.
    """

    lazy_drift: float = 0.1
    feature_drift: float = 0.5
    lazy_alignment: float = 0.99
    feature_alignment: float = 0.9
    lazy_error: float = 0.1
    feature_error: float = 0.5

    def __post_init__(self) -> None:
        ordered = (
            0 <= self.lazy_drift < self.feature_drift,
            -1 <= self.feature_alignment < self.lazy_alignment <= 1,
            0 <= self.lazy_error < self.feature_error,
        )
        if not all(ordered):
            raise InvalidInput(f"each lazy mark must come before its feature mark: {self}.")


@dataclass(frozen=True, repr=False)
class Verdict:
    """A regime, and what it rests on.

    Attributes:
        regime: "lazy", "between" or "feature learning".
        evidence: the measures.
        thresholds: the marks that they were held against.
    """

    regime: Regime
    evidence: Evidence
    thresholds: Thresholds = field(default_factory=Thresholds)

    def explain(self) -> str:
        """The verdict and its reasons in plain sentences, one a line."""
        evidence, marks = self.evidence, self.thresholds
        votes = _votes(evidence, marks)
        return "\n".join(
            [
                _HEADLINES[self.regime],
                f"The kernel changed by {evidence.kernel_drift:.1%} of its norm: "
                f"{votes[0]} (lazy up to {marks.lazy_drift:.0%}, "
                f"feature learning from {marks.feature_drift:.0%}).",
                f"Its alignment with the initial kernel is {evidence.kernel_alignment:.3f}: "
                f"{votes[1]} (lazy from {marks.lazy_alignment:g}, "
                f"feature learning down from {marks.feature_alignment:g}).",
                f"The linearised network missed the real outputs by "
                f"{evidence.prediction_error:.1%} of the way that they went: {votes[2]} "
                f"(lazy up to {marks.lazy_error:.0%}, "
                f"feature learning from {marks.feature_error:.0%}).",
                f"The parameters moved by {evidence.parameter_movement:.2%} of their norm "
                "(this does not count: a model that is linear in its parameters may move far).",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Regime, evidence and thresholds as plain numbers and text."""
        return {
            "regime": self.regime,
            "evidence": asdict(self.evidence),
            "thresholds": asdict(self.thresholds),
        }

    def __repr__(self) -> str:
        evidence = self.evidence
        return (
            f"Verdict({self.regime}: kernel drift {evidence.kernel_drift:.3g}, "
            f"alignment {evidence.kernel_alignment:.3g}, "
            f"prediction error {evidence.prediction_error:.3g}, "
            f"parameter movement {evidence.parameter_movement:.3g})"
        )


_HEADLINES: dict[Regime, str] = {
    "lazy": "Training was lazy: the network stayed close to its linearisation.",
    "between": "Training was between lazy and feature learning.",
    "feature learning": "The network learned features: its kernel changed with the task.",
}


def verdict(evidence: Evidence, thresholds: Thresholds | None = None) -> Verdict:
    """Lazy, between or feature learning.

    Kernel drift, kernel alignment and prediction error each speak for one of the three. Lazy needs
    all three; feature learning needs two of them (a kernel may be rescaled without turning, and a
    linearised network may fit the same training targets by another way). Parameter movement is
    reported but does not count: it depends on the scale of the start.
    """
    marks = Thresholds() if thresholds is None else thresholds
    votes = _votes(evidence, marks)
    regime: Regime = "between"
    if all(vote == "lazy" for vote in votes):
        regime = "lazy"
    elif votes.count("feature learning") >= 2:
        regime = "feature learning"
    return Verdict(regime, evidence, marks)


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


def _pair(K0: Kernel, K1: Kernel) -> tuple[KernelMatrix, KernelMatrix]:
    first, second = kernel_matrix(K0, "K0"), kernel_matrix(K1, "K1")
    if (first.examples, first.outputs) != (second.examples, second.outputs):
        raise InvalidInput(f"K0 has shape {tuple(K0.shape)}, but K1 {tuple(K1.shape)}.")
    return first, second


def _norm(matrix: Tensor, name: str) -> float:
    norm = float(matrix.norm())
    if norm == 0:
        raise InvalidInput(f"{name} is zero: it has no direction, and nothing is relative to it.")
    return norm


def _cosine(first: Tensor, second: Tensor, names: tuple[str, str]) -> float:
    unit = first / _norm(first, names[0]), second / _norm(second, names[1])
    return min(1.0, max(-1.0, float((unit[0] * unit[1]).sum())))


def _center(kernel: KernelMatrix) -> Tensor:
    """H K H with H = I - 1/n over examples, for each pair of outputs."""
    n, out = kernel.examples, kernel.outputs or 1
    blocks = kernel.matrix.reshape(n, out, n, out)
    blocks = blocks - blocks.mean(dim=0, keepdim=True)
    blocks = blocks - blocks.mean(dim=2, keepdim=True)
    return blocks.reshape(n * out, n * out)


def _refuse_constant(matrix: Tensor, values: Tensor, scale: tuple[float, float]) -> None:
    """Centring leaves rounding, not zeros, of what is the same for all examples."""
    limit = 10 * torch.finfo(torch.float64).eps
    for name, norm, whole in zip("Ky", (matrix.norm(), values.norm()), scale, strict=True):
        if float(norm) <= limit * whole:
            raise InvalidInput(
                f"{name} is the same for all examples: nothing is left of it after centring."
            )
