"""Bounds on the test loss by the norm of the fitted function in the kernel's space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.generalization.ridge_regression import (
    RidgeRegression,
    ridge_regression,
    ridge_values,
)
from tangency.analysis.matrix import ArrayLike, Kernel
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["NormBounds", "norm_bounds"]

STEPS = 4
"""Radii between a number and its double, among which the bound chooses."""


@dataclass(frozen=True, eq=False, repr=False)
class NormBounds:
    """Bounds for kernel ridge regression with the loss min(1, |f(x) - y|), for each output.

    Without a leading dimension if the targets were (n,).

    Attributes:
        norm: (out,) |f|, the square root of alpha^T K alpha.
        arora: (out,) sqrt(2 y^T (K + ridge)^-1 y / n), the leading term of Arora, Du, Hu, Li &
            Wang 2019, theorem 5.1. It is a bound, up to terms that fall as 1 / sqrt(n), for their
            setting: a two-layer ReLU network of which the first layer is trained, inputs of norm
            1, so that tr K = n/2, no ridge. Elsewhere a measure for comparing targets. Infinite
            if no function of a singular kernel goes through the targets and there is no ridge.
        complexity: (out,) B sqrt(tr K) / n: bounds the empirical Rademacher complexity of the
            functions of norm up to B = `radius` (Bartlett & Mendelson 2002, lemma 22).
        radius: (out,) B: the least power of 2^(1/4) that is not below the norm.
        train_loss: (out,) mean of min(1, |f(x_i) - y_i|) on the training set.
        bound: (out,) train_loss + 2 complexity + 3 sqrt(log(2 / p) / (2n)), which the expected
            loss stays below with probability `confidence`, for all outputs at once.
        confidence: probability that the bound holds.
        examples: n.
    """

    norm: Tensor
    arora: Tensor
    complexity: Tensor
    radius: Tensor
    train_loss: Tensor
    bound: Tensor
    confidence: float
    examples: int

    @property
    def vacuous(self) -> Tensor:
        """(out,) True where the bound says nothing, as the loss is never above 1."""
        return ~(self.bound < 1)

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name."""
        return {
            "norm": self.norm,
            "arora": self.arora,
            "complexity": self.complexity,
            "radius": self.radius,
            "train_loss": self.train_loss,
            "bound": self.bound,
            "vacuous": self.vacuous,
            "confidence": self.confidence,
            "examples": self.examples,
        }

    def figure(self) -> Figure:
        """The parts of the bound for each output, beside the level from which it says nothing.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure("Norm-based bound", "output", "loss, at most 1", y_axis="log")
        outputs = torch.arange(self.bound.numel())
        parts = (
            (self.bound, "bound"),
            (2 * self.complexity, "2 x Rademacher complexity"),
            (self.arora, "sqrt(2 y^T K^-1 y / n)"),
            (self.train_loss, "training loss"),
        )
        for (values, name), colour in zip(parts, drawing.PALETTE, strict=False):
            drawing.points(figure, outputs, values.clamp(min=1e-6), name, colour, size=9)
        drawing.horizontal(figure, 1.0, "says nothing above")
        return figure

    def __repr__(self) -> str:
        worst = float(self.bound.max())
        count = int(self.vacuous.sum())
        verdict = f"vacuous for {count} of {self.bound.numel()} outputs" if count else "not vacuous"
        return (
            f"NormBounds(n = {self.examples}: norm {float(self.norm.max()):.4g}, "
            f"sqrt(2 y^T K^-1 y / n) = {float(self.arora.max()):.4g}, loss min(1, |f - y|) below "
            f"{worst:.4g} with probability {self.confidence:g}: {verdict})"
        )


def norm_bounds(
    K: Kernel, y: ArrayLike, ridge: float = 0.0, confidence: float = 0.95
) -> NormBounds:
    """Bound the expected loss of kernel ridge regression by its norm.

    With probability at least `confidence` over the n examples, for every output,

        E min(1, |f(x) - y|) <= mean_i min(1, |f(x_i) - y_i|) + 2 B sqrt(tr K) / n
                                + 3 sqrt(log(2 / p) / (2n)).

    Assumptions: examples are drawn independently from one distribution; the kernel was chosen
    without looking at them (a limit kernel, or the kernel at initialisation). It is the Rademacher
    bound (Bartlett & Mendelson 2002; Mohri, Rostamizadeh & Talwalkar 2018, theorem 3.3) for a
    loss that is 1-Lipschitz and in [0, 1], with the complexity of the ball of radius B. As the
    norm is known only after the fit, B is the next of the radii 2^(j/4), and p = (1 - confidence) /
    (4 out (|j| + 1)^2), whose sum over all j (and the zero function) is below 1 - confidence. For
    labels -1 and 1 the loss is above the rate of wrong signs.

    Such bounds are rarely below 1 for real tasks; `vacuous` says so. They still order targets:
    random labels have a larger norm than true ones.

    Args:
        K: (n, n); of a kernel (n, n, out, out), take the block of one output.
        y: (n,) or (n, out), real, as a rule in [-1, 1].
        ridge: as in (K + ridge)^-1.
        confidence: between 0 and 1.

    Raises:
        InvalidInput: a bad kernel, targets that do not fit, a negative ridge, or a confidence
            outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise InvalidInput(f"confidence is {confidence}, but must lie between 0 and 1.")
    ridges, _ = ridge_values(float(ridge))
    fit = ridge_regression(K, y, ridges)
    if fit.kernel.outputs is not None:
        raise InvalidInput(
            f"K has shape {fit.kernel.shape}: the bound is for one output. Pass K[:, :, a, a] and "
            "the targets of output a."
        )
    return _bounds(fit, float(ridge), confidence)


def _bounds(fit: RidgeRegression, ridge: float, confidence: float) -> NormBounds:
    n, power = fit.kernel.examples, fit.projections.square()
    inverse = fit.inverse(ridge)
    norm = ((fit.eigenvalues * inverse.square()) @ power).sqrt()
    arora = torch.where(_out_of_reach(fit, ridge, power), math.inf, inverse @ power)
    radius = torch.exp2((STEPS * norm.log2()).ceil() / STEPS)
    complexity = radius * fit.kernel.matrix.trace().clamp(min=0).sqrt() / n
    residuals = fit.system.vectors @ (fit.residual_factors(ridge)[:, None] * fit.projections)
    train = residuals.abs().clamp(max=1).mean(dim=0)
    level = _level(radius, confidence, len(norm))
    bound = train + 2 * complexity + 3 * ((math.log(2) - level.log()) / (2 * n)).sqrt()
    return NormBounds(
        norm=fit.per_output(norm),
        arora=fit.per_output((2 * arora / n).sqrt()),
        complexity=fit.per_output(complexity),
        radius=fit.per_output(radius),
        train_loss=fit.per_output(train),
        bound=fit.per_output(bound),
        confidence=confidence,
        examples=n,
    )


def _level(radius: Tensor, confidence: float, outputs: int) -> Tensor:
    """(out,) probability of failure that is spent on the ball of each output's radius."""
    exponent = (STEPS * torch.where(radius > 0, radius, 1.0).log2()).round()
    return (1 - confidence) / (4 * outputs * (exponent.abs() + 1).square())


def _out_of_reach(fit: RidgeRegression, ridge: float, power: Tensor) -> Tensor:
    """(out,) whether the targets have power in modes that no function of the kernel reaches."""
    null = fit.null(ridge)
    limit = power.sum(dim=0) * fit.system.null_power_limit(1.0)
    return (power[null] > limit).any(dim=0)
