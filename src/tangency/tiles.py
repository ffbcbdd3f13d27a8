"""Tiles of a kernel matrix: how a large matrix is cut, filled and, where symmetric, mirrored."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from tangency.errors import InvalidInput

__all__ = ["Tile", "budget", "fill", "plan", "progress"]


@dataclass(frozen=True)
class Tile:
    """Rows `rows` and columns `columns` of a kernel matrix."""

    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def budget(memory: float) -> int:
    """The bytes that tiles may take, of what the user gives.

    Raises:
        InvalidInput: it is no positive number.
    """
    if isinstance(memory, bool) or not isinstance(memory, (int, float)) or not memory >= 1:
        raise InvalidInput(f"memory={memory!r} must be a positive number of bytes.")
    return int(memory)


def _cuts(start: int, stop: int, size: int) -> list[slice]:
    """Slices of nearly equal length, none longer than `size` (never a sliver at the end)."""
    pieces = -(-(stop - start) // size)
    edges = [start + i * (stop - start) // pieces for i in range(pieces + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def plan(n1: int, n2: int, size: int, *, symmetric: bool = False) -> list[Tile]:
    """Tiles of at most `size` rows and `size` columns of an (n1, n2) matrix.

    With `symmetric` (then n1 equals n2) the tiles of a block of rows begin at the diagonal.
    """
    return [
        Tile(r, c) for r in _cuts(0, n1, size) for c in _cuts(r.start if symmetric else 0, n2, size)
    ]


def fill(out: Tensor, tile: Tile, values: Tensor, *, symmetric: bool = False) -> None:
    """Write one tile of `out`, shape (n1, n2, ...), and its mirror image where symmetric.

    The trailing dimensions of (n1, n2, out, out) or (n1, n2, *P, *P) are exchanged in the mirror
    image. The part of a tile on both sides of the diagonal becomes exactly symmetric.
    """
    out[tile.rows, tile.columns] = values
    if not symmetric:
        return
    beyond = max(tile.rows.stop, tile.columns.start)
    if beyond < tile.columns.stop:
        right = values[:, beyond - tile.columns.start :]
        out[beyond : tile.columns.stop, tile.rows] = _mirrored(right)
    both = slice(tile.columns.start, min(tile.rows.stop, tile.columns.stop))
    if both.start < both.stop:
        square = out[both, both]
        square.copy_((square + _mirrored(square)) / 2)


def _mirrored(values: Tensor) -> Tensor:
    mirrored = values.transpose(0, 1)
    trailing, odd = divmod(values.dim() - 2, 2)
    if odd:  # one value per output, (n1, n2, out): nothing to exchange
        return mirrored
    left, right = range(2, 2 + trailing), range(2 + trailing, values.dim())
    return mirrored.permute(0, 1, *right, *left)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal, silence elsewhere; yields what advances it by one step, or by
    so many.
    """
    if total < 2 or not sys.stderr.isatty():
        yield lambda steps=1: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda steps=1: bar.advance(task, steps)
