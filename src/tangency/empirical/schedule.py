"""How a kernel matrix is cut into tiles, so that it takes the least time within a memory budget."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tangency.empirical.costs import Layout, Term, costs, holds_written_out
from tangency.tiles import Tile

__all__ = ["Schedule", "Work", "schedule", "schedule_diagonal"]

PASS = 4.0
"""Multiply-adds of a matrix product that take the time of one in a pass through the network."""

SHARE = 0.5
"""Of the memory budget, for gradients at rest; the rest is for making and multiplying them."""

LARGEST = 4096
"""Examples of a tile at most."""


@dataclass(frozen=True)
class Work:
    """What a kernel needs of every example.

    Attributes:
        terms: parameter -> for each set of its entries, the terms of its gradients.
        pass_bytes: memory of a passage through the network, for each example.
        out: number of outputs.
        layout: of the kernel.
    """

    terms: Mapping[str, Sequence[Sequence[Term]]]
    pass_bytes: int
    out: int
    layout: Layout

    @property
    def all_terms(self) -> list[Term]:
        """Every term."""
        return [t for pieces in self.terms.values() for piece in pieces for t in piece]

    @property
    def passed(self) -> float:
        """Cost of one example's outputs and gradients: forward, and backward for each output."""
        return PASS * (1 + self.out) * sum(t.applied for t in self.all_terms)

    def writes_out(self, t: Term, rows: int, columns: int) -> bool:
        """Whether the gradients of a term are best written out once."""
        return holds_written_out(t, rows, columns, self.out, self.layout)

    def held_bytes(self, rows: int, columns: int) -> int:
        """Memory of the gradients of one example at rest, for tiles of `rows` x `columns`."""
        return sum(
            t.written_bytes(self.out)
            if self.writes_out(t, rows, columns)
            else t.held_bytes(self.out)
            for t in self.all_terms
        )

    def multiplied(self, rows: int, columns: int) -> float:
        """Cost of one tile's products."""
        return sum(
            min(costs(t, rows, columns, self.out, self.layout).values()) for t in self.all_terms
        )


@dataclass(frozen=True)
class Schedule:
    """Blocks of rows whose gradients are kept while those of the columns come by.

    Attributes:
        n1, n2: size of the matrix.
        symmetric: whether only columns from the diagonal on are computed.
        rows, columns: examples at a time.
        batch: examples in one passage through the network.
        written_out: terms whose gradients are written out once, not for every tile.
        cost: of everything, in multiply-adds of a matrix product.
    """

    n1: int
    n2: int
    symmetric: bool
    rows: int
    columns: int
    batch: int
    written_out: frozenset[Term]
    cost: float

    def row_blocks(self) -> list[slice]:
        """Blocks of rows."""
        return _cut(0, self.n1, self.rows)

    def column_blocks(self, rows: slice) -> list[slice]:
        """Blocks of columns that a block of rows meets besides itself."""
        return _cut(rows.stop if self.symmetric else 0, self.n2, self.columns)

    def batches(self, part: slice) -> list[slice]:
        """The passages through the network in which the gradients of a block are made."""
        return _cut(part.start, part.stop, self.batch)

    def tiles(self) -> Iterator[Tile]:
        """All tiles, the one on the diagonal first."""
        for rows in self.row_blocks():
            if self.symmetric:
                yield Tile(rows, rows)
            for columns in self.column_blocks(rows):
                yield Tile(rows, columns)


def schedule(work: Work, n1: int, n2: int, *, symmetric: bool, budget: int) -> Schedule:
    """The cheapest sizes within `budget` bytes; one example at a time if even that is too much."""

    def fits(rows: int, columns: int) -> bool:
        held = rows if symmetric and rows >= n1 else rows + columns
        return rows == columns == 1 or held * work.held_bytes(rows, columns) <= SHARE * budget

    sizes = [(rows, columns) for rows in _sizes(n1) for columns in _sizes(n2)]
    cost, rows, columns = min(
        (_cost(work, n1, n2, *size, symmetric), *size) for size in sizes if fits(*size)
    )
    batch = int(budget * (1 - SHARE) / 2) // max(1, work.pass_bytes)
    written = frozenset(t for t in work.all_terms if work.writes_out(t, rows, columns))
    return Schedule(n1, n2, symmetric, rows, columns, max(1, batch), written, cost)


def schedule_diagonal(work: Work, n: int, budget: int) -> Schedule:
    """Blocks of examples for the kernel of each with itself."""
    fitting = int(budget * SHARE) // max(1, work.held_bytes(1, 1))
    single = schedule(work, 1, 1, symmetric=True, budget=budget)
    rows = max(1, min(n, fitting, LARGEST))
    return replace(single, n1=n, n2=n, rows=rows, columns=rows, cost=n * single.cost)


def _cost(work: Work, n1: int, n2: int, rows: int, columns: int, symmetric: bool) -> float:
    """Cost of passing every example as often as it is needed, and of all products."""
    blocks = -(-n1 // rows)
    met = sum(n2 - min(n2, (i + 1) * rows) for i in range(blocks)) if symmetric else blocks * n2
    products = met / columns * work.multiplied(rows, columns)
    if symmetric:
        products += blocks * work.multiplied(rows, rows)
    return (n1 + met) * work.passed + products


def _sizes(n: int) -> list[int]:
    """Sizes to try: powers of two, some between them, and the largest."""
    largest = min(n, LARGEST)
    between = {size for k in range(12) for size in (2**k, 3 * 2**k) if size < largest}
    return sorted(between | {largest})


def _cut(start: int, stop: int, size: int) -> list[slice]:
    """Slices of nearly equal length, none longer than `size`."""
    pieces = -(-(stop - start) // size)
    edges = [start + i * (stop - start) // pieces for i in range(pieces + 1)] if pieces else []
    return [slice(a, b) for a, b in itertools.pairwise(edges)]
