"""Correlated Gaussian vectors, drawn one after another as they are needed."""

from __future__ import annotations

import torch
from torch import Tensor

from tangency.errors import TangencyError

__all__ = ["Factor", "GaussianVectors"]

JITTERS = (1e-12, 1e-10, 1e-8, 1e-6)
"""Added to the diagonal of a correlation matrix, the least first: what rounding can take from a
singular covariance. Equal coordinates then differ by the square root of it."""


class GaussianVectors:
    """Zero-mean jointly Gaussian vectors g_1, g_2, ..., of which each is drawn given all before.

    With white noise z_j, g_k = sum_j A_kj z_j, where A is the block Cholesky factor of the joint
    covariance. It grows by a row of blocks with each vector; blocks between vectors that are
    uncorrelated (also by way of others) are zero and left out.
    """

    def __init__(self) -> None:
        self._rows: list[dict[int, Tensor]] = []
        self._factors: list[Factor] = []
        self._noise: list[Tensor] = []

    def extend(self, own: Tensor, earlier: dict[int, Tensor], noise: Tensor) -> Tensor:
        """Draw the next vector.

        Args:
            own: its covariance, `(N, N)`, positive semi-definite up to rounding.
            earlier: its covariance `(N, N_j)` with the vectors j with which it is correlated.
            noise: independent standard normal numbers, `(N, S)`.

        Returns:
            S samples, `(N, S)`.
        """
        row = self._row(earlier)
        conditional = own
        for block in row.values():
            conditional = conditional - block @ block.T
        factor = Factor(conditional, own.diagonal().clamp_min(0).sqrt())
        samples = factor.multiply(noise)
        for j, block in row.items():
            samples = samples + block @ self._noise[j]
        self._rows.append(row)
        self._factors.append(factor)
        self._noise.append(noise)
        return samples

    def _row(self, earlier: dict[int, Tensor]) -> dict[int, Tensor]:
        """The blocks A_kj, j < k, by forward substitution."""
        row: dict[int, Tensor] = {}
        for j, factor in enumerate(self._factors):
            rest = earlier.get(j)
            for i, block in self._rows[j].items():
                if i in row:
                    known = row[i] @ block.T
                    rest = -known if rest is None else rest - known
            if rest is not None:
                row[j] = factor.divide(rest)
        return row


class Factor:
    """F = diag(sd) L with F F^T = covariance; L is a Cholesky factor of a correlation matrix."""

    def __init__(self, covariance: Tensor, sd: Tensor) -> None:
        self.sd = sd
        self.inverse = torch.where(sd > 0, 1 / torch.where(sd > 0, sd, 1.0), 0.0)
        correlation = self.inverse[:, None] * covariance * self.inverse
        correlation = (correlation + correlation.T) / 2
        certain = (sd == 0).to(sd)  # coordinates that are zero: any positive number does
        for jitter in JITTERS:
            lower, failed = torch.linalg.cholesky_ex(correlation + torch.diag(certain + jitter))
            if not failed:
                self.lower: Tensor = lower
                return
        raise TangencyError(
            "a covariance of Gaussian values is not positive semi-definite to within rounding, so "
            "that no samples of them can be drawn; data in float64, or inputs whose norms differ "
            "less, may help."
        )

    @property
    def matrix(self) -> Tensor:
        """F itself, lower triangular."""
        return self.sd[:, None] * self.lower

    def multiply(self, noise: Tensor) -> Tensor:
        """F noise."""
        return self.sd[:, None] * (self.lower @ noise)

    def divide(self, block: Tensor) -> Tensor:
        """block F^-T."""
        scaled = (block * self.inverse).T
        solved: Tensor = torch.linalg.solve_triangular(self.lower, scaled, upper=False)
        return solved.T
