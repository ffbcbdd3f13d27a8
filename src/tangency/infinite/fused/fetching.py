"""Where the slices of a run gather from, in memory, what a map over positions reads.

At one offset, a new position and its partner read old positions at offsets of their own: a table
says for each which slice, and where in it. Rows and columns are independent of each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tangency.infinite.fused.geometry import Extent, Geometry, inside, right
from tangency.infinite.fused.resampling import Resampling
from tangency.infinite.fused.run import Chain

__all__ = ["NOTHING", "Fetched", "copies_stretches", "fetched"]

_ONE = Extent(0, 1)
"""Stands for the rows of a run that has columns only."""

NOTHING = np.iinfo(np.int32).min
"""Stands for the shift of columns that read nothing."""

_STILL = np.zeros((1, 1), dtype=np.int64), np.ones((1, 1))
"""What they read."""

Table = NDArray[np.generic]


@dataclass(frozen=True)
class Fetched:
    """What the slices of a run read of another one's.

    Attributes:
        down, across: offsets of the slices that are read.
        rows, row_weights: `(offsets of rows, rows, reads)`; where a row begins in the first slice
            of each column offset.
        columns, column_weights: `(offsets of columns, reads, columns)`, to be added to it.
        pieces: whether generated code copies stretches of columns, and not one by one.
    """

    down: list[int]
    across: list[int]
    rows: NDArray[np.int32]
    row_weights: NDArray[np.float64]
    columns: NDArray[np.int32]
    column_weights: NDArray[np.float64]
    pieces: bool

    @property
    def tables(self) -> list[Table]:
        """In the order of the generated code."""
        if self.pieces:
            stretches = _stretches(self.columns[:, 0], self.column_weights[:, 0] != 0)
            return [self.rows, self.row_weights, stretches, np.zeros(1)]
        return [self.rows, self.row_weights, self.columns, self.column_weights]

    def of(self, slices: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the first offset reads of slices in memory, `(rows, columns)`."""
        places = self.rows[0, :, :, None, None] + self.columns[0]
        weights = self.row_weights[0, :, :, None, None] * self.column_weights[0]
        found: NDArray[np.float64] = (slices[places] * weights).sum(axis=(1, 2))
        return found


def fetched(chain: Chain, index: int, down: Sequence[int], across: Sequence[int]) -> Fetched:
    """What the run that reads run `index` needs of it at its offsets `down` and `across`."""
    reader, level = chain.reader(index)
    run, above = chain.runs[index], chain.runs[reader]
    lower = (_ONE, *run.result)[-2:]
    upper = (_ONE, *level)[-2:]
    moduli = (1, *run.moduli)[-2:]
    theirs = (1, *above.moduli)[-2:]
    reads = (_STILL, *_by_slot(chain, index))[-2:]
    axes = [
        _reads(reads[k], upper[k], theirs[k], offsets, moduli[k])
        for k, offsets in enumerate((down, across))
    ]
    (rows, row_places, row_weights), (columns, places, weights) = axes
    wide = lower[1].whole(moduli[1])
    size = lower[0].whole(moduli[0]) * wide
    begins = rows.index * size + row_places * wide
    within = columns.index * (len(rows.offsets) * size) + places
    return Fetched(
        rows.offsets,
        columns.offsets,
        np.ascontiguousarray(begins, dtype=np.int32),
        np.ascontiguousarray(row_weights),
        np.ascontiguousarray(within.transpose(0, 2, 1), dtype=np.int32),
        np.ascontiguousarray(weights.transpose(0, 2, 1)),
        copies_stretches(chain.resampling(index), run.geometry),
    )


def copies_stretches(resampling: Resampling, geometry: Geometry) -> bool:
    """Whether the columns of a map are copied in stretches; `geometry` knows its source."""
    order = [geometry.extent(axis).slot for axis in resampling.axes]
    return resampling.runs_on(order.index(geometry.rank - 1))


def _stretches(places: NDArray[np.int32], real: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Begin, end and shift of what is copied, for each offset; first, how many for each at most.

    Where nothing is, the shift is `NOTHING`.
    """
    shifts = np.where(real, places - np.arange(places.shape[1]), NOTHING)
    found = []
    for row in shifts:
        cuts = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
        found.append([(a, b, row[a]) for a, b in itertools.pairwise(cuts)])
    most = max(len(stretches) for stretches in found)
    table = np.zeros((len(found), most, 3), dtype=np.int32)
    for k, stretches in enumerate(found):
        table[k, : len(stretches)] = stretches
    return np.concatenate([np.array([most], dtype=np.int32), table.ravel()])


def _by_slot(chain: Chain, index: int) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    resampling, geometry = chain.resampling(index), chain.runs[index].geometry
    order = [geometry.extent(axis).slot for axis in resampling.axes]
    return [resampling.of_axis(order.index(slot)) for slot in range(geometry.rank)]


@dataclass(frozen=True)
class _Offsets:
    """The offsets that are read, and for every read the index of its own."""

    offsets: list[int]
    index: NDArray[np.int64]


def _reads(
    rows: tuple[NDArray[np.int64], NDArray[np.float64]],
    extent: Extent,
    modulus: int,
    offsets: Sequence[int],
    below: int,
) -> tuple[_Offsets, NDArray[np.int64], NDArray[np.float64]]:
    """Offsets, left positions and weights of what pairs of positions read along one axis.

    The shape is `(offsets, positions, reads)`; `below` is the modulus of the offsets that are read.
    """
    places, weights = rows
    left = np.arange(extent.whole(modulus))
    there = np.stack([right(extent, modulus, d) for d in offsets])
    real = np.stack([_real(extent, modulus, d) for d in offsets])
    left, there = left.clip(max=extent.size - 1), there.clip(max=extent.size - 1)
    mine, yours = places[left][None, :, :, None], places[there][:, :, None, :]
    both = weights[left][None, :, :, None] * weights[there][:, :, None, :] * real[..., None, None]
    shape = (*real.shape, -1)
    between = ((yours - mine) % below).reshape(shape)
    both = both.reshape(shape)
    needed = np.unique(between[both != 0]) if bool((both != 0).any()) else np.zeros(1, np.int64)
    index = np.searchsorted(needed, np.where(both != 0, between, needed[0]))
    position = np.broadcast_to(mine, (*real.shape, places.shape[1], places.shape[1]))
    position = np.where(both != 0, position.reshape(shape), 0)
    return _Offsets([int(d) for d in needed], index), position, both


def _real(extent: Extent, modulus: int, offset: int) -> NDArray[np.bool_]:
    """Where a pair of positions is at this offset; none is at a part of a position."""
    whole = (offset * extent.step).denominator == 1
    found: NDArray[np.bool_] = inside(extent, modulus, offset) & whole
    return found
