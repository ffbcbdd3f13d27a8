"""What one case's rounds say together: times, ratios, and how far the kernels agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from cases import Case
from measurement import Timing, pooled
from numpy.typing import NDArray

__all__ = ["TOLERANCE", "CaseResult", "KernelErrors", "Rows", "compare_rows"]

TOLERANCE = 1e-4
"""Largest relative error of a float32 kernel entry that passes."""

Rows = dict[str, NDArray[Any]]
"""The compared rows by kernel name, ``nngp`` and ``ntk``, each of shape (rows, columns)."""


@dataclass(frozen=True)
class KernelErrors:
    """Largest relative entrywise differences over the compared rows of one kernel.

    The peer's diagonal is kept apart from its other entries: in float32 its ReLU NTK is known to
    be inaccurate there (the angle is recovered from a cancelled difference), and that must neither
    fail the comparison nor hide in it.
    """

    ours: float
    """Ours against float64, every entry."""
    peer_off_diagonal: float
    """The peer's float32 against float64, without the diagonal."""
    peer_diagonal: float | None
    """The peer's float32 against float64, the diagonal alone; None where there is none."""
    between: float
    """Ours against the peer's float32, without the diagonal."""

    @property
    def agree(self) -> bool:
        """Whether ours is right everywhere and equals the peer's float32 off the diagonal."""
        return self.ours <= TOLERANCE and self.between <= TOLERANCE


def relative(value: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """Entrywise relative difference, in float64; a value that is not finite counts as infinite."""
    exact = reference.astype(np.float64)
    error: NDArray[np.float64] = np.abs(value.astype(np.float64) - exact) / np.abs(exact)
    return np.where(np.isfinite(error), error, np.inf)


def compare_rows(
    ours: Rows, peer: Rows, reference: Rows, rows: NDArray[np.int64] | None
) -> dict[str, KernelErrors]:
    """Errors of both kernels on the compared rows.

    ``rows`` are their indices in the matrix; None where the columns are other inputs, and no entry
    is on a diagonal.
    """
    errors: dict[str, KernelErrors] = {}
    for name, exact in reference.items():
        diagonal = np.zeros(exact.shape, dtype=bool)
        if rows is not None:
            diagonal[np.arange(len(rows)), rows] = True
        peer_error = relative(peer[name], exact)
        errors[name] = KernelErrors(
            ours=largest(relative(ours[name], exact)),
            peer_off_diagonal=largest(peer_error[~diagonal]),
            peer_diagonal=largest(peer_error[diagonal]) if rows is not None else None,
            between=largest(relative(ours[name], peer[name])[~diagonal]),
        )
    return errors


def largest(values: NDArray[np.float64]) -> float:
    """The largest of some errors."""
    return float(values.max())


@dataclass(frozen=True)
class CaseResult:
    """One case measured: what the tables and the JSON file are written from."""

    case: Case
    compiled: list[Timing]
    """Ours with ``compile=True``, one timing a round."""
    default: Timing
    """Ours with ``compile="auto"``, one round."""
    eager: Timing
    """Ours with ``compile=False``, one round."""
    peer: list[Timing]
    """The peer, jitted, one timing a round."""
    floors: dict[str, Timing]
    errors: dict[str, KernelErrors]

    @property
    def ours_best_s(self) -> float:
        """Our shortest time of all rounds."""
        return pooled(self.compiled).best_s

    @property
    def ratio(self) -> float:
        """Best time of the peer divided by our best time: above 1 we are faster."""
        return pooled(self.peer).best_s / self.ours_best_s

    @property
    def median_ratio(self) -> float:
        """The same of the medians."""
        return pooled(self.peer).median_s / pooled(self.compiled).median_s

    @property
    def round_ratios(self) -> list[float]:
        """The same of the bests of each round: their spread is what a single round is worth."""
        return [
            peer.best_s / ours.best_s for peer, ours in zip(self.peer, self.compiled, strict=True)
        ]

    @property
    def agree(self) -> bool:
        """Whether both kernels agree."""
        return all(errors.agree for errors in self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, and what follows for every suite, ready for JSON."""
        return {
            "case": asdict(self.case),
            "compiled": [timing.to_dict() for timing in self.compiled],
            "default": self.default.to_dict(),
            "eager": self.eager.to_dict(),
            "peer": [timing.to_dict() for timing in self.peer],
            "floors": {name: timing.to_dict() for name, timing in self.floors.items()},
            "errors": {name: asdict(errors) for name, errors in self.errors.items()},
            "agree": self.agree,
            "ratio": self.ratio,
            "median_ratio": self.median_ratio,
            "round_ratios": self.round_ratios,
        }
