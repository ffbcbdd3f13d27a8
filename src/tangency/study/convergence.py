"""How fast the kernel of a finite network approaches its infinite-width limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from tangency.diagnosis.finite_width import WidthStudy, width_study
from tangency.study.networks import Family

__all__ = ["Convergence", "converge"]

WIDTHS = (32, 64, 128, 256, 512, 1024)
REPETITIONS = 8
NETWORK_SEEDS = 1000
"""Seeds of the repetitions begin here, away from that of the network that is trained."""

Convergence: TypeAlias = WidthStudy
"""Distances, variance and bias of a family's kernels, see `tangency.width_study`."""


def converge(
    family: Family,
    x: Tensor,
    *,
    widths: tuple[int, ...] = WIDTHS,
    repetitions: int = REPETITIONS,
    on_width: Callable[[int], None] = lambda width: None,
) -> Convergence:
    """Empirical kernels of freshly drawn networks against the limit, over several widths.

    Args:
        family: with a width.
        x: (n, features); at most 40 examples, spread evenly over them, are used.
        widths: ascending, at least two.
        repetitions: networks of each width.
        on_width: called before each width.

    Raises:
        UnsupportedOperation: the family has no infinite-width limit that is known.
    """
    return width_study(
        lambda width: family.build(width).eval(),
        x,
        widths,
        seeds=range(NETWORK_SEEDS, NETWORK_SEEDS + repetitions),
        init=family.init,
        infinite=True,
        on_width=on_width,
    )
