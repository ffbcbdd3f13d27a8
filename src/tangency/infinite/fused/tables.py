"""What depends on the offset alone: offsets, existing positions, taps inside both images."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from tangency.infinite.fused.geometry import Extent, inside, reached
from tangency.infinite.fused.source import Run

__all__ = ["offsets", "tables"]

_ONE = Extent(0, 1, 1)
"""Stands for the rows of a run that has columns only."""


def offsets(run: Run, *, everywhere: bool) -> tuple[list[int], list[int]]:
    """Offsets of rows and of columns at which positions exist, or offset zero alone."""
    if not everywhere:
        return [0], [0]
    level = run.level(run.roots[0])
    found = [
        [d for d in range(m) if bool(inside(e, m, d).any())]
        for m, e in zip(run.moduli, level, strict=True)
    ]
    down, across = ([0], *found)[-2:] if found else ([0], [0])
    return down, across


def tables(run: Run, down: list[int], across: list[int]) -> list[NDArray[np.generic]]:
    """The tables that the generated code reads, in its order."""
    level = run.level(run.roots[0])
    rows, columns = (_ONE, *level)[-2:]
    row_modulus, column_modulus = (1, *run.moduli)[-2:]
    found: list[NDArray[np.generic]] = [
        np.array([len(down)], dtype=np.int64),
        np.array(across, dtype=np.int64),
        np.array(down, dtype=np.int64),
        np.stack([inside(rows, row_modulus, d) for d in down]).astype(np.float64),
        np.stack([inside(columns, column_modulus, d) for d in across]).astype(np.float64),
    ]
    pairs = (_window(run, index, down, across) for index in range(len(run.windows)))
    return [*found, *itertools.chain.from_iterable(pairs)]


def _window(
    run: Run, index: int, down: list[int], across: list[int]
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Factors of a column window's taps in both types; the rows that a row window's taps read."""
    window = run.windows[index].window
    source, target = run.geometry.windowed(window)
    modulus = run.moduli[source.slot]
    if source.slot == run.geometry.rank - 1:
        taps = np.stack([reached(window, source, target, modulus, d) for d in across])
        return taps.astype(np.float64), taps.astype(np.float32)
    taps = np.stack([reached(window, source, target, modulus, d).T for d in down])
    places = np.arange(modulus * target.step)[:, None] * window.stride
    reads = places + np.arange(window.taps) * window.dilation - window.padding
    chosen = np.where(taps, reads, -1).astype(np.int32)
    return np.ascontiguousarray(chosen), np.zeros(1)
