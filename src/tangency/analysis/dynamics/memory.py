"""Covariances at many times are large: refused before they are made."""

from __future__ import annotations

import os

from tangency.errors import InvalidInput

__all__ = ["check_covariances"]

COPIES = 3
"""Of the result that are alive while it is made."""


def check_covariances(times: int, rows: int) -> None:
    """Refuse float64 covariances (times, rows, rows) that this machine cannot hold.

    Raises:
        InvalidInput: says how much they need.
    """
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return
    needed = 8 * COPIES * times * rows**2
    if needed > there:
        raise InvalidInput(
            f"covariances of {rows} outputs at {times} times need about {needed / 2**30:.3g} GiB, "
            f"and this machine has {there / 2**30:.3g} GiB: ask for moment='variance', or for "
            "fewer times."
        )
