"""The fully connected cases and their data: what both sides of the comparison share.

Imported in both environments, so it may use NumPy and the standard library alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BIAS",
    "FULLY_CONNECTED",
    "HIDDEN_WEIGHT",
    "OUTPUT_WEIGHT",
    "WIDTH",
    "Case",
    "checked_rows",
    "examples",
]

WIDTH = 512
HIDDEN_WEIGHT = 2.0
"""Second moment of a hidden weight times its fan-in."""
OUTPUT_WEIGHT = 1.0
"""Second moment of an output weight times its fan-in."""
BIAS = 0.09
"""Second moment of every bias."""

CLUSTERS = 10
CHECKED_ROWS = 64


@dataclass(frozen=True)
class Case:
    """One network and one size of data, and what the project set out to reach on it."""

    name: str
    activation: Literal["relu", "gelu"]
    hidden_layers: int
    n: int
    d: int
    target_ratio: float
    """Least peer time divided by our time that counts as reached."""
    target_floor: float | None = None
    """Largest our time divided by the floor that counts as reached; None where none was set."""


FULLY_CONNECTED: dict[str, Case] = {
    case.name: case
    for case in (
        Case("relu_depth3", "relu", 3, n=4000, d=784, target_ratio=5.0, target_floor=2.0),
        Case("relu_depth10", "relu", 10, n=2000, d=784, target_ratio=8.0),
        Case("gelu_depth3", "gelu", 3, n=2000, d=784, target_ratio=3.0),
    )
}


def examples(case: Case, seed: int = 0) -> NDArray[np.float32]:
    """Inputs of shape (n, d), float32, the same for the same seed.

    Independent Gaussian vectors in 784 dimensions are nearly orthogonal, and a kernel that is
    wrong away from a right angle would pass on them. These lie around ten centres at
    distances from a tenth of the centre's norm to twice it, with norms that differ by a factor of
    up to four: the angles go from about 0.15 to beyond a right angle.
    """
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((CLUSTERS, case.d))
    spread = generator.uniform(0.1, 2.0, size=(case.n, 1))
    norm = generator.uniform(0.5, 2.0, size=(case.n, 1))
    x = centres[generator.integers(CLUSTERS, size=case.n)]
    x = x + spread * generator.standard_normal((case.n, case.d))
    x *= norm / np.sqrt(np.mean(x**2, axis=1, keepdims=True))
    return x.astype(np.float32)


def checked_rows(case: Case, seed: int = 1) -> NDArray[np.int64]:
    """Indices, sorted, of the kernel rows on which the two sides are compared."""
    generator = np.random.default_rng(seed)
    rows: NDArray[Any] = generator.choice(case.n, size=min(CHECKED_ROWS, case.n), replace=False)
    return np.sort(rows).astype(np.int64)
