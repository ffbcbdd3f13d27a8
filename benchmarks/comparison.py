"""What one case's rounds say together: times, ratios, the floor, and how far the kernels agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from cases import Case
from measurement import Timing
from numpy.typing import NDArray

__all__ = ["TOLERANCE", "CaseResult", "KernelErrors", "Rows", "compare_rows"]

TOLERANCE = 1e-4
"""Largest relative error of a float32 kernel entry that passes."""

OUTPUTS = 2
Rows = dict[str, NDArray[Any]]
"""The compared rows by kernel name, ``nngp`` and ``ntk``, each of shape (rows, n)."""


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
    peer_diagonal: float
    """The peer's float32 against float64, the diagonal alone."""
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
    ours: Rows, peer: Rows, reference: Rows, rows: NDArray[np.int64]
) -> dict[str, KernelErrors]:
    """Errors of both kernels on the compared rows; ``rows`` are their indices in the matrix."""
    errors: dict[str, KernelErrors] = {}
    for name, exact in reference.items():
        diagonal = np.zeros(exact.shape, dtype=bool)
        diagonal[np.arange(len(rows)), rows] = True
        peer_error = relative(peer[name], exact)
        errors[name] = KernelErrors(
            ours=float(relative(ours[name], exact).max()),
            peer_off_diagonal=float(peer_error[~diagonal].max()),
            peer_diagonal=float(peer_error[diagonal].max()),
            between=float(relative(ours[name], peer[name])[~diagonal].max()),
        )
    return errors


@dataclass(frozen=True)
class CaseResult:
    """One case measured: what the table and the JSON file are written from."""

    case: Case
    compiled: Timing
    eager: Timing
    peer: Timing
    floors: dict[str, Timing]
    errors: dict[str, KernelErrors]

    @property
    def ratio(self) -> float:
        """Best time of the peer divided by our best time: above 1 we are faster."""
        return self.peer.best_s / self.compiled.best_s

    @property
    def median_ratio(self) -> float:
        """The same of the medians."""
        return self.peer.median_s / self.compiled.median_s

    @property
    def floor_full_s(self) -> float:
        """Full input Gram matrix product and one pass over memory per output, in seconds."""
        return self.floors["gram_full"].best_s + OUTPUTS * self.floors["pass_fresh"].best_s

    @property
    def floor_half_s(self) -> float:
        """The same with both halved by symmetry: Gram by panels, half a pass per output."""
        return self.floors["gram_half"].best_s + OUTPUTS * self.floors["pass_fresh"].best_s / 2

    @property
    def agree(self) -> bool:
        """Whether both kernels agree."""
        return all(errors.agree for errors in self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything measured and derived, ready for JSON."""
        return {
            "case": asdict(self.case),
            "compiled": self.compiled.to_dict(),
            "eager": self.eager.to_dict(),
            "peer": self.peer.to_dict(),
            "floors": {name: timing.to_dict() for name, timing in self.floors.items()},
            "errors": {name: asdict(errors) for name, errors in self.errors.items()},
            "agree": self.agree,
            "ratio": self.ratio,
            "median_ratio": self.median_ratio,
            "floor_full_s": self.floor_full_s,
            "floor_half_s": self.floor_half_s,
            "times_floor_full": self.compiled.best_s / self.floor_full_s,
            "times_floor_half": self.compiled.best_s / self.floor_half_s,
        }
