"""Families of kernels in which one size grows and all else stands still."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cases import Case, Inputs
from convolutional import pooled_layers, smooth_images
from fully_connected import clustered_vectors, hidden_layers

__all__ = ["STUDIES", "Study"]


@dataclass(frozen=True)
class Study:
    """One size that grows, and the power of it that time must follow."""

    name: str
    size: str
    """What grows, in words."""
    fixed: str
    """What stands still, in words."""
    values: tuple[int, ...]
    case: Callable[[int], Case]
    inputs: Callable[[Case], Inputs]
    law: int
    """Exponent of the time by the number of position pairs, layers and window sums."""
    reason: str
    """Why, in words."""


def pooled(n: int, side: int, depth: int, filter_size: int = 3) -> Case:
    """A pooled convolutional ReLU network on square colour images."""
    return Case("", pooled_layers(depth), (3, side, side), n=n, filter_size=filter_size)


def by_name(studies: Sequence[Study]) -> dict[str, Study]:
    """The studies under their names, in order."""
    return {study.name: study for study in studies}


STUDIES = by_name(
    [
        Study(
            name="vectors",
            size="examples n, fully connected",
            fixed="3 hidden ReLU layers, 256 features",
            values=(1000, 2000, 4000, 8000),
            case=lambda n: Case("", hidden_layers("relu", 3), (256,), n=n),
            inputs=clustered_vectors,
            law=2,
            reason="every pair of examples",
        ),
        Study(
            name="images",
            size="examples n, convolutional",
            fixed="4 layers, 3 x 3, 8 x 8 pixels, pooled",
            values=(16, 32, 64, 128),
            case=lambda n: pooled(n, side=8, depth=4),
            inputs=smooth_images,
            law=2,
            reason="every pair of examples",
        ),
        Study(
            name="depth",
            size="layers",
            fixed="3 x 3, 16 x 16 pixels, pooled, n = 16",
            values=(4, 8, 16, 32, 64),
            case=lambda depth: pooled(16, side=16, depth=depth),
            inputs=smooth_images,
            law=1,
            reason="layer after layer",
        ),
        Study(
            name="side",
            size="side of the images",
            fixed="4 layers, 3 x 3, pooled, n = 4",
            values=(8, 16, 32, 64),
            case=lambda side: pooled(4, side=side, depth=4),
            inputs=smooth_images,
            law=4,
            reason="every pair of pixels",
        ),
        Study(
            name="filter",
            size="side of the filters",
            fixed="4 layers, 16 x 16 pixels, pooled, n = 32",
            values=(1, 3, 5, 7, 9),
            case=lambda side: pooled(32, side=16, depth=4, filter_size=side),
            inputs=smooth_images,
            law=1,
            reason="window sums go axis by axis; at most this, as the rest does not depend on it",
        ),
    ]
)
