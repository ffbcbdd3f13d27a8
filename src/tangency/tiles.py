"""Tiles of a kernel matrix: how a large matrix is cut, filled and, where symmetric, mirrored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Tile", "fill", "plan", "progress"]


@dataclass(frozen=True)
class Tile:
    """Rows `rows` and columns `columns` of a kernel matrix."""

    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def on_diagonal(self) -> bool:
        """Whether rows and columns are the same examples (in a symmetric plan)."""
        return self.rows == self.columns


def _cuts(n: int, size: int) -> list[slice]:
    """Slices of nearly equal length, none longer than `size` (never a sliver at the end)."""
    pieces = -(-n // size)
    edges = [i * n // pieces for i in range(pieces + 1)]
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def plan(n1: int, n2: int, size: int, *, symmetric: bool = False) -> list[Tile]:
    """Tiles of at most `size x size` that cover an (n1, n2) matrix.

    With `symmetric` only tiles on and above the diagonal are listed (n1 must equal n2).
    """
    rows, columns = _cuts(n1, size), _cuts(n2, size)
    return [
        Tile(r, c)
        for i, r in enumerate(rows)
        for j, c in enumerate(columns)
        if not symmetric or j >= i
    ]


def fill(out: Tensor, tile: Tile, values: Tensor, *, symmetric: bool = False) -> None:
    """Write one tile of `out`, shape (n1, n2, ...), and its mirror image where symmetric.

    Trailing dimensions (out, out) of a full kernel are transposed in the mirror image.
    """
    out[tile.rows, tile.columns] = values
    if symmetric and not tile.on_diagonal:
        mirrored = values.transpose(0, 1)
        out[tile.columns, tile.rows] = (
            mirrored.transpose(-1, -2) if values.dim() == 4 else mirrored
        )


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal, silence elsewhere; yields a function that advances it by one."""
    if total < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
