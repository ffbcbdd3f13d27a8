"""`geometry`: what the arrangement of the data does to a kernel matrix, in one result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tangency import drawing
from tangency.analysis.geometry.conditioning import conditioning
from tangency.analysis.geometry.distances import mean_over_outputs, squared_distances
from tangency.analysis.geometry.duplicates import NearDuplicates, near_duplicates
from tangency.analysis.geometry.label_noise import LabelNoise, label_noise
from tangency.analysis.geometry.target_fit import TargetFit, target_fit
from tangency.analysis.matrix import ArrayLike, Kernel, kernel_matrix
from tangency.analysis.matrix import targets as check_targets
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Geometry", "geometry"]


@dataclass(frozen=True, eq=False, repr=False)
class Geometry:
    """The data as the kernel sees it, and the targets on them.

    Attributes:
        eigenvalues: (N,) of the kernel matrix, descending.
        tolerance: eigenvalues of at most this size cannot be told from zero.
        nearest: (n,) index of each example's nearest neighbour.
        separation: (n,) normalised distance to it, sqrt(2 - 2 cos): 0 for a duplicate, 1.41 at a
            right angle.
        novelty: (n,) share of each example's features that the others do not span, 0 to 1.
        participation: (n,) share of each example in tr K^-1: large for those that make the kernel
            ill-conditioned. Sums to 1.
        duplicates: near-duplicates, with the eigenvalues that they force to be small.
        targets: how the targets lie in the kernel; None without targets.
        labels: which labels look like noise; None without targets.
        conflict: (p,) for each pair of `duplicates`, a lower bound |y_i - y_j|^2 / d^2 on the
            squared RKHS norm; None without targets.
    """

    eigenvalues: Tensor
    tolerance: float
    nearest: Tensor
    separation: Tensor
    novelty: Tensor
    participation: Tensor
    duplicates: NearDuplicates
    targets: TargetFit | None = None
    labels: LabelNoise | None = None
    conflict: Tensor | None = None

    @property
    def condition_number(self) -> float:
        """lambda_max / lambda_min; infinite where the latter cannot be told from zero."""
        smallest = float(self.eigenvalues[-1])
        return float(self.eigenvalues[0]) / smallest if smallest > self.tolerance else math.inf

    @property
    def culprits(self) -> Tensor:
        """(n,) examples in the order of their participation in the smallest modes."""
        return self.participation.argsort(descending=True, stable=True)

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name, results in results as dictionaries."""
        return {
            "eigenvalues": self.eigenvalues,
            "tolerance": self.tolerance,
            "condition_number": self.condition_number,
            "nearest": self.nearest,
            "separation": self.separation,
            "novelty": self.novelty,
            "participation": self.participation,
            "duplicates": self.duplicates.to_dict(),
            "targets": None if self.targets is None else self.targets.to_dict(),
            "labels": None if self.labels is None else self.labels.to_dict(),
            "conflict": self.conflict,
        }

    def figure(self) -> Figure:
        """Participation of each example, and the score of its label, against its separation.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        titles = ["Who makes the kernel ill-conditioned"]
        if self.labels is not None:
            titles.append("Whose label looks like noise")
        figure = drawing.panels("Geometry of the data", titles)
        names = [f"example {index}" for index in range(len(self.separation))]
        places = [(self.participation, "share in tr K^-1", drawing.EMPIRICAL)]
        if self.labels is not None:
            places.append((self.labels.scores, "standardised residual", drawing.INFINITE))
        for column, (values, name, colour) in enumerate(places, start=1):
            drawing.points(
                figure,
                self.separation,
                values,
                name,
                colour,
                text=names,
                size=5,
                row=1,
                col=column,
                legend=False,
            )
            figure.update_xaxes(title_text="distance to nearest neighbour", row=1, col=column)
            figure.update_yaxes(title_text=name, row=1, col=column)
        figure.update_yaxes(type="log", exponentformat="power", row=1, col=1)
        return figure

    def __repr__(self) -> str:
        n = len(self.separation)
        first = ", ".join(str(index) for index in self.culprits[:5].tolist())
        share = float(self.participation[self.culprits[: max(n // 10, 1)]].sum())
        lines = [
            f"Geometry of {n} examples",
            f"  eigenvalues       {float(self.eigenvalues[0]):.4g} to "
            f"{float(self.eigenvalues[-1]):.4g} (condition number {self.condition_number:.4g})",
            f"  separation        {float(self.separation.min()):.4g} at least, "
            f"{float(self.separation.median()):.4g} at the median",
            f"  near-duplicates   {self._pairs()}",
            f"  ill-conditioning  {share:.0%} of tr K^-1 from a tenth of the examples, "
            f"first {first}",
        ]
        return "\n".join(lines + self._target_lines())

    def _pairs(self) -> str:
        found = self.duplicates
        if len(found.pairs) == 0:
            return f"none within {found.threshold:g}"
        i, j = found.pairs[0].tolist()
        return (
            f"{len(found.pairs)} pairs in {len(found.groups)} groups within {found.threshold:g}; "
            f"examples {i} and {j} force lambda_min below {float(found.eigenvalue_bounds[0]):.3g}"
        )

    def _target_lines(self) -> list[str]:
        if self.targets is None or self.labels is None:
            return []
        fit = self.targets
        first = ", ".join(str(index) for index in self.labels.ranking[:5].tolist())
        return [
            f"  RKHS norm squared {fit.rkhs_norm:.4g}, {fit.norm_ratio:.3g} of that of noise",
            f"  hopeless modes    {fit.hopeless_modes} with {fit.hopeless_power:.2%} of the power "
            f"of the targets ({fit.budget:g} steps at learning rate {fit.learning_rate:.3g})",
            f"  suspicious labels {len(self.labels.suspects())} with a score of 2 or more, "
            f"first {first}",
        ]


def geometry(
    K: Kernel,
    y: ArrayLike | None = None,
    *,
    budget: float = 1000.0,
    learning_rate: float | None = None,
    threshold: float = 0.1,
) -> Geometry:
    """What the arrangement of the data does to the kernel matrix, and to learning the targets.

    Examples close together in feature space make eigenvalues small; targets that differ between
    them are what a small eigenvalue costs: a large RKHS norm, modes that training does not
    reach, an interpolant that swings between the points.

    Args:
        K: (n, n) or (n, n, out, out), of at least 2 examples.
        y: (n,) or (n, out), real.
        budget: training time in steps; what needs longer is hopeless.
        learning_rate: of these steps; by default n / lambda_max, half the largest stable one.
        threshold: normalised distance, sqrt(2 - 2 cos), up to which two examples are
            near-duplicates. 0.1 is an angle of 5.7 degrees.

    Raises:
        InvalidInput: a bad kernel, one of fewer than 2 examples or that is not positive
            semi-definite, targets that do not fit, or numbers out of range.
    """
    kernel = kernel_matrix(K, "K")
    if kernel.examples < 2:
        raise InvalidInput("K is of one example: geometry needs at least two.")
    if not 0 <= threshold < 2:
        raise InvalidInput(f"threshold is {threshold}, but must be between 0 and 2.")
    system = kernel.eigensystem
    if float(system.values[-1]) < -system.tolerance:
        raise InvalidInput(
            f"K is not positive semi-definite: its smallest eigenvalue is "
            f"{float(system.values[-1]):.3g}. Compute the kernel in float64."
        )
    labels = None if y is None else check_targets(y, kernel, "y")
    matrix = mean_over_outputs(kernel)
    distances = squared_distances(matrix, normalized=True).sqrt().fill_diagonal_(math.inf)
    separation, nearest = distances.min(dim=1)
    duplicates = near_duplicates(matrix, threshold)
    condition = conditioning(kernel)
    can_fit = labels is not None and float(system.values[0]) > system.tolerance
    fit = None if labels is None else target_fit(kernel, labels, budget, learning_rate)
    return Geometry(
        eigenvalues=kernel.result(system.values),
        tolerance=system.tolerance,
        nearest=nearest,
        separation=kernel.result(separation),
        novelty=kernel.result(condition.novelty),
        participation=kernel.result(condition.participation),
        duplicates=duplicates,
        targets=fit,
        labels=label_noise(kernel, y) if y is not None and can_fit else None,
        conflict=None if labels is None else duplicates.norm_bounds(labels.values),
    )
