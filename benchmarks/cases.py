"""What a case and a suite are, and the scales that both sides of the comparison are given.

Imported in both environments, so it may use NumPy and the standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BIAS",
    "HIDDEN_WEIGHT",
    "OUTPUT_WEIGHT",
    "Case",
    "Inputs",
    "Layer",
    "Suite",
    "by_name",
    "checked_rows",
]

HIDDEN_WEIGHT = 2.0
"""Second moment of a hidden weight times its fan-in."""
OUTPUT_WEIGHT = 1.0
"""Second moment of an output weight times its fan-in."""
BIAS = 0.09
"""Second moment of every bias."""

CHECKED_ROWS = 64

Layer = Literal["linear", "conv", "relu", "gelu", "pool", "global_pool", "flatten"]
"""``conv`` keeps the size (stride 1, zero padding); ``pool`` is the average of 2 x 2 pixels.

The last ``linear`` of a network is its output, one number; all others are hidden.
"""


@dataclass(frozen=True)
class Case:
    """One network and one size of data, and what the project set out to reach on it."""

    name: str
    layers: tuple[Layer, ...]
    shape: tuple[int, ...]
    """Of one input: (features,), or (channels, height, width)."""
    n: int
    cross: bool = False
    """The kernel of n inputs with n others, instead of the symmetric one of n inputs."""
    filter_size: int = 3
    """Side of the convolutions' filters, odd."""
    target_ratio: float = 1.0
    """Least peer time divided by our time that counts as reached."""
    target_floor: float | None = None
    """Largest our time divided by the floor that counts as reached; None where none was set."""
    target_ns: float | None = None
    """Largest time per position pair and layer, in nanoseconds."""
    target_s: float | None = None
    """Largest time of the whole kernel, in seconds."""

    @property
    def size(self) -> str:
        """The size of the kernel matrix in words: ``16``, or ``1 x 1`` with other columns."""
        return f"{self.n} x {self.n}" if self.cross else str(self.n)


class Inputs(NamedTuple):
    """Inputs of the rows of the kernel, and of its columns where these are others."""

    x: NDArray[np.float32]
    other: NDArray[np.float32] | None


@dataclass(frozen=True)
class Suite:
    """Cases that are measured alike and stand in one section of the results."""

    name: str
    cases: dict[str, Case]
    inputs: Callable[[Case], Inputs]
    repetitions: int
    """Timed calls in a turn, unless the command line says otherwise."""


def by_name(cases: Sequence[Case]) -> dict[str, Case]:
    """The cases under their names, in order."""
    return {case.name: case for case in cases}


def checked_rows(case: Case, seed: int = 1) -> NDArray[np.int64]:
    """Indices, sorted, of the kernel rows on which the two sides are compared."""
    generator = np.random.default_rng(seed)
    rows: NDArray[Any] = generator.choice(case.n, size=min(CHECKED_ROWS, case.n), replace=False)
    return np.sort(rows).astype(np.int64)
