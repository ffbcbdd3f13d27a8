"""Runs a chain on two data sets: which thread computes which pairs and slices."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangency import tiles
from tangency.infinite.fused.arrays import SideArrays, form
from tangency.infinite.fused.buffers import Buffers
from tangency.infinite.fused.fetching import fetched
from tangency.infinite.fused.graph import Kind, NotFusable
from tangency.infinite.fused.memory import address, integer, pointers, table, zeros
from tangency.infinite.fused.run import Chain, Run
from tangency.infinite.fused.tables import Sweep, sweeps
from tangency.infinite.side import Side

__all__ = ["Inputs", "Runner"]

TASKS = 8
"""Pieces of work per thread, so that the threads end together."""

MOST_TASKS = 200
MOST_BYTES = 1 << 30
"""Of slices in memory, of all threads together."""

FEWEST_PAIRS = 64
"""Long work is cut into more pieces, so that a progress bar moves: so many, of so many pairs."""

Pairs = NDArray[np.int64]
Sums = NDArray[np.float64]


Slices = Callable[[list[NDArray[np.uint8]], range, int, int], tuple[Sums, list[NDArray[np.uint8]]]]
"""Computes some slices of a pair: from the blocks, those that are its own, and the slices."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads of two sides."""

    left: list[Tensor]
    right: list[Tensor]

    @property
    def bytes(self) -> int:
        """Size of one right example's quantities."""
        return sum(t[0].numel() * t.element_size() for t in self.right if len(t))


class Runner:
    """One chain.

    Args:
        library: the compiled code.
        name: of the chain in it.

    Raises:
        NotFusable: slices that are kept in memory take too much of it.
    """

    def __init__(self, library: ctypes.CDLL, name: str, chain: Chain) -> None:
        self._library = library
        self._name = name
        self._chain = chain
        self._scratch = [Buffers(run).bytes for run in chain.runs]
        self._guard = max(Buffers(run).guard for run in chain.runs) * 8
        everywhere, last = chain.weights is not None, len(chain.runs) - 1
        swept = sweeps(chain, last, everywhere=everywhere, symmetric=False)
        self._kept = sum(self._memory(swept))
        if self._kept > MOST_BYTES:
            raise NotFusable("slices that take more memory than there should be")

    def inputs(self, index: int, rows: Side, columns: Side) -> Inputs:
        """The quantities of single examples that a run reads."""
        run = self._chain.runs[index]
        left = _quantities(run, rows, Kind.LEFT, {})
        known = _shared(run, left) if rows is columns else {}
        return Inputs(left, _quantities(run, columns, Kind.RIGHT, known))

    def sums(
        self, pairs: Pairs, inputs: list[Inputs], pool: ThreadPoolExecutor, *, symmetric: bool
    ) -> Sums:
        """The last run's sums over positions of each pair of examples, `(pairs, roots)`.

        Args:
            symmetric: whether both sides are one, so that equal indices are one example.
        """
        itself = symmetric & (pairs[:, 0] == pairs[:, 1])
        everywhere, last = self._chain.weights is not None, len(self._chain.runs) - 1
        groups = [
            (indices, sweeps(self._chain, last, everywhere=everywhere, symmetric=alike))
            for indices, alike in ((np.flatnonzero(~itself), False), (np.flatnonzero(itself), True))
            if len(indices)
        ]
        total = np.zeros((len(pairs), len(self._chain.runs[-1].roots)))
        threads = torch.get_num_threads()
        if len(pairs) >= TASKS * threads and self._kept * threads <= MOST_BYTES:
            self._by_pairs(pairs, inputs, groups, total, pool)
            return total
        with tiles.progress("kernel", len(pairs)) as advance:
            for indices, swept in groups:
                dense = self._blocks(swept)
                for k in indices:
                    total[k] = self._one(pairs[k], inputs, swept, pool, dense)
                    advance()
        return total

    def diagonal(
        self, index: int, root: int, count: int, inputs: list[Inputs], pool: ThreadPoolExecutor
    ) -> NDArray[np.generic]:
        """What follows on a run, of each example with itself at equal positions.

        It is made of a root that is a moment; the shape is `(examples, rows, columns)`.
        """
        swept = sweeps(self._chain, index, everywhere=False, symmetric=True)
        run = self._chain.runs[index]
        rows, columns = run.shape(run.result)
        high, wide = run.windowed
        gathers = fetched(self._chain, index, [0], [0]) if run.stored else None
        found, dense = [], self._blocks(swept)
        for i in range(count):
            self._one(np.array([i, i]), inputs, swept, pool, dense)
            made = dense[run.first + root].view(np.float64)
            if gathers is not None:
                found.append(gathers.of(made))
            else:
                found.append(made.reshape(rows // high, columns // wide).copy())
        return np.stack(found)

    # -- many pairs ----------------------------------------------------------------------------

    def _by_pairs(
        self,
        pairs: Pairs,
        inputs: list[Inputs],
        groups: list[tuple[NDArray[np.intp], list[Sweep]]],
        total: Sums,
        pool: ThreadPoolExecutor,
    ) -> None:
        """Each thread takes some pairs through all runs."""
        fewest = TASKS * torch.get_num_threads()
        pieces = max(fewest, min(MOST_TASKS, len(pairs) // FEWEST_PAIRS))
        jobs = []
        for indices, swept in groups:
            part = self._part(pairs, inputs, swept, total)
            count = -(-pieces * len(indices) // len(pairs))
            jobs += [pool.submit(part, some) for some in np.array_split(indices, count)]
        with tiles.progress("kernel", len(jobs)) as advance:
            _finish(jobs, advance)

    def _part(
        self, pairs: Pairs, inputs: list[Inputs], swept: list[Sweep], total: Sums
    ) -> Callable[[NDArray[np.intp]], None]:
        """Computes the pairs with given indices."""
        left = [pointers(i.left) for i in inputs]
        right = [pointers(i.right) for i in inputs]
        tables = [table(s.tables) for s in swept]
        counts = np.array([s.count for s in swept], dtype=np.int64)
        sizes = np.array(self._sizes(swept), dtype=np.int64)
        function = getattr(self._library, self._name)

        def part(indices: NDArray[np.intp]) -> None:
            scratch = [zeros(size) for size in self._scratch]
            dense = self._blocks(swept)
            chosen = np.ascontiguousarray(pairs[indices])
            sums = np.zeros((len(indices), total.shape[1]))
            function(
                *(table(group) for group in (left, right, tables, scratch, dense)),
                *(address(array) for array in (sizes, counts, chosen)),
                integer(len(indices)),
                address(sums),
            )
            total[indices] = sums

        return part

    # -- one pair ------------------------------------------------------------------------------

    def _one(
        self,
        pair: NDArray[np.int64],
        inputs: list[Inputs],
        swept: list[Sweep],
        pool: ThreadPoolExecutor,
        dense: list[NDArray[np.uint8]],
    ) -> Sums:
        """All threads take slices of one run after the other; `dense` is filled anew."""
        sums = np.zeros(len(self._chain.runs[-1].roots))
        for k, sweep in enumerate(swept):
            if not sweep.count:
                continue
            run = self._chain.runs[k]
            call = self._call(k, pair, inputs[k], sweep)
            pieces = max(1, min(TASKS * torch.get_num_threads(), len(sweep.across)))
            if run.pools:
                pieces = min(pieces, torch.get_num_threads())  # each has blocks of its own
            own = range(run.first, run.first + len(run.roots)) if run.pools else range(0)
            for block in own:
                dense[block][:] = 0
            cuts = [p * len(sweep.across) // pieces * len(sweep.down) for p in range(pieces + 1)]
            jobs = [pool.submit(call, dense, own, a, b) for a, b in itertools.pairwise(cuts)]
            for job in jobs:
                part, made = job.result()
                if not run.widths:
                    sums += part
                for root, block, more in zip(run.roots, own, made, strict=False):
                    kind = np.float64 if root.dtype == torch.float64 else np.float32
                    dense[block].view(kind)[:] += more.view(kind)
        return sums

    def _blocks(self, swept: list[Sweep]) -> list[NDArray[np.uint8]]:
        """The memory between the runs, which blocks share that are not needed at the same time."""
        sizes = self._sizes(swept)
        places = self._places(len(sizes))
        made = [zeros(size, self._guard) for size in self._memory(swept)]
        return [made[place][:size] for place, size in zip(places, sizes, strict=True)]

    def _memory(self, swept: list[Sweep]) -> list[int]:
        """Sizes of all places."""
        sizes = self._sizes(swept)
        largest: dict[int, int] = {}
        for place, size in zip(self._places(len(sizes)), sizes, strict=True):
            largest[place] = max(size, largest.get(place, 0))
        return [largest[place] for place in sorted(largest)]

    def _places(self, count: int) -> list[int]:
        """For each of the first blocks, a place that is free while it is needed.

        A place holds one type of number, for taps that leave a slice read what is beside it.
        """
        places: list[int] = []
        held: list[tuple[torch.dtype, int]] = []  # the type of each place, and its last reader
        for k, run in enumerate(self._chain.runs[:-1]):
            reader = self._chain.reader(k)[0]
            for root in run.roots:
                free = [
                    at for at, (kind, last) in enumerate(held) if kind == root.dtype and last < k
                ]
                place = free[0] if free else len(held)
                held[place : place + 1] = [(root.dtype, reader)]
                places.append(place)
        return places[:count]

    def _call(self, index: int, pair: NDArray[np.int64], inputs: Inputs, sweep: Sweep) -> Slices:
        function = getattr(self._library, f"{self._name}_{index}")
        fixed = pointers(inputs.left), pointers(inputs.right), table(sweep.tables)

        def slices(
            dense: list[NDArray[np.uint8]], own: range, first: int, last: int
        ) -> tuple[Sums, list[NDArray[np.uint8]]]:
            scratch = zeros(self._scratch[index])
            sums = np.zeros(len(self._chain.runs[index].roots))
            made = [zeros(dense[block].size, self._guard) for block in own]
            blocks = [made[k - own.start] if k in own else block for k, block in enumerate(dense)]
            bounds = (integer(int(v)) for v in (*pair, first, last))
            function(*fixed, address(scratch), table(blocks), *bounds, address(sums))
            return sums, made

        return slices

    def _sizes(self, swept: list[Sweep]) -> list[int]:
        """Bytes of the blocks between the runs."""
        sizes: list[int] = []
        for k, run in enumerate(self._chain.runs[: len(swept)]):
            if not run.widths:
                continue
            slices = 1
            if run.stored:
                slices = swept[k].count
            elif k + 1 < len(swept):
                reader = self._chain.reader(k)[0]
                slices = swept[reader].count if reader < len(swept) else 0
            rows, columns = run.shape(run.result)
            high, wide = run.windowed
            numbers = slices * rows * columns // (high * wide)
            sizes += [numbers * root.dtype.itemsize for root in run.roots]
        return sizes


def _finish(jobs: Sequence[Future[None]], advance: Callable[[], None]) -> None:
    """Wait for jobs one after the other; an interruption does not wait for those not begun."""
    try:
        for job in jobs:
            job.result()
            advance()
    finally:
        for job in jobs:
            job.cancel()


def _quantities(run: Run, side: Side, kind: str, known: Mapping[Hashable, Tensor]) -> list[Tensor]:
    """What a run reads of one side; some of it may be known already."""
    arrays = SideArrays(side, kind, run.geometry)
    found: list[Tensor] = []
    for array in run.schedule.arrays:
        if array.side != kind:
            found.append(torch.empty(0))
            continue
        same = known.get((form(array.node), array.level))
        found.append(arrays.matrix(array, run) if same is None else same)
    for node in run.data:
        same = known.get(node) if node.detail.left is node.detail.right else None
        found.append(arrays.data(node, run) if same is None else same)
    return found


def _shared(run: Run, left: list[Tensor]) -> dict[Hashable, Tensor]:
    """Quantities of the left side by what they are, for a right side that is the same."""
    arrays = run.schedule.arrays
    pairs = zip(arrays, left, strict=False)
    shared: dict[Hashable, Tensor] = {
        (form(array.node), array.level): t for array, t in pairs if array.side == Kind.LEFT
    }
    return shared | dict(zip(run.data, left[len(arrays) :], strict=True))
