"""What depends on the offsets alone: which there are, which positions and taps are inside."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tangency.infinite.fused.fetching import Fetched, fetched
from tangency.infinite.fused.geometry import Extent, inside, reached, reads
from tangency.infinite.fused.run import Chain, Run
from tangency.infinite.values.window import Window
from tangency.program.axes import Axis

__all__ = ["Sweep", "sweeps"]

_ONE = Extent(0, 1)
"""Stands for the rows of a run that has columns only."""

_ANY = Axis("position", 1)
"""Stands for the axes of windows that are alike."""

Table = NDArray[np.generic]


@dataclass(frozen=True)
class Sweep:
    """The offsets of a run's slices, and the tables that the generated code reads.

    Attributes:
        down, across: offsets of rows and columns; slices are numbered rows first.
        tables: in the order of the generated code.
    """

    down: list[int]
    across: list[int]
    tables: list[Table]

    @property
    def count(self) -> int:
        """Number of slices."""
        return len(self.down) * len(self.across)


def sweeps(chain: Chain, last: int, *, everywhere: bool, symmetric: bool) -> list[Sweep]:
    """The sweeps of a chain's runs 0 to `last`, empty for those that run `last` does not need.

    Args:
        everywhere: whether the result of run `last` is wanted at all offsets, or, summed over
            windows where it is pooled, at equal positions only.
        symmetric: whether they are swept for an example and itself. Opposite offsets then have
            equal sums, and one of two counts twice.
    """
    found: dict[int, Sweep] = {}
    needed: dict[int, Fetched] = {}
    if chain.runs[last].stored:
        needed[last] = fetched(chain, last, [0], [0])
    for k in range(last, -1, -1):
        run = chain.runs[k]
        if k < last and k not in needed and chain.reader(k)[0] not in found:
            continue  # not on the way to run `last`
        if k in needed:
            down, across = needed[k].down, needed[k].across
            found[k] = _sweep(run, down, across, np.ones(len(across)), _everywhere(run), [])
        else:
            found[k] = _found(chain, k, last, found, everywhere=everywhere, symmetric=symmetric)
        for node in run.fetched:
            maker = chain.maker(run.block(node))
            needed[maker] = fetched(chain, maker, found[k].down, found[k].across)
            found[k].tables.extend(needed[maker].tables)
    return [found.get(k, Sweep([], [], [])) for k in range(last + 1)]


def _everywhere(run: Run) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, columns = run.shape(run.result)
    return np.ones(rows), np.ones(columns)


def _found(
    chain: Chain,
    k: int,
    last: int,
    found: dict[int, Sweep],
    *,
    everywhere: bool,
    symmetric: bool,
) -> Sweep:
    """The sweep of a run whose results are summed; `found` are those of the runs after it."""
    run = chain.runs[k]
    if k < last:
        reader, level = chain.reader(k)
        above, steps = found[reader], chain.runs[reader].steps(level)
        return _pooled_sweep(run, above, steps, symmetric=symmetric)
    if everywhere:
        down, across = _existing(run)
        across, times = _counted(run, across, symmetric=symmetric)
        return _sweep(run, down, across, times, _weights(chain, run), [])
    if not run.widths:
        return _sweep(run, [0], [0], np.ones(1), _weights(chain, run), [])
    one = Sweep([0], [0], [])
    return _pooled_sweep(run, one, (Fraction(1), Fraction(1)), symmetric=symmetric)


def _existing(run: Run) -> tuple[list[int], list[int]]:
    """All offsets at which positions exist."""
    pairs = zip(run.moduli, run.result, strict=True)
    found = [[d for d in range(m) if bool(inside(e, m, d).any())] for m, e in pairs]
    return ([0], *found)[-2], found[-1]


def _weights(chain: Chain, run: Run) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of the rows and columns of a sum over positions, zero outside."""
    weights = chain.weights
    found = [np.ones(1)]
    for k, (modulus, extent) in enumerate(zip(run.moduli, run.result, strict=True)):
        padded = np.zeros(extent.whole(modulus))
        padded[: extent.size] = 1.0 if weights is None else weights[k]
        found.append(padded)
    return found[-2], found[-1]


def _counted(
    run: Run, across: list[int], *, symmetric: bool
) -> tuple[list[int], NDArray[np.float64]]:
    """The offsets to compute and how often each counts: twice if for its opposite as well."""
    if not symmetric:
        return across, np.ones(len(across))
    opposite = {d: -d % run.moduli[-1] for d in across}
    kept = [d for d in across if d <= opposite[d]]
    return kept, np.array([1.0 if d == opposite[d] else 2.0 for d in kept])


def _pooled_sweep(
    run: Run, above: Sweep, steps: tuple[Fraction, Fraction], *, symmetric: bool
) -> Sweep:
    """The offsets that windows at the offsets of `above` are made of."""
    high, wide = run.windowed
    row_modulus, column_modulus = (1, *run.moduli)[-2:]
    coarse = row_modulus // high, column_modulus // wide
    down = _fine(above.down, steps[0], coarse[0], high)
    # Opposite offsets join the same windows only where these are one window.
    alone = (above.down, above.across) == ([0], [0])
    across = _fine(above.across, steps[1], coarse[1], wide)
    across, times = _counted(run, across, symmetric=symmetric and alone)
    rows = _joined(down, above.down, steps[0], coarse[0], high)
    columns = _joined(across, above.across, steps[1], coarse[1], wide)
    extents = (_ONE, *run.result)[-2:]
    kept = [
        (np.arange(m) < e.size // w * w).astype(float)
        for m, e, w in zip((row_modulus, column_modulus), extents, (high, wide), strict=True)
    ]
    lookups = [rows, columns, np.array([len(above.down)])]
    return _sweep(run, down, across, times, (kept[0], kept[1]), lookups)


def _fine(coarse: Sequence[int], step: Fraction, modulus: int, width: int) -> list[int]:
    """Offsets between positions in windows that are `coarse * step` apart."""
    starts = {place * width for place in _places(coarse, step, modulus)}
    return sorted({(d + r) % (modulus * width) for d in starts for r in range(1 - width, width)})


def _places(coarse: Sequence[int], step: Fraction, modulus: int) -> dict[int, int]:
    """The indices of coarse offsets by their places, for those that join positions."""
    moved = {k: offset * step for k, offset in enumerate(coarse)}
    return {int(by) % modulus: k for k, by in moved.items() if by.denominator == 1}


def _joined(
    fine: Sequence[int], coarse: Sequence[int], step: Fraction, modulus: int, width: int
) -> NDArray[np.int32]:
    """For each offset and each phase of the left position, the index of the coarse offset."""
    index = _places(coarse, step, modulus)
    targets = [(np.arange(width) + d) // width % modulus for d in fine]
    found = [[index.get(int(target), -1) for target in row] for row in targets]
    return np.array(found, dtype=np.int32)


def _sweep(
    run: Run,
    down: list[int],
    across: list[int],
    times: NDArray[np.float64],
    weights: tuple[NDArray[np.float64], NDArray[np.float64]],
    lookups: list[NDArray[np.generic]],
) -> Sweep:
    """The sweep of these offsets, of which those of columns count `times`, and its tables."""
    rows, columns = (_ONE, *run.result)[-2:]
    moduli = (1, *run.moduli)[-2:]
    coarse = int(lookups[2][0]) if lookups else 0
    found: list[Table] = [
        np.array([len(down), coarse], dtype=np.int64),
        np.array(across, dtype=np.int64),
        np.array(down, dtype=np.int64),
        np.stack([_weighted(rows, moduli[0], d, weights[0]) for d in down]),
        np.stack([_weighted(columns, moduli[1], d, weights[1]) for d in across]) * times[:, None],
    ]
    pairs = (_window(run, node.window, down, across) for node in run.windows)
    return Sweep(down, across, [*found, *itertools.chain.from_iterable(pairs), *lookups[:2]])


def _weighted(
    extent: Extent, modulus: int, offset: int, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Products of the weights of the left and the right position where both exist."""
    moved = np.roll(weights, -extent.moved(offset))
    product: NDArray[np.float64] = weights * moved * inside(extent, modulus, offset)
    return product


def _window(run: Run, window: Window, down: list[int], across: list[int]) -> tuple[Table, Table]:
    source, target = run.geometry.windowed(window)
    any_axes = replace(window, source=_ANY, target=_ANY)
    return _taps(
        any_axes,
        source,
        target,
        run.moduli[source.slot],
        tuple(down),
        tuple(across),
        columns=source.slot == run.geometry.rank - 1,
    )


@lru_cache(maxsize=64)
def _taps(
    window: Window,
    source: Extent,
    target: Extent,
    modulus: int,
    down: tuple[int, ...],
    across: tuple[int, ...],
    *,
    columns: bool,
) -> tuple[Table, Table]:
    """Factors of a column window's taps in both types; the rows that a row window's taps read."""
    if columns:
        taps = np.stack([reached(window, source, target, modulus, d) for d in across])
        return taps.astype(np.float64), taps.astype(np.float32)
    taps = np.stack([reached(window, source, target, modulus, d).T for d in down])
    rows = reads(window, np.arange(target.whole(modulus))).T // window.insert
    chosen = np.where(taps, rows, rows % source.size if window.wraps else -1).astype(np.int32)
    return np.ascontiguousarray(chosen), np.zeros(1)
