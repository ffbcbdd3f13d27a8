"""Factors F of covariances, F F^T = K, with as many columns as K has rank."""

from __future__ import annotations

import torch
from torch import Tensor

from tangency.errors import TangencyError
from tangency.infinite.sampling.scratch import IN_MEMORY, Scratch

__all__ = ["TOLERANCE", "Factor"]

TOLERANCE = 1e-10
"""Share of its variance up to which a coordinate counts as a function of those before it. What
rounding leaves of a singular covariance is smaller. No correlation is off by more than its root."""

INDEFINITE = 1e-6
"""Share of a variance by which a conditional variance may be negative, by rounding."""

ROUNDING = 1e-14
"""The same, over the least conditional variance before: it is divided by."""

BLOCK = 192
"""Rows that are factorised at a time."""


class Factor:
    """The Cholesky factor without the columns of coordinates that follow from those before them.

    Each row depends on the rows before it only, so that the factor of more examples begins with
    that of fewer. Equal coordinates have equal rows.

    Args:
        covariance: (N, N), positive semi-definite up to rounding; it is overwritten.
        sd: (N,), standard deviations beside which conditional variances count.
        scratch: where the covariance lies.
    """

    def __init__(self, covariance: Tensor, sd: Tensor, scratch: Scratch = IN_MEMORY) -> None:
        self._scratch = scratch
        inverse = torch.where(sd > 0, 1 / torch.where(sd > 0, sd, 1.0), 0.0)
        if covariance.requires_grad:
            self._differentiable(covariance, sd, inverse)
            return
        for rows in scratch.rows(covariance):
            covariance[rows].mul_(inverse[rows, None]).mul_(inverse)
        kept = _factorise(covariance, scratch)
        self.kept: Tensor = torch.tensor(kept, dtype=torch.long, device=sd.device)
        """Coordinates that have a column, in order."""
        self.matrix: Tensor = covariance
        """F, (N, rank)."""
        if len(kept) < len(sd):
            self.matrix = scratch.empty(len(sd), len(kept), like=covariance)
            for rows in scratch.rows(covariance):
                self.matrix[rows] = covariance[rows, : len(kept)]
        for rows in scratch.rows(self.matrix):
            self.matrix[rows].mul_(sd[rows, None])

    def _differentiable(self, covariance: Tensor, sd: Tensor, inverse: Tensor) -> None:
        """The same, of the coordinates that have a column, by operations with derivatives."""
        with torch.no_grad():
            self.kept = Factor(covariance.detach().clone(), sd.detach()).kept
        correlation = inverse[:, None] * covariance * inverse
        columns = correlation[:, self.kept]
        triangle = torch.linalg.cholesky(columns[self.kept])
        solved = torch.linalg.solve_triangular(triangle, columns.T, upper=False)
        self.matrix = sd[:, None] * solved.T

    def times(self, white: Tensor) -> Tensor:
        """F z for columns z of white noise, `(rank, S)`."""
        if not self._scratch.holds(self.matrix):
            return self.matrix @ white
        product = self._scratch.empty(len(self.matrix), white.shape[1], like=white)
        for rows in self._scratch.rows(self.matrix):
            torch.mm(self.matrix[rows], white, out=product[rows])
        return product

    def white(self, noise: Tensor) -> Tensor:
        """The rows of white noise, one for each of the N coordinates, that F meets: `(rank, S)`."""
        return noise if len(self.kept) == len(noise) else noise[self.kept]

    def divide(self, block: Tensor) -> Tensor:
        """X with X F^T = block for a block `(M, N)` of covariances with other vectors."""
        triangle = self.matrix[self.kept]
        taken = block[:, self.kept]
        solved: Tensor = torch.linalg.solve_triangular(triangle, taken.T, upper=False)
        return solved.T


def _factorise(lower: Tensor, scratch: Scratch) -> list[int]:
    """Replace a correlation matrix by its factor, whose columns stand first.

    Returns:
        the coordinates that have a column.
    """
    kept: list[int] = []
    least = 1.0
    for rows in scratch.rows(lower):
        rank = len(kept)
        if rank == 0 and rows.stop == len(lower):
            return _in_blocks(lower)
        solved = _solved(lower, kept, rows, scratch)
        own = lower[rows, rows] - solved @ solved.T
        new = _in_blocks(own, least)
        least = min(least, _least_pivot(own, new))
        lower[rows, :rank] = solved
        lower[rows, rank : rank + len(new)] = own[:, : len(new)]
        lower[rows, rank + len(new) :] = 0
        kept += [rows.start + k for k in new]
    return kept


def _solved(lower: Tensor, kept: list[int], rows: slice, scratch: Scratch) -> Tensor:
    """What `rows` of a factor have in the columns of the rows before them, `(rows, rank)`."""
    solved = lower[rows][:, kept]
    step = rows.stop - rows.start
    for start in range(0, len(kept), step):
        some = slice(start, min(start + step, len(kept)))
        triangle = lower[kept[some], : some.stop]
        block = solved[:, some] - solved[:, :start] @ triangle[:, :start].T
        part = torch.linalg.solve_triangular(triangle[:, start:], block.T, upper=False)
        solved[:, some] = part.T
        scratch.touched(triangle.numel() * triangle.element_size())
    return solved


def _least_pivot(lower: Tensor, kept: list[int]) -> float:
    """The least conditional variance of the coordinates that have a column."""
    return float(lower[kept, range(len(kept))].square().min()) if kept else 1.0


def _in_blocks(lower: Tensor, least: float = 1.0) -> list[int]:
    """The same of a matrix in memory; `least` is the least conditional variance so far."""
    kept: list[int] = []
    for start in range(0, len(lower), BLOCK):
        rows = slice(start, min(start + BLOCK, len(lower)))
        kept += [start + k for k in _extend(lower, kept, rows, least)]
    return kept


def _extend(lower: Tensor, kept: list[int], rows: slice, least: float) -> list[int]:
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
        factor, new = _skipping(own, min(least, _least_pivot(lower, kept)))
    lower[rows, rank:] = 0
    lower[rows, rank : rank + len(new)] = factor
    return new


def _skipping(own: Tensor, least: float) -> tuple[Tensor, list[int]]:
    """The factor of a small matrix, `(M, rank)`, and which coordinates have a column.

    `least` is the least conditional variance of coordinates before.
    """
    rest = own.cpu().numpy().copy()
    columns, kept = [], []
    for k in range(len(rest)):
        variance = rest[k, k]
        if variance < -max(INDEFINITE, ROUNDING / least):
            raise TangencyError(
                "a covariance of Gaussian values is not positive semi-definite to within rounding, "
                "so that no samples of them can be drawn; data in float64, or inputs whose norms "
                "differ less, may help."
            )
        if variance <= TOLERANCE:
            continue
        least = min(least, float(variance))
        column = rest[:, k] / variance**0.5
        column[:k] = 0
        rest[k:, k:] -= column[k:, None] * column[k:]
        columns.append(torch.from_numpy(column).to(own))
        kept.append(k)
    factor = torch.stack(columns, dim=1) if columns else own[:, :0]
    return factor, kept
