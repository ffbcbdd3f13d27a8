"""Kernel matrices between two sides, tile by tile, eagerly or by compiled code."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from tangency import tiles
from tangency.infinite.evaluation import FEWEST, CompiledBlock, evaluate
from tangency.infinite.fused import Fusion
from tangency.infinite.layout import Layout, Positions
from tangency.infinite.pairs import Pairs
from tangency.infinite.planning import EvaluationPlan, plan
from tangency.infinite.side import Side, SideTile
from tangency.infinite.values.value import Value, to_positions
from tangency.kernel_pair import KernelPair
from tangency.program.axes import size_of
from tangency.program.capture import Program

__all__ = ["Evaluation"]

COMPILE_PAYS = 90.0
"""Seconds of eager evaluation still to come from which compilation is worth its own time."""


class Evaluation:
    """Evaluates the covariance of one output.

    Args:
        output: the value.
        positions: position axes of the output in the order of the module.
        program: the whole program.
        compile: as for `InfiniteKernel`.
    """

    def __init__(
        self,
        output: Value,
        positions: Positions,
        program: Program,
        compile: bool | Literal["auto"],
    ) -> None:
        self.output = output
        self.positions = positions
        self.program = program
        self.compile = compile
        self._compiled: CompiledBlock | None = None
        self._compile_failed = False
        self._fusion = Fusion(output, program, compile)

    def pair(self, rows: Side, columns: Side, *, symmetric: bool) -> KernelPair:
        """Both kernels between two sides, shape `(n1, n2, *P, *P)`."""
        fused = self._fusion.kernel(rows, columns)
        if fused is not None:
            return self._with_diagonal(fused(rows, columns), rows, symmetric and fused.diagonal)
        sizes = [axis.size for axis in (*self.positions, *self.positions)]
        shape = (rows.count, columns.count, *sizes)
        kernels = [torch.empty(shape, dtype=rows.dtype, device=rows.device) for _ in range(2)]
        planned = plan(self._evaluate, rows, columns, self._most_positions())
        cut = tiles.plan(rows.count, columns.count, planned.tile_size, symmetric=symmetric)
        with tiles.progress("kernel", len(cut)) as advance:
            for tile, blocks in zip(cut, self._blocks(rows, columns, cut, planned), strict=True):
                for kernel, block in zip(kernels, blocks, strict=True):
                    full = self._arrange(block, *tile.shape)
                    tiles.fill(kernel, tile, full, symmetric=symmetric)
                advance()
        return self._with_diagonal(kernels, rows, symmetric and not self.positions)

    def _with_diagonal(self, kernels: Sequence[Tensor], rows: Side, exact: bool) -> KernelPair:
        """The kernels, with the diagonal from its own recursion if `exact`."""
        if exact:
            for kernel, diagonal in zip(kernels, self.diagonal(rows), strict=True):
                kernel.diagonal().copy_(diagonal)
        return KernelPair(*kernels)

    def of_samples(self, side: Side) -> KernelPair:
        """Both kernels of the examples of a side with themselves, by its samples."""
        kernels, n = [], side.count
        for block in evaluate(self.output, side.draws.pairs):
            full = self._arrange(block, n, n)
            kernels.append(torch.empty_like(full))
            tile = tiles.Tile(slice(0, n), slice(0, n))
            tiles.fill(kernels[-1], tile, full, symmetric=True)
        return KernelPair(*kernels)

    def diagonal(self, side: Side) -> KernelPair:
        """Both kernels of each example with itself, shape `(n, *P)`."""
        output = self.output
        nngp = side.second_moment(output)
        ties = frozenset((a, a) for a in output.positions)

        def tangent(pairs: Pairs) -> Tensor:
            block = pairs.block(output, output, ties)
            assert block is not None
            shape = block.versine.shape if block.ntk is None else block.ntk.shape
            ntk = nngp.new_zeros(shape) if block.ntk is None else block.ntk
            return ntk.expand(*(a.size for a in output.positions), -1)

        ntk = side.by_chunks(output, "diagonal", self._most_positions() ** 2, tangent)
        kernels = []
        for kernel in (nngp, ntk):
            placed = to_positions(kernel, output.positions, self.positions)
            full = side.full(placed, self.positions).movedim(-1, 0)
            kernels.append(full.to(side.dtype).clone())
        return KernelPair(*kernels)

    def _evaluate(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return evaluate(self.output, pairs)

    def _most_positions(self) -> int:
        """Positions of the random value that has most."""
        program = self.program
        random = [n for n in program.axes if program.nature[n] == "random"]
        return max(size_of(program.atoms(n, "position")) for n in random)

    def _blocks(
        self, rows: Side, columns: Side, cut: Sequence[tiles.Tile], planned: EvaluationPlan
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The blocks of the tiles in order; goes over to compiled code where that pays."""
        compiled = self._compiled_for(rows, columns) if self.compile is True else None
        if compiled is None and self._compiled is not None and self._compiled.fits(rows, columns):
            compiled = self._compiled
        block = compiled.on(rows, columns) if compiled is not None else None
        for done, tile in enumerate(cut, start=1):
            if block is not None:
                yield block(tile)
                continue
            start = time.perf_counter()
            sides = SideTile(rows, tile.rows), SideTile(columns, tile.columns)
            yield self._evaluate(Pairs(*sides, uses=planned.uses))
            to_come = (time.perf_counter() - start) * (len(cut) - done)
            if self.compile == "auto" and to_come > COMPILE_PAYS:
                compiled = self._compiled_for(rows, columns)
                block = compiled.on(rows, columns) if compiled is not None else None

    def _compiled_for(self, rows: Side, columns: Side) -> CompiledBlock | None:
        """Compiled code for these sides, from an earlier call where it fits."""
        known = self._compiled
        if known is not None and known.fits(rows, columns):
            return known
        if min(rows.count, columns.count) < FEWEST:
            return None
        if not self._compile_failed:
            self._compiled = CompiledBlock.attempt(self.output, rows, columns)
            self._compile_failed = self._compiled is None
        return self._compiled

    def _arrange(self, block: Tensor, n1: int, n2: int) -> Tensor:
        """From `(*P, *P, n1, n2)`, partly broadcast, to `(n1, n2, *P, *P)`."""
        inner = Layout(self.output.positions, self.output.positions)
        whole = Layout(self.positions, self.positions)
        sizes = [axis.size for axis in (*whole.left, *whole.right)]
        full = whole.embed(block, inner).expand(*sizes, n1, n2)
        return full.movedim((-2, -1), (0, 1))
