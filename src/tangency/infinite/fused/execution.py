"""Computes NNGP and NTK of a network by generated code."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangency import tiles
from tangency.infinite.fused.arrays import SideArrays
from tangency.infinite.fused.buffers import Buffers
from tangency.infinite.fused.compiler import compiled
from tangency.infinite.fused.functions import Functions
from tangency.infinite.fused.graph import Kind, Node
from tangency.infinite.fused.head import head_bytes, head_source
from tangency.infinite.fused.loops import PRELUDE
from tangency.infinite.fused.plan import Plan, plan
from tangency.infinite.fused.source import Run, slices_source
from tangency.infinite.fused.symbolic import traced_output
from tangency.infinite.fused.tables import offsets, tables
from tangency.infinite.input_angles import input_products, input_versines
from tangency.infinite.layout import Layout
from tangency.infinite.side import Side
from tangency.infinite.values.value import Value

__all__ = ["FusedKernel"]

TILE = 1024
"""Rows and columns of the head that are computed at a time."""

TASKS = 8
"""Pieces of work per thread, so that the threads end together."""

Pointers = ctypes.Array[ctypes.c_void_p]


class FusedKernel:
    """NNGP and NTK of a network without output positions, by code generated for its rules.

    Args:
        output: the network's output.
        rows, columns: data sets like those that it will be asked for.

    Raises:
        NotFusable: the network is not local in the offset, or uses operations without a C form.
        CompilerMissing: there is no C compiler that works.
    """

    def __init__(self, output: Value, rows: Side, columns: Side) -> None:
        tracer, roots = traced_output(output, rows, columns)
        self.plan: Plan = plan(tracer, roots)
        self.dtype = rows.dtype
        self.source = _source(self.plan)
        self._library = compiled(self.source)

    def __call__(self, rows: Side, columns: Side) -> tuple[Tensor, Tensor]:
        """NNGP and NTK of all pairs, `(n1, n2)`; symmetric where both sides are one."""
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            known: dict[Node, Tensor] = {}
            for k, (run, leaves) in enumerate(self.plan.runs):
                runner = _Runner(getattr(self._library, f"run{k}"), run, leaves, rows, columns)
                known.update(runner.sums(self.plan, pool))
            return self._head(rows, columns, known, pool)

    def _head(
        self, rows: Side, columns: Side, known: dict[Node, Tensor], pool: ThreadPoolExecutor
    ) -> tuple[Tensor, Tensor]:
        shape, symmetric = (rows.count, columns.count), rows is columns
        roots = self.plan.head.roots
        results = [torch.zeros(shape, dtype=rows.dtype) for _ in range(2)]
        mine, yours = self._vectors(rows, Kind.LEFT), self._vectors(columns, Kind.RIGHT)
        for tile in tiles.plan(*shape, TILE, symmetric=symmetric):
            matrices = [
                self._matrix(n, rows, columns, known, tile) for n in self.plan.head.matrices
            ]
            made = [torch.empty(tile.shape, dtype=root.dtype) for root in roots]
            left = [t[tile.rows] if k else t for k, t in mine]
            right = [t[tile.columns] if k else t for k, t in yours]
            self._table(left, right, matrices, made, pool)
            for result, block in zip(results, made, strict=False):
                tiles.fill(result, tile, block.to(rows.dtype), symmetric=symmetric)
        return results[0], results[1]

    def _vectors(self, side: Side, kind: str) -> list[tuple[bool, Tensor]]:
        arrays = SideArrays(side, kind)
        listed = self.plan.head.schedule.arrays
        empty = torch.empty(0)
        return [(True, arrays.vector(a)) if a.side == kind else (False, empty) for a in listed]

    def _matrix(
        self, node: Node, rows: Side, columns: Side, known: dict[Node, Tensor], tile: tiles.Tile
    ) -> Tensor:
        """A leaf of the head on one tile."""
        if node in known:
            return known[node][tile.rows, tile.columns].contiguous()
        detail, layout = node.detail, Layout((), ())
        name = "unit" if detail.versine else "array"
        left = rows.quantity(detail.left, name)[..., tile.rows, :]
        right = columns.quantity(detail.right, name)[..., tile.columns, :]
        if detail.versine:
            return input_versines(left, right, layout, coincident=False).contiguous()
        product = input_products(left.double(), right.double(), layout, coincident=False)
        return (product / detail.channels).contiguous()

    def _table(
        self,
        left: Sequence[Tensor],
        right: Sequence[Tensor],
        matrices: Sequence[Tensor],
        made: Sequence[Tensor],
        pool: ThreadPoolExecutor,
    ) -> None:
        height, width = made[0].shape
        pointers = [_pointers(group) for group in (left, right, matrices, made)]
        size = head_bytes(self.plan.head)

        def part(first: int, last: int) -> None:
            scratch = _zeros(size)
            bounds = [ctypes.c_long(v) for v in (first, last, 0, width, width)]
            self._library.head(*pointers, _address(scratch), *bounds)

        _in_parts(height, part, pool)


def _source(planned: Plan) -> str:
    functions = Functions()
    runs = [slices_source(f"run{k}", run, functions) for k, (run, _) in enumerate(planned.runs)]
    parts = [head_source(planned.head), *("\n".join(map(str, lines)) for lines in runs)]
    return "\n\n".join([PRELUDE, functions.text(), *parts])


class _Runner:
    """One run on two sides."""

    def __init__(
        self,
        function: Callable[..., object],
        run: Run,
        leaves: list[Node],
        rows: Side,
        columns: Side,
    ) -> None:
        self._function = function
        self._run = run
        self._leaves = leaves
        self._sides = rows, columns

    def sums(self, whole: Plan, pool: ThreadPoolExecutor) -> dict[Node, Tensor]:
        """The sums over positions, `(n1, n2)`, by the leaf of the head that asks for them."""
        rows, columns = self._sides
        everywhere = self._leaves[0].detail.detail.offsets
        down, across = offsets(self._run, everywhere=everywhere)
        self._tables = tables(self._run, down, across)
        self._left, self._right = self._arrays(rows, Kind.LEFT), self._arrays(columns, Kind.RIGHT)
        pairs = _pairs(rows.count, columns.count, symmetric=rows is columns)
        sums = self._all(pairs, len(down), len(across), pool)
        return {leaf: self._matrix(leaf, pairs, sums) for leaf in self._leaves}

    def _arrays(self, side: Side, kind: str) -> list[Tensor]:
        arrays = SideArrays(side, kind, self._run.geometry)
        listed = self._run.schedule.arrays
        empty = torch.empty(0)
        found = [arrays.matrix(a, self._run) if a.side == kind else empty for a in listed]
        return found + [arrays.data(node, self._run) for node in self._run.data]

    def _all(
        self, pairs: NDArray[np.int64], down: int, across: int, pool: ThreadPoolExecutor
    ) -> NDArray[np.float64]:
        """Sums of each root over all slices of each pair, `(pairs, roots)`."""
        threads = torch.get_num_threads()
        left, right, tables_ = (
            _pointers(self._left),
            _pointers(self._right),
            _addresses(self._tables),
        )
        size = Buffers(self._run).bytes
        total = np.zeros((len(pairs), len(self._run.roots)))

        def part(first: int, last: int, begin: int, end: int) -> NDArray[np.float64]:
            out = np.zeros((last - first, total.shape[1]))
            chosen = np.ascontiguousarray(pairs[first:last])
            scratch = _zeros(size)
            bounds = (ctypes.c_long(v) for v in (last - first, begin, end))
            count, *rest = bounds
            self._function(
                left,
                right,
                tables_,
                _address(scratch),
                _pointer(chosen),
                count,
                *rest,
                _pointer(out),
            )
            return out

        pieces = max(1, min(len(pairs), TASKS * threads))
        slices = 1 if len(pairs) >= TASKS * threads else min(across, -(-TASKS * threads // pieces))
        jobs = []
        for p in range(pieces):
            first, last = p * len(pairs) // pieces, (p + 1) * len(pairs) // pieces
            for s in range(slices):
                begin, end = s * across // slices * down, (s + 1) * across // slices * down
                jobs.append((first, last, pool.submit(part, first, last, begin, end)))
        for first, last, job in jobs:
            total[first:last] += job.result()
        return total

    def _matrix(self, leaf: Node, pairs: NDArray[np.int64], sums: NDArray[np.float64]) -> Tensor:
        rows, columns = self._sides
        root = self._run.roots.index(leaf.detail.inputs[0])
        values = torch.from_numpy(np.ascontiguousarray(sums[:, root])).to(leaf.dtype)
        matrix = torch.empty(rows.count, columns.count, dtype=leaf.dtype)
        i, j = torch.from_numpy(pairs).unbind(1)
        matrix[i, j] = values
        if rows is columns:
            matrix[j, i] = values
        return matrix


def _pairs(n1: int, n2: int, *, symmetric: bool) -> NDArray[np.int64]:
    """Indices of all pairs of examples, or of those on one side of the diagonal."""
    i, j = np.triu_indices(n1) if symmetric else np.indices((n1, n2)).reshape(2, -1)
    return np.stack([i, j], axis=1).astype(np.int64)


def _in_parts(count: int, part: Callable[[int, int], None], pool: ThreadPoolExecutor) -> None:
    pieces = min(count, TASKS * torch.get_num_threads())
    cuts = [k * count // pieces for k in range(pieces + 1)]
    for job in [pool.submit(part, a, b) for a, b in itertools.pairwise(cuts)]:
        job.result()


# -- memory ------------------------------------------------------------------------------------


def _zeros(size: int) -> NDArray[np.uint8]:
    """Scratch memory that begins at a cache line."""
    raw = np.zeros(size + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


def _address(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


_pointer = _address


def _addresses(arrays: Sequence[NDArray[np.generic]]) -> Pointers:
    return (ctypes.c_void_p * max(1, len(arrays)))(*(a.ctypes.data for a in arrays))


def _pointers(tensors: Sequence[Tensor]) -> Pointers:
    return (ctypes.c_void_p * max(1, len(tensors)))(*(t.data_ptr() for t in tensors))
