"""One file per family of operations; importing this package registers all rules."""

from tangency.infinite.rules import (
    affine,
    aggregation,
    convolution,
    embedding,
    gathering,
    normalization,
    pointwise,
    pooling,
    positions,
    sampled,
    shuffling,
    structure,
)

__all__ = [
    "affine",
    "aggregation",
    "convolution",
    "embedding",
    "gathering",
    "normalization",
    "pointwise",
    "pooling",
    "positions",
    "sampled",
    "shuffling",
    "structure",
]
