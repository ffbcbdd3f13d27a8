"""Computes NNGP and NTK of a network by generated code."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from tangency import tiles
from tangency.infinite.fused.arrays import SideArrays
from tangency.infinite.fused.chain_sums import ChainSums
from tangency.infinite.fused.compiler import compiled
from tangency.infinite.fused.functions import Functions
from tangency.infinite.fused.graph import Kind, Node, NotFusable
from tangency.infinite.fused.head import head_bytes, head_source
from tangency.infinite.fused.loops import PRELUDE
from tangency.infinite.fused.memory import address, integer, pointers, zeros
from tangency.infinite.fused.plan import Plan, plan
from tangency.infinite.fused.runner import TASKS, Runner
from tangency.infinite.fused.source import chain_source, slices_source
from tangency.infinite.fused.symbolic import traced_output
from tangency.infinite.input_angles import input_products, input_versines
from tangency.infinite.layout import Layout
from tangency.infinite.side import Side
from tangency.infinite.values.value import Value

__all__ = ["FusedKernel"]

TILE = 512
"""Rows and columns of the head that are computed at a time."""


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
        try:
            self.plan: Plan = plan(*traced_output(output, rows, columns))
        except NotFusable:
            # Windows that wrap around part of an image read a padded one.
            self.plan = plan(*traced_output(output, rows, columns, wraps=False))
        self.dtype = rows.dtype
        self.source = _source(self.plan)
        self._library = compiled(self.source)
        self._runners = [
            Runner(self._library, f"chain{k}", chain) for k, chain in enumerate(self.plan.chains)
        ]

    @property
    def diagonal(self) -> bool:
        """Whether the diagonal is better taken from a recursion for single examples.

        That one knows that an example is at no angle to itself, where the moments of a convolution
        know it to rounding: the NTK has a relative error of some 1e-9. It is cheap where
        covariances at unequal positions are not needed.
        """
        chains = self.plan.chains
        alone = all(c.weights is None and len(c.runs) == 1 for c in chains)
        return not chains or (alone and self.dtype == torch.float64)

    def __call__(self, rows: Side, columns: Side) -> tuple[Tensor, Tensor]:
        """NNGP and NTK of all pairs, `(n1, n2)`; symmetric where both sides are one."""
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            known: dict[Node, Tensor] = {}
            for chain, runner in zip(self.plan.chains, self._runners, strict=True):
                sums = ChainSums(chain, runner, (rows, columns), pool)
                sums.tell_second_moments(head=bool(self.plan.head.schedule.arrays))
                known.update(sums.matrices())
            return self._head(rows, columns, known, pool)

    def _head(
        self, rows: Side, columns: Side, known: dict[Node, Tensor], pool: ThreadPoolExecutor
    ) -> tuple[Tensor, Tensor]:
        shape, symmetric = (rows.count, columns.count), rows is columns
        roots = self.plan.head.roots
        results = [torch.empty(shape, dtype=rows.dtype) for _ in roots]
        mine, yours = self._vectors(rows, Kind.LEFT), self._vectors(columns, Kind.RIGHT)
        cut = tiles.plan(*shape, TILE, symmetric=symmetric)
        with tiles.progress("kernel", len(cut)) as advance:
            for tile in cut:
                matrices = [
                    self._matrix(n, rows, columns, known, tile) for n in self.plan.head.matrices
                ]
                made = [torch.empty(tile.shape, dtype=root.dtype) for root in roots]
                left = [t[tile.rows] if k else t for k, t in mine]
                right = [t[tile.columns] if k else t for k, t in yours]
                self._table(left, right, matrices, made, pool)
                for result, block in zip(results, made, strict=True):
                    tiles.fill(result, tile, block.to(rows.dtype), symmetric=symmetric)
                advance()
        return results[0], results[1] if len(results) > 1 else torch.zeros_like(results[0])

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
            versine: Tensor = input_versines(left, right, layout, coincident=False)
            return versine.contiguous()
        product = input_products(left.double(), right.double(), layout, coincident=False)
        mean: Tensor = product / detail.channels
        return mean.contiguous()

    def _table(
        self,
        left: Sequence[Tensor],
        right: Sequence[Tensor],
        matrices: Sequence[Tensor],
        made: Sequence[Tensor],
        pool: ThreadPoolExecutor,
    ) -> None:
        height, width = made[0].shape
        tables = [pointers(group) for group in (left, right, matrices, made)]
        size = head_bytes(self.plan.head)

        def part(first: int, last: int) -> None:
            scratch = zeros(size)
            bounds = [integer(v) for v in (first, last, 0, width, width)]
            self._library.head(*tables, address(scratch), *bounds)

        _in_parts(height, part, pool)


def _source(planned: Plan) -> str:
    functions = Functions()
    parts = [head_source(planned.head, functions)]
    for c, chain in enumerate(planned.chains):
        for k, run in enumerate(chain.runs):
            parts.append(slices_source(f"chain{c}_{k}", run, functions))
        parts.append([chain_source(f"chain{c}", chain.runs)])
    texts = ["\n".join(map(str, lines)) for lines in parts]
    return "\n\n".join([PRELUDE, functions.text(), *texts])


def _in_parts(count: int, part: Callable[[int, int], None], pool: ThreadPoolExecutor) -> None:
    pieces = min(count, TASKS * torch.get_num_threads())
    cuts = [k * count // pieces for k in range(pieces + 1)]
    for job in [pool.submit(part, a, b) for a, b in itertools.pairwise(cuts)]:
        job.result()
