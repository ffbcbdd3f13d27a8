"""What the sides of one finite-width case say together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finite.cases import FiniteCase, Side
from finite.side import Measured

__all__ = ["TOLERANCE", "FiniteResult"]

TOLERANCE = 1e-4
"""Largest difference of two float32 kernels, relative to sqrt(K_ii K_jj), that passes."""


@dataclass(frozen=True)
class FiniteResult:
    """One case measured.

    Attributes:
        case: it.
        measured: of each side.
        differences: of our kernel from each other side's, relative to sqrt(K_ii K_jj), the largest.
    """

    case: FiniteCase
    measured: Mapping[Side, Measured]
    differences: Mapping[Side, float]

    @classmethod
    def of(
        cls,
        case: FiniteCase,
        measured: Mapping[Side, Measured],
        kernels: Mapping[Side, NDArray[Any]],
    ) -> FiniteResult:
        """With the kernels (rows, n, ...) compared."""
        others = {side: kernel for side, kernel in kernels.items() if side != "ours"}
        ours = kernels["ours"]
        differences = {side: difference(ours, kernel) for side, kernel in others.items()}
        return cls(case, measured, differences)

    @property
    def ours(self) -> Measured:
        """Our side."""
        return self.measured["ours"]

    @property
    def agree(self) -> bool:
        """Whether all sides that ran have the same kernel."""
        return all(value <= TOLERANCE for value in self.differences.values())

    def ratio(self, side: Side) -> float | None:
        """Best time of a side divided by ours; None where it did not run."""
        other = self.measured[side]
        return None if other.failure else other.best_s / self.ours.best_s

    def memory_share(self, side: Side) -> float | None:
        """Our peak memory divided by a side's; None where it did not run."""
        other = self.measured[side]
        return None if other.failure else self.ours.memory / max(1, other.memory)


def difference(ours: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest difference relative to sqrt(K_ii K_jj); n first rows of n columns.

    Of outputs the scale is the mean of those of one example, which one entry alone may be far
    below.
    """
    a, b = (kernel.astype(np.float64) for kernel in (ours, other))
    examples = np.arange(min(a.shape[:2]))
    own = a[examples, examples]
    scale = np.sqrt(np.trace(own, axis1=1, axis2=2) / own.shape[-1] if own.ndim == 3 else own)
    square = np.abs(a - b)[:, : len(examples)]
    if square.ndim == 4:
        square = square.max(axis=(2, 3))
    found = square / (scale[:, None] * scale[None])
    return float(found.max()) if np.isfinite(found).all() else float("inf")
