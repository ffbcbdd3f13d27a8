"""Factors F of covariances, F F^T = K, with as many columns as K has rank."""

from __future__ import annotations

import torch
from torch import Tensor

from tangency.errors import TangencyError

__all__ = ["TOLERANCE", "Factor"]

TOLERANCE = 1e-10
"""Share of its variance up to which a coordinate counts as a function of those before it. What
rounding leaves of a singular covariance is smaller. No correlation is off by more than its root."""

INDEFINITE = 1e-6
"""Share of a variance by which a conditional variance may be negative, by rounding."""

BLOCK = 192
"""Rows that are factorised at a time."""


class Factor:
    """The Cholesky factor without the columns of coordinates that follow from those before them.

    Each row depends on the rows before it only, so that the factor of more examples begins with
    that of fewer. Equal coordinates have equal rows.

    Args:
        covariance: (N, N), positive semi-definite up to rounding; it is overwritten.
        sd: (N,), standard deviations beside which conditional variances count.
    """

    def __init__(self, covariance: Tensor, sd: Tensor) -> None:
        inverse = torch.where(sd > 0, 1 / torch.where(sd > 0, sd, 1.0), 0.0)
        if covariance.requires_grad:
            self._differentiable(covariance, sd, inverse)
            return
        lower = covariance.mul_(inverse[:, None]).mul_(inverse)
        kept: list[int] = []
        for start in range(0, len(sd), BLOCK):
            stop = min(start + BLOCK, len(sd))
            kept += [start + k for k in _extend(lower, kept, slice(start, stop))]
        self.kept: Tensor = torch.tensor(kept, dtype=torch.long, device=sd.device)
        """Coordinates that have a column, in order."""
        whole = lower if len(kept) == len(sd) else lower[:, : len(kept)].clone()
        self.matrix: Tensor = whole.mul_(sd[:, None])
        """F, (N, rank)."""

    def _differentiable(self, covariance: Tensor, sd: Tensor, inverse: Tensor) -> None:
        """The same, of the coordinates that have a column, by operations with derivatives."""
        with torch.no_grad():
            self.kept = Factor(covariance.detach().clone(), sd.detach()).kept
        correlation = inverse[:, None] * covariance * inverse
        columns = correlation[:, self.kept]
        triangle = torch.linalg.cholesky(columns[self.kept])
        solved = torch.linalg.solve_triangular(triangle, columns.T, upper=False)
        self.matrix = sd[:, None] * solved.T

    def white(self, noise: Tensor) -> Tensor:
        """The rows of white noise, one for each of the N coordinates, that F meets: `(rank, S)`."""
        return noise if len(self.kept) == len(noise) else noise[self.kept]

    def divide(self, block: Tensor) -> Tensor:
        """X with X F^T = block for a block `(M, N)` of covariances with other vectors."""
        triangle = self.matrix[self.kept]
        taken = block[:, self.kept]
        solved: Tensor = torch.linalg.solve_triangular(triangle, taken.T, upper=False)
        return solved.T


def _extend(lower: Tensor, kept: list[int], rows: slice) -> list[int]:
    """Replace some rows of a correlation matrix, up to the diagonal, by those of its factor.

    Returns:
        which of the rows have a column.
    """
    rank = len(kept)
    own = lower[rows, rows].clone()
    if rank:
        whole = kept[-1] == rank - 1
        triangle = lower[:rank, :rank] if whole else lower[kept, :rank]
        taken = lower[rows, :rank] if whole else lower[rows][:, kept]
        solved = torch.linalg.solve_triangular(triangle, taken.T, upper=False).T
        own -= solved @ solved.T
        lower[rows, :rank] = solved
    factor, failed = torch.linalg.cholesky_ex(own)
    if not failed and float(factor.diagonal().min()) ** 2 > TOLERANCE:
        new = list(range(len(own)))
    else:
        factor, new = _skipping(own)
    lower[rows, rank:] = 0
    lower[rows, rank : rank + len(new)] = factor
    return new


def _skipping(own: Tensor) -> tuple[Tensor, list[int]]:
    """The factor of a small matrix, `(M, rank)`, and which coordinates have a column."""
    rest = own.cpu().numpy().copy()
    columns, kept = [], []
    for k in range(len(rest)):
        variance = rest[k, k]
        if variance < -INDEFINITE:
            raise TangencyError(
                "a covariance of Gaussian values is not positive semi-definite to within rounding, "
                "so that no samples of them can be drawn; data in float64, or inputs whose norms "
                "differ less, may help."
            )
        if variance <= TOLERANCE:
            continue
        column = rest[:, k] / variance**0.5
        column[:k] = 0
        rest[k:, k:] -= column[k:, None] * column[k:]
        columns.append(torch.from_numpy(column).to(own))
        kept.append(k)
    factor = torch.stack(columns, dim=1) if columns else own[:, :0]
    return factor, kept
