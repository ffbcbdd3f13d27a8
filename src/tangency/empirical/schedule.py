"""How a kernel matrix is cut into tiles, so that it takes the least time within a memory budget."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tangency.empirical.costs import Layout, Term, cheapest, making, multiplying
from tangency.tiles import Tile

__all__ = ["Schedule", "Work", "schedule", "schedule_diagonal"]

PASS = 4.0
"""Multiply-adds of a matrix product that take the time of one in a pass through the network."""

CALL = 1e6
"""Multiply-adds that take the time of one term's calls in one tile."""

SHARE = 0.7
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

    @cached_property
    def counted(self) -> Counter[Term]:
        """How often terms of every size occur."""
        return Counter(t for pieces in self.terms.values() for piece in pieces for t in piece)

    @property
    def passed(self) -> float:
        """Cost of one example's outputs and cotangents: forward, and backward for each output."""
        return PASS * (1 + self.out) * sum(k * t.applied for t, k in self.counted.items())

    def writes_out(self, t: Term, rows: int, columns: int, *, lavish: bool) -> bool:
        """Whether the gradients of a term are written out once, not for every tile: they are wanted
        so, and take less memory or there is enough of it (`lavish`).
        """
        if t.kind == "written out" or cheapest(t, rows, columns, self.out, self.layout) == "gram":
            return False
        return lavish or t.written_bytes(self.out) <= t.held_bytes(self.out)


@dataclass(frozen=True)
class Schedule:
    """Blocks of rows whose gradients are kept while those of the columns come by.

    Attributes:
        n1, n2: size of the matrix.
        symmetric: whether only columns from the diagonal on are computed.
        rows, columns: examples at a time.
        whole: whether the gradients of all examples are kept from the beginning to the end.
        batch: examples in one passage through the network.
        written_out: terms whose gradients are written out once, not for every tile.
    """

    n1: int
    n2: int
    symmetric: bool
    rows: int
    columns: int
    whole: bool
    batch: int
    written_out: frozenset[Term]

    @property
    def blocks(self) -> int:
        """Blocks of rows."""
        return -(-self.n1 // self.rows)

    @property
    def met(self) -> int:
        """Columns that come by, over all blocks of rows (of equal sizes)."""
        if self.symmetric:
            return self.n1 * (self.blocks - 1) // 2
        return self.n2 * self.blocks

    @property
    def passages(self) -> int:
        """Examples that go through the network, each as often as its gradients are made."""
        if self.whole:
            return self.n1 if self.symmetric else self.n1 + self.n2
        return self.n1 + self.met

    @property
    def kept(self) -> int:
        """Examples whose gradients are kept at one time."""
        if self.whole:
            return self.n1 if self.symmetric else self.n1 + self.n2
        return self.rows + self.columns

    @property
    def pairs(self) -> int:
        """Pairs of examples that are computed, with blocks of equal sizes."""
        met = self.met + (self.n1 if self.symmetric else 0)
        return met * self.n1 // self.blocks

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

    def held_bytes(self, work: Work) -> int:
        """Memory of the gradients at rest."""
        return self.kept * sum(k * self.bytes_of(t, work) for t, k in work.counted.items())

    def bytes_of(self, t: Term, work: Work) -> int:
        """Memory of a term of one example's gradient at rest."""
        return t.written_bytes(work.out) if t in self.written_out else t.held_bytes(work.out)

    def multiplying(self, t: Term, work: Work) -> float:
        """Cost of all products of one term, and of writing it out where that is done once."""
        written = t in self.written_out
        size = self.rows, self.columns
        tile = multiplying(t, *size, work.out, work.layout, written=written) + CALL
        made = self.passages * making(t, work.out) if written else 0.0
        return tile * self.pairs / (self.rows * self.columns) + made

    def cost(self, work: Work) -> float:
        """Of everything, in multiply-adds of a matrix product."""
        products = sum(k * self.multiplying(t, work) for t, k in work.counted.items())
        return self.passages * work.passed + products


def schedule(work: Work, n1: int, n2: int, *, symmetric: bool, budget: int) -> Schedule:
    """The cheapest one within `budget` bytes; one example at a time if even that is too much."""
    batch = max(1, int(budget * (1 - SHARE) / 2) // max(1, work.pass_bytes))
    found = []
    for rows, columns in itertools.product(_sizes(n1), _sizes(n2)):
        for lavish, whole in itertools.product((False, True), repeat=2):
            written = frozenset(
                t for t in work.counted if work.writes_out(t, rows, columns, lavish=lavish)
            )
            order = Schedule(n1, n2, symmetric, rows, columns, whole, batch, written)
            single = rows == columns == 1 and not (lavish or whole)
            if single or order.held_bytes(work) <= SHARE * budget:
                found.append(order)
    return min(found, key=lambda order: (order.cost(work), order.kept))


def schedule_diagonal(work: Work, n: int, budget: int) -> Schedule:
    """Blocks of examples for the kernel of each with itself."""
    one = schedule(work, 1, 1, symmetric=True, budget=budget)
    rows = min(n, LARGEST, int(budget * SHARE) // max(1, one.held_bytes(work)))
    rows = max(1, rows)
    return Schedule(n, n, True, rows, rows, False, one.batch, one.written_out)


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
