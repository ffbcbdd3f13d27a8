"""Labels that look like noise: what the other examples say against them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.generalization.held_out import held_out_residuals
from tangency.analysis.generalization.ridge_path import ridge_path
from tangency.analysis.generalization.ridge_regression import (
    RidgeRegression,
    ridge_regression,
    ridge_values,
)
from tangency.analysis.matrix import ArrayLike, Kernel, kernel_matrix
from tangency.errors import SingularKernel

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["LabelNoise", "label_noise"]


@dataclass(frozen=True, eq=False, repr=False)
class LabelNoise:
    """Leave-one-out residuals, standardised and ranked.

    Attributes:
        ridge: of the regression.
        residuals: (n, out) or (n,): target minus what the other examples predict.
        scores: (n,) size of the residual over its expected size, with root mean square 1.
        ranking: (n,) indices of the examples, the most suspicious label first.
    """

    ridge: float
    residuals: Tensor
    scores: Tensor
    ranking: Tensor

    def suspects(self, score: float = 2.0) -> Tensor:
        """Indices of the examples with at least this score, the most suspicious first."""
        return self.ranking[self.scores[self.ranking] >= score]

    def to_dict(self) -> dict[str, Tensor | float]:
        """All attributes by name."""
        return {
            "ridge": self.ridge,
            "residuals": self.residuals,
            "scores": self.scores,
            "ranking": self.ranking,
        }

    def figure(self) -> Figure:
        """The scores in descending order: an elbow separates suspects from the rest.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure("Labels that look like noise", "rank", "standardised residual")
        ranked = self.scores[self.ranking]
        names = [f"example {index}" for index in self.ranking.tolist()]
        drawing.points(
            figure, torch.arange(1, len(ranked) + 1), ranked, "example", text=names, size=5
        )
        drawing.horizontal(figure, 2.0, "twice the typical size")
        return figure

    def __repr__(self) -> str:
        first = ", ".join(str(index) for index in self.ranking[:5].tolist())
        return (
            f"LabelNoise({len(self.scores)} labels, ridge {self.ridge:.4g}: "
            f"{len(self.suspects())} with a score of 2 or more; most suspicious: {first})"
        )


def label_noise(K: Kernel, y: ArrayLike, ridge: float | None = None) -> LabelNoise:
    """Rank labels by how much the other examples speak against them.

    The residual of example i when it is left out, r_i = (G_ii)^-1 (G y)_i with G = (K + ridge)^-1,
    has the covariance (G_ii)^-1, up to a factor, if the targets are drawn from the Gaussian process
    with noise of variance `ridge` (Rasmussen & Williams 2006, eq. 5.12). The score is
    sqrt(r_i^T G_ii r_i), so that an example far from all others may miss by more than one in
    their midst.

    Args:
        K: (n, n) or (n, n, out, out).
        y: (n,) or (n, out), real; for classes, one-hot labels minus their mean serve well.
        ridge: positive, or zero for a kernel that is not singular; by default the one of least
            leave-one-out error.

    Raises:
        InvalidInput: a bad kernel, targets that do not fit, or a ridge that is negative.
        SingularKernel: a singular kernel without ridge: residuals then have no expected size.
    """
    kernel = kernel_matrix(K, "K")
    chosen = ridge_path(kernel, y).best() if ridge is None else float(ridge)
    values, _ = ridge_values(chosen)
    fit = ridge_regression(kernel, y, values)
    if bool(fit.null(chosen).any()):
        raise SingularKernel(
            f"K is singular, and without a ridge above {fit.system.tolerance:.3g} residuals have "
            "no expected size: pass one, or None to have it chosen."
        )
    singles = list(torch.arange(kernel.examples, device=kernel.matrix.device)[:, None])
    residuals = held_out_residuals(fit, chosen, singles)
    squares = _squares(fit, chosen, residuals)
    mean = float(squares.mean())
    scores = (squares / mean).sqrt() if mean > 0 else squares
    return LabelNoise(
        ridge=chosen,
        residuals=fit.shaped(residuals),
        scores=kernel.result(scores),
        ranking=scores.argsort(descending=True, stable=True),
    )


def _squares(fit: RidgeRegression, ridge: float, residuals: Tensor) -> Tensor:
    """(n,) r_i^T G_ii r_i."""
    kernel = fit.kernel
    if kernel.outputs is None:
        own = fit.system.vectors.square() @ fit.inverse(ridge)
        return residuals.square().sum(dim=1) * own
    rows = fit.system.vectors.reshape(kernel.examples, kernel.outputs, -1)
    reach = (residuals[:, None, :] @ rows)[:, 0]  # the residual in the eigenmodes
    return reach.square() @ fit.inverse(ridge)
