"""Linear maps over positions each of whose results reads few positions.

Resizing, padding with what the image shows, indexing, pooling with windows that overlap: such a map
joins covariances at several offsets. The slices that it reads lie in memory, at all offsets that it
needs, and the slices of the run that follows gather from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangency.infinite.fused.graph import NotFusable
from tangency.infinite.values.value import Value
from tangency.infinite.values.window import Window
from tangency.program.axes import Axis

__all__ = ["Resampling", "Row", "one_tap", "sparse_rows", "unwrapped_rows"]

MOST_READ = 4
"""Positions that one result may read along an axis; a pair of results reads the square of it."""

Row = tuple[tuple[int, float], ...]
"""What one new position reads: old positions and their weights."""


@dataclass(frozen=True)
class Resampling:
    """A map over positions, axis by axis.

    Attributes:
        value: the value that is so made, if its second moment is not known otherwise.
        moment: whether its moment is meant, and not its NTK.
        axes: position axes of the source.
        targets: the axes that replace them.
        rows: for each axis, what each new position reads.
    """

    value: Value | None
    moment: bool
    axes: tuple[Axis, ...]
    targets: tuple[Axis, ...]
    rows: tuple[tuple[Row, ...], ...]

    def of_axis(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Old positions and weights of all new ones, `(new, most read)`, filled up with zeros."""
        rows = self.rows[k]
        most = max(1, *(len(row) for row in rows))
        places = np.zeros((len(rows), most), dtype=np.int64)
        weights = np.zeros((len(rows), most))
        for number, row in enumerate(rows):
            for j, (place, weight) in enumerate(row):
                places[number, j], weights[number, j] = place, weight
        return places, weights

    @property
    def selects(self) -> bool:
        """Whether every new position is an old one, or zero."""
        return all(
            len(row) == 0 or (len(row) == 1 and row[0][1] == 1.0)
            for rows in self.rows
            for row in rows
        )

    def runs_on(self, k: int) -> bool:
        """Whether neighbours along an axis mostly are old neighbours, and all are old ones."""
        places, _ = self.of_axis(k)
        neighbours = int((np.diff(places[:, 0]) == 1).sum())
        return self.selects and 4 * neighbours >= 3 * (len(places) - 1)


def sparse_rows(matrix: Tensor) -> tuple[Row, ...]:
    """The rows of a matrix `(new, old)`.

    Raises:
        NotFusable: a row with many entries.
    """
    if int((matrix != 0).sum(1).max()) > MOST_READ:
        raise NotFusable("a map over positions that reads many of them at once")
    return tuple(
        tuple((int(k), float(row[k])) for k in row.nonzero().flatten().tolist()) for row in matrix
    )


def unwrapped_rows(window: Window, whole: int) -> tuple[Row, ...]:
    """A padded axis of `whole` positions for a window that wraps, which then need not do so."""
    size = window.source.size
    return tuple((((q - window.padding) % size, 1.0),) for q in range(whole))


def one_tap(matrix: Tensor, source: Axis, target: Axis) -> Window | None:
    """The window of one tap that a matrix `(new, old)` is: a crop, a stride, zeros around."""
    found = matrix.nonzero().tolist()
    if not found or not bool((matrix[matrix != 0] == 1).all()):
        return None
    new, old = matrix.shape
    (p, a), stride = found[0], 1
    if len(found) > 1:
        stride = found[1][1] - a if found[1][0] == p + 1 else 0
    if stride < 1:
        return None
    window = Window(source, target, 1, stride, 1, p * stride - a)
    expected = torch.zeros_like(matrix)
    for q in range(new):
        if 0 <= q * stride - window.padding < old:
            expected[q, q * stride - window.padding] = 1
    return window if torch.equal(expected, matrix) else None
