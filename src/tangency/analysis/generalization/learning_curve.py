"""Learning curves: predicted test error against the number of examples, the ridge or the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.generalization.eigenlearning import eigenlearning
from tangency.analysis.generalization.measured_curve import MeasuredLearningCurve
from tangency.analysis.generalization.population import Population
from tangency.analysis.numbers import as_numbers
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["LearningCurve", "Numbers", "curve_points", "learning_curve"]

Numbers: TypeAlias = float | Sequence[float] | Tensor | npt.NDArray[Any]
"""One number, or many in one dimension."""

_AXES = {"sizes": "training examples", "ridge": "ridge", "noise": "noise variance"}


@dataclass(frozen=True, eq=False, repr=False)
class LearningCurve:
    """Predicted errors of kernel ridge regression, on average over training sets.

    Errors are mean squared: mean over examples, sum over outputs.

    Attributes:
        sizes, ridge, noise: (S,) where on the curve; what was given as one number is repeated.
        kappa: (S,) effective regularisation.
        learnability: (S,) fraction of the target's power that is learned.
        test_error: (S,) against noisy targets; infinite at the peak of a double descent without
            ridge.
        train_error: (S,).
        along: "sizes", "ridge" or "noise": what varies.
    """

    sizes: Tensor
    ridge: Tensor
    noise: Tensor
    kappa: Tensor
    learnability: Tensor
    test_error: Tensor
    train_error: Tensor
    along: str

    @property
    def clean_test_error(self) -> Tensor:
        """(S,) test error against targets without noise."""
        return self.test_error - self.noise

    def to_dict(self) -> dict[str, Tensor | str]:
        """All attributes by name."""
        return {
            "sizes": self.sizes,
            "ridge": self.ridge,
            "noise": self.noise,
            "kappa": self.kappa,
            "learnability": self.learnability,
            "test_error": self.test_error,
            "train_error": self.train_error,
            "along": self.along,
        }

    def figure(self, measured: MeasuredLearningCurve | None = None) -> Figure:
        """Errors along the curve, beside measured ones if they are given.

        Raises:
            InvalidInput: measured errors beside a curve along the ridge or the noise.
            MissingDependency: Plotly is not installed.
        """
        if measured is not None and self.along != "sizes":
            raise InvalidInput(f"measured curves run along sizes, but this one along {self.along}.")
        figure = drawing.new_figure(
            "Learning curve", _AXES[self.along], "mean squared error", x_axis="log", y_axis="log"
        )
        x = getattr(self, self.along)
        shown = x > 0
        drawing.line(figure, x[shown], self.test_error[shown], "test, predicted")
        seen = shown & (self.train_error > 0)
        if bool(seen.any()):
            drawing.line(
                figure, x[seen], self.train_error[seen], "train, predicted", drawing.INFINITE
            )
        if measured is not None:
            measured.draw(figure)
        return figure

    def __repr__(self) -> str:
        x = getattr(self, self.along)
        last = int(x.argmax())
        return (
            f"LearningCurve({len(x)} points along {self.along} {float(x.min()):.4g} to "
            f"{float(x.max()):.4g}: test error {float(self.test_error[int(x.argmin())]):.4g} to "
            f"{float(self.test_error[last]):.4g}, at worst {float(self.test_error.max()):.4g})"
        )


def learning_curve(
    population: Population, sizes: Numbers, ridge: Numbers = 0.0, noise: Numbers = 0.0
) -> LearningCurve:
    """Predicted train and test error of kernel ridge regression against n, ridge or noise.

    The eigenlearning equations (see `eigenlearning`) at every point. One of the three may be a
    vector, or several of one length. Where the population is not known, but a kernel matrix of a
    sample is, `estimated_learning_curve` takes its place.

    Args:
        population: the kernel and the target over the distribution; see `population`.
        sizes: numbers of training examples n.
        ridge: as in (K + ridge)^-1, K not divided by n.
        noise: variance of the labels' noise, summed over outputs.

    Raises:
        InvalidInput: numbers out of range, or vectors of different lengths.
    """
    points, along = curve_points(sizes, ridge, noise)
    found = [eigenlearning(population, *point) for point in points.T.tolist()]
    n, ridges, noises = points
    return LearningCurve(
        sizes=n,
        ridge=ridges,
        noise=noises,
        kappa=_numbers(point.kappa for point in found),
        learnability=_numbers(point.target_learnability for point in found),
        test_error=_numbers(point.test_error for point in found),
        train_error=_numbers(point.train_error for point in found),
        along=along,
    )


def curve_points(sizes: Numbers, ridge: Numbers, noise: Numbers) -> tuple[Tensor, str]:
    """(3, S) sizes, ridges and noises, each repeated where one is given, and which one varies.

    Raises:
        InvalidInput: no numbers, more than one dimension, or vectors of different lengths.
    """
    given = {"sizes": as_numbers(sizes, "sizes")[0], "ridge": as_numbers(ridge, "ridge")[0]}
    given["noise"] = as_numbers(noise, "noise")[0]
    lengths = {len(values) for values in given.values()} - {1}
    if len(lengths) > 1:
        raise InvalidInput(f"sizes, ridge and noise have different lengths: {sorted(lengths)}.")
    count = lengths.pop() if lengths else 1
    along = next((name for name, values in given.items() if len(values) > 1), "sizes")
    return torch.stack([values.expand(count) for values in given.values()]), along


def _numbers(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
