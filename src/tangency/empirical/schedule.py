"""How a kernel matrix is cut into tiles, so that it takes the least time within a memory budget."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, TypeAlias

from tangency.empirical.costs import (
    WORKING_SET,
    WRITTEN,
    Layout,
    Term,
    cheapest,
    making,
    multiplying,
)
from tangency.tiles import Tile

__all__ = ["Schedule", "Work", "schedule", "schedule_diagonal"]

Written: TypeAlias = Literal["none", "smaller", "all"]
"""Which of the gradients that are to be multiplied as such are written out once: none, those that
take less memory so, all."""

_WRITTEN: tuple[Written, ...] = ("none", "smaller", "all")

PASS = 4.0
"""Multiply-adds of a matrix product that take the time of one in a pass through the network."""

CALL = 1e7
"""Multiply-adds that take the time of one term's calls in one tile."""

SHARE = 0.7
"""Of the memory budget, for gradients at rest; the rest is for making and multiplying them."""

RESERVE = 0.9
"""Of the memory budget that is planned with: allocators and libraries want some too."""

WORK = 2 * (WORKING_SET + WRITTEN)
"""Bytes that a contraction takes while it works."""

LARGEST = 4096
"""Examples of a tile at most."""


@dataclass(frozen=True)
class Work:
    """What a kernel needs of every example.

    Attributes:
        terms: parameter -> for each set of its entries, the terms of its gradients.
        pass_bytes: memory of a passage through the network, for each example, besides the
            gradients at rest.
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
    def held_bytes(self) -> int:
        """Memory of one example's gradients as they come from a passage."""
        return sum(k * t.held_bytes(self.out) for t, k in self.counted.items())

    @property
    def passed(self) -> float:
        """Cost of one example's outputs and cotangents: forward, and backward for each output."""
        return PASS * (1 + self.out) * sum(k * t.applied for t, k in self.counted.items())

    def writes_out(self, t: Term, rows: int, columns: int, how: Written) -> bool:
        """Whether the gradients of a term are written out once, not for every tile."""
        if t.kind == "written out" or how == "none":
            return False
        if cheapest(t, rows, columns, self.out, self.layout) != "gradients":
            return False
        return how == "all" or t.written_bytes(self.out) <= t.held_bytes(self.out)


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
    def tiles_on_diagonal(self) -> int:
        """Tiles of a block of rows with itself."""
        return self.blocks if self.symmetric else 0

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
        return self.rows + (self.columns if self.met else 0)

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

    def peak_bytes(self, work: Work) -> int:
        """Memory of everything, at most."""
        batch = min(self.batch, self.kept)
        passing = work.pass_bytes + (work.held_bytes if batch < self.kept else 0)
        return self.held_bytes(work) + batch * passing + WORK

    def bytes_of(self, t: Term, work: Work) -> int:
        """Memory of a term of one example's gradient at rest."""
        return t.written_bytes(work.out) if t in self.written_out else t.held_bytes(work.out)

    def multiplying(self, t: Term, work: Work) -> float:
        """Cost of all products of one term, and of writing it out where that is done once."""
        written = t in self.written_out

        def tile(rows: int, columns: int, *, same: bool) -> float:
            size = rows, columns
            found = multiplying(t, *size, work.out, work.layout, written=written, same=same)
            return found + CALL

        total = self.passages * making(t, work.out) if written else 0.0
        if self.met:
            others = self.met * (self.n1 / self.blocks) / (self.rows * self.columns)
            total += others * tile(self.rows, self.columns, same=False)
        if self.symmetric:
            total += self.tiles_on_diagonal * tile(self.rows, self.rows, same=True)
        return total

    def cost(self, work: Work) -> float:
        """Of everything, in multiply-adds of a matrix product."""
        products = sum(k * self.multiplying(t, work) for t, k in work.counted.items())
        return self.passages * work.passed + products


def schedule(work: Work, n1: int, n2: int, *, symmetric: bool, budget: int) -> Schedule:
    """The cheapest one within `budget` bytes; one example at a time if even that is too much."""
    counted = frozenset(work.counted.items())
    return _search(counted, work.pass_bytes, work.out, work.layout, n1, n2, symmetric, budget)


@lru_cache(maxsize=64)  # the same kernel is often computed again
def _search(
    counted: frozenset[tuple[Term, int]],
    pass_bytes: int,
    out: int,
    layout: Layout,
    n1: int,
    n2: int,
    symmetric: bool,
    budget: int,
) -> Schedule:
    work = Work({"": [[t for t, k in counted for _ in range(k)]]}, pass_bytes, out, layout)
    each = work.pass_bytes + work.held_bytes
    everything = n1 if symmetric else n1 + n2
    room = int(RESERVE * max(budget - WORK, budget / 2))
    if max(n1, n2) <= LARGEST and everything * each <= room:
        # Nothing is made twice.
        return Schedule(n1, n2, symmetric, n1, n2, False, max(n1, n2), frozenset())
    batch = max(1, int(room * (1 - SHARE)) // max(1, each))
    best: tuple[float, int] | None = None
    found: Schedule | None = None
    for rows, columns in itertools.product(_sizes(n1), _powers(n2)):
        for how in _WRITTEN:
            written = frozenset(t for t, _ in counted if work.writes_out(t, rows, columns, how))
            if how != "none" and not written:
                continue
            for whole in (False, True):
                order = Schedule(n1, n2, symmetric, rows, columns, whole, batch, written)
                single = rows == columns == 1 and how == "none" and not whole
                if not single and order.held_bytes(work) > SHARE * room:
                    continue
                key = order.cost(work), order.kept
                if best is None or key < best:
                    best, found = key, order
    assert found is not None
    return found


def schedule_diagonal(work: Work, n: int, budget: int) -> Schedule:
    """Blocks of examples for the kernel of each with itself."""
    one = schedule(work, 1, 1, symmetric=True, budget=budget)
    rows = min(n, LARGEST, int(budget * SHARE) // max(1, one.held_bytes(work)))
    rows = max(1, rows)
    return Schedule(n, n, True, rows, rows, False, one.batch, one.written_out)


def _sizes(n: int) -> list[int]:
    """Sizes to try: powers of two, some between them, and the largest."""
    largest = min(n, LARGEST)
    return sorted({*_powers(n), *(3 * 2**k for k in range(12) if 3 * 2**k < largest)})


def _powers(n: int) -> list[int]:
    """Powers of two, and the largest size."""
    largest = min(n, LARGEST)
    return sorted({2**k for k in range(12) if 2**k < largest} | {largest})


def _cut(start: int, stop: int, size: int) -> list[slice]:
    """Slices of nearly equal length, none longer than `size`."""
    pieces = -(-(stop - start) // size)
    edges = [start + i * (stop - start) // pieces for i in range(pieces + 1)] if pieces else []
    return [slice(a, b) for a, b in itertools.pairwise(edges)]
