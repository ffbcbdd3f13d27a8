"""The convolutional cases, their data, and how many pairs of positions each asks for."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from cases import Case, Inputs, Layer, Suite, by_name
from numpy.typing import NDArray

__all__ = [
    "CONV",
    "CONVOLUTIONAL",
    "MYRTLE_5",
    "PositionPairs",
    "flattened_layers",
    "pooled_layers",
    "position_pairs",
    "smooth_images",
]

PROTOTYPES = 3
CONV: tuple[Layer, ...] = ("conv", "relu")
MYRTLE_5: tuple[Layer, ...] = (
    *(*CONV, *CONV, "pool"),
    *(*CONV, "pool"),
    *(*CONV, "pool", "pool", "pool"),
    *("flatten", "linear"),
)
"""Shankar et al. 2020, "Neural Kernels Without Tangents": four convolutions, then one pixel."""


def pooled_layers(depth: int) -> tuple[Layer, ...]:
    """``depth`` convolutions, each with a ReLU, global average pooling, a linear output."""
    return CONV * depth + ("global_pool", "linear")


def flattened_layers(depth: int) -> tuple[Layer, ...]:
    """The same with all positions flattened instead of averaged."""
    return CONV * depth + ("flatten", "linear")


def smooth_images(case: Case, seed: int = 0) -> Inputs:
    """Images of shape (n, channels, height, width), float32, the same for the same seed.

    White noise makes nearly every pair of patches orthogonal. These are random fields with the
    spectrum of natural images (amplitude 1 / frequency), with channels that go together; some share
    a prototype, and brightness and contrast differ by a factor of four: patches meet at all angles.
    """
    generator = np.random.default_rng(seed)
    count = 2 * case.n if case.cross else case.n
    prototypes = smooth_fields(generator, PROTOTYPES, case.shape)
    own = smooth_fields(generator, count, case.shape)
    spread = generator.uniform(0.1, 1.5, size=(count, 1, 1, 1))
    contrast = generator.uniform(0.5, 2.0, size=(count, 1, 1, 1))
    brightness = generator.uniform(-0.5, 0.5, size=(count, 1, 1, 1))
    x = prototypes[generator.integers(PROTOTYPES, size=count)] + spread * own
    x *= contrast / np.sqrt(np.mean(x**2, axis=(1, 2, 3), keepdims=True))
    images = (x + brightness).astype(np.float32)
    return Inputs(images[: case.n], images[case.n :] if case.cross else None)


def smooth_fields(
    generator: np.random.Generator, count: int, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Random fields with amplitude 1 / frequency, of shape (count, *shape) and mean square one."""
    channels, height, width = shape
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    frequency = np.maximum(np.hypot(rows, columns), 1.0 / max(height, width))
    # One common field in all channels, and one of each channel's own: colours go together.
    noise = generator.standard_normal((count, 1, height, width))
    noise = noise + 0.5 * generator.standard_normal((count, channels, height, width))
    field: NDArray[np.float64] = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    scaled: NDArray[np.float64] = field / np.sqrt(np.mean(field**2, axis=(1, 2, 3), keepdims=True))
    return scaled


class PositionPairs(NamedTuple):
    """How many covariances of two positions a kernel takes, added over its convolutions."""

    asked: int
    """The whole question: n1 n2 P P of P pixels where anything is pooled, else n1 n2 P."""
    distinct: int
    """Those that remain when each unordered pair of a symmetric kernel is counted once."""


def position_pairs(case: Case) -> PositionPairs:
    """Count the pairs of positions at the size of each convolution in turn."""
    pixels = math.prod(case.shape[1:])
    pooled = any(layer in ("pool", "global_pool") for layer in case.layers)
    asked = distinct = 0
    for layer in case.layers:
        if layer == "pool":
            pixels //= 4
        if layer == "conv":
            # Equal positions of the two inputs are pixels that never meet another.
            alike, points = (1, case.n * pixels) if pooled else (pixels, case.n)
            asked += alike * points**2
            distinct += alike * (points**2 if case.cross else points * (points + 1) // 2)
    return PositionPairs(asked, distinct)


CONVOLUTIONAL = Suite(
    name="convolutional",
    cases=by_name(
        [
            Case(
                "pooled_depth4_16",
                pooled_layers(4),
                (3, 16, 16),
                n=16,
                target_ratio=60.0,
                target_ns=2.0,
            ),
            Case(
                "pooled_depth4_32",
                pooled_layers(4),
                (3, 32, 32),
                n=4,
                target_ratio=60.0,
                target_ns=2.0,
            ),
            Case("myrtle5", MYRTLE_5, (3, 32, 32), n=8, target_ratio=60.0, target_ns=2.0),
            # One entry of two different images: symmetry saves nothing in it.
            Case(
                "pooled_depth21_32",
                pooled_layers(21),
                (3, 32, 32),
                n=1,
                cross=True,
                target_ratio=60.0,
                target_ns=2.0,
                target_s=0.050,
            ),
            Case("flattened_depth4_32", flattened_layers(4), (3, 32, 32), n=200, target_ratio=15.0),
        ]
    ),
    inputs=smooth_images,
    repetitions=3,
)
