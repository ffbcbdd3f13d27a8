"""One file per family of operations; importing this package registers all rules."""

from tangency.infinite.rules import (
    affine,
    aggregation,
    attention,
    channel_norms,
    convolution,
    embedding,
    gathering,
    matmul,
    normalization,
    pointwise,
    pooling,
    positions,
    sampled,
    selection,
    shuffling,
    structure,
)

__all__ = [
    "affine",
    "aggregation",
    "attention",
    "channel_norms",
    "convolution",
    "embedding",
    "gathering",
    "matmul",
    "normalization",
    "pointwise",
    "pooling",
    "positions",
    "sampled",
    "selection",
    "shuffling",
    "structure",
]
