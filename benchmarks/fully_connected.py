"""The fully connected cases and their data."""

from __future__ import annotations

import numpy as np
from cases import Case, Inputs, Layer, Suite, by_name

__all__ = ["FULLY_CONNECTED", "hidden_layers"]

CLUSTERS = 10


def hidden_layers(activation: Layer, depth: int) -> tuple[Layer, ...]:
    """A network of ``depth`` hidden layers and its output."""
    return ("linear", activation) * depth + ("linear",)


def clustered_vectors(case: Case, seed: int = 0) -> Inputs:
    """Inputs of shape (n, d), float32, the same for the same seed.

    Independent Gaussian vectors in 784 dimensions are nearly orthogonal, and a kernel that is
    wrong away from a right angle would pass on them. These lie around ten centres at
    distances from a tenth of the centre's norm to twice it, with norms that differ by a factor of
    up to four: the angles go from about 0.15 to beyond a right angle.
    """
    (d,) = case.shape
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((CLUSTERS, d))
    spread = generator.uniform(0.1, 2.0, size=(case.n, 1))
    norm = generator.uniform(0.5, 2.0, size=(case.n, 1))
    x = centres[generator.integers(CLUSTERS, size=case.n)]
    x = x + spread * generator.standard_normal((case.n, d))
    x *= norm / np.sqrt(np.mean(x**2, axis=1, keepdims=True))
    return Inputs(x.astype(np.float32), None)


FULLY_CONNECTED = Suite(
    name="fully_connected",
    cases=by_name(
        [
            Case(
                "relu_depth3",
                hidden_layers("relu", 3),
                (784,),
                n=4000,
                target_ratio=5.0,
                target_floor=2.0,
            ),
            Case("relu_depth10", hidden_layers("relu", 10), (784,), n=2000, target_ratio=8.0),
            Case("gelu_depth3", hidden_layers("gelu", 3), (784,), n=2000, target_ratio=3.0),
        ]
    ),
    inputs=clustered_vectors,
    repetitions=7,
)
