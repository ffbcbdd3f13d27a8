"""The cases of the finite-width benchmark, and their data.

Imported in both environments, so it may use NumPy and the standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from cases import Case
from convolutional import smooth_images
from fully_connected import clustered_vectors
from numpy.typing import NDArray

__all__ = ["CASES", "IMAGE", "SIDES", "TOKENS", "VOCABULARY", "FiniteCase", "Side", "inputs"]

Network = Literal["resnet18", "mlp_2048", "mlp_512", "vit", "gpt"]
Layout = Literal["full", "trace"]
Side = Literal["ours", "jacobian", "vectors", "neural_tangents", "floor"]

SIDES: dict[Side, str] = {
    "ours": "Tangency",
    "jacobian": "torch.func, Jacobian contraction",
    "vectors": "torch.func, NTK-vector products",
    "neural_tangents": "neural-tangents",
    "floor": "Gram products alone",
}
"""In words."""

IMAGE = (3, 32, 32)
TOKENS = 64
VOCABULARY = 1000


@dataclass(frozen=True)
class FiniteCase:
    """One network, one number of examples and one layout of the kernel.

    Attributes:
        name: of the case.
        network: key of `networks.NETWORKS`.
        n: examples; the kernel is that of all with all.
        out: outputs that count.
        layout: "full" is (n, n, out, out), "trace" the mean over outputs, (n, n).
        sides: that are measured, besides ours.
        targets: least time of a side divided by ours that counts as reached.
        memory: largest share of a side's peak memory that counts as reached.
        floor: largest time of ours divided by that of the floor that counts as reached.
    """

    name: str
    network: Network
    n: int
    out: int
    layout: Layout
    sides: tuple[Side, ...]
    targets: Mapping[Side, float] = field(default_factory=dict)
    memory: float | None = None
    floor: float | None = None


TUTORIAL: tuple[Side, Side] = ("jacobian", "vectors")
WITHOUT_VECTORS: tuple[Side, Side] = ("jacobian", "neural_tangents")
"""NTK-vector products of a trace cost what those of the full block cost."""
RESNET: Mapping[Side, float] = {"jacobian": 10.0, "vectors": 10.0, "neural_tangents": 1.0}
TRANSFORMER: Mapping[Side, float] = {"jacobian": 5.0, "vectors": 5.0}

CASES: dict[str, FiniteCase] = {
    case.name: case
    for case in (
        FiniteCase("resnet18_full_4", "resnet18", 4, 10, "full", TUTORIAL, RESNET, 0.25),
        FiniteCase(
            "resnet18_full_16",
            "resnet18",
            16,
            10,
            "full",
            (*TUTORIAL, "neural_tangents"),
            RESNET,
            0.25,
        ),
        FiniteCase("resnet18_trace_16", "resnet18", 16, 10, "trace", WITHOUT_VECTORS, RESNET, 0.25),
        FiniteCase(
            "mlp_2048",
            "mlp_2048",
            16,
            8,
            "full",
            (*TUTORIAL, "neural_tangents"),
            {"jacobian": 100.0, "vectors": 100.0, "neural_tangents": 1.0},
        ),
        FiniteCase("mlp_4000", "mlp_512", 4000, 1, "trace", ("floor",), floor=2.0),
        FiniteCase("vit", "vit", 16, 1, "trace", TUTORIAL, TRANSFORMER),
        FiniteCase("gpt", "gpt", 16, 1, "trace", TUTORIAL, TRANSFORMER),
    )
}
"""By name."""


def inputs(case: FiniteCase) -> NDArray[Any]:
    """Seeded data: images (n, 3, 32, 32), vectors (n, features) or tokens (n, 64)."""
    make: dict[Network, Callable[[], NDArray[Any]]] = {
        "resnet18": lambda: smooth_images(Case("", (), IMAGE, n=case.n)).x,
        "vit": lambda: smooth_images(Case("", (), IMAGE, n=case.n)).x,
        "mlp_2048": lambda: clustered_vectors(Case("", (), (3072,), n=case.n)).x,
        "mlp_512": lambda: clustered_vectors(Case("", (), (784,), n=case.n)).x,
        "gpt": lambda: np.random.default_rng(0).integers(VOCABULARY, size=(case.n, TOKENS)),
    }
    return make[case.network]()
