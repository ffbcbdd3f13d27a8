"""What a chain of runs gives: sums over positions, and second moments of pooled values."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangency.infinite.fused.graph import Node
from tangency.infinite.fused.pooling import Pooling
from tangency.infinite.fused.resampling import Resampling
from tangency.infinite.fused.run import Chain
from tangency.infinite.fused.runner import Inputs, Runner
from tangency.infinite.side import Side
from tangency.infinite.values.value import Value

__all__ = ["ChainSums"]

CACHED = 1 << 19
"""Bytes of right examples' quantities that are used for several left examples in turn."""


class ChainSums:
    """A chain on two sides."""

    def __init__(
        self, chain: Chain, runner: Runner, sides: tuple[Side, Side], pool: ThreadPoolExecutor
    ) -> None:
        self._chain = chain
        self._runner = runner
        self._sides = sides
        self._pool = pool

    def tell_second_moments(self, *, head: bool) -> None:
        """Tell the sides the second moments of pooled values, which later quantities rest on.

        The sides would find them from all covariances between positions.

        Args:
            head: whether something that follows on the chain asks for quantities of one side.
        """
        means = any(leaf.detail.detail.value is not None for leaf, _ in self._chain.leaves)
        for side in dict.fromkeys(self._sides):
            inputs: list[Inputs] = []
            for index in range(len(self._chain.runs) - 1):
                inputs.append(self._runner.inputs(index, side, side))
                self._tell_mapped(side, index, inputs)
            if head and means:
                inputs.append(self._runner.inputs(len(inputs), side, side))
                self._tell_means(side, inputs)

    def _tell_mapped(self, side: Side, index: int, inputs: list[Inputs]) -> None:
        maps = [node.detail for node in self._chain.maps[index]]
        if isinstance(maps[0], Resampling) and maps[0].selects:
            return  # known from the source's
        root = next(k for k, mapped in enumerate(maps) if mapped.moment)
        mapped, run = maps[root], self._chain.runs[index]
        found = self._runner.diagonal(index, root, side.count, inputs, self._pool)
        slots = [run.geometry.extent(axis).slot for axis in mapped.axes]
        shape = found.shape[-len(slots) :]
        by_slot = torch.from_numpy(found.reshape(len(found), *shape))
        ordered = by_slot.permute(0, *(slot + 1 for slot in slots))
        sizes = tuple(slice(0, axis.size) for axis in mapped.targets)
        kept = (slice(None), *sizes)
        factor = mapped.factor if isinstance(mapped, Pooling) else 1.0
        _tell(side, mapped.value, factor * ordered[kept].movedim(0, -1))

    def _tell_means(self, side: Side, inputs: list[Inputs]) -> None:
        indices = np.arange(side.count)
        pairs = np.stack([indices, indices], axis=1)
        sums = self._runner.sums(pairs, inputs, self._pool, symmetric=True)
        for leaf, root in self._chain.leaves:
            value = leaf.detail.detail.value
            if value is not None:
                _tell(side, value, torch.from_numpy(np.ascontiguousarray(sums[:, root])))

    def matrices(self) -> dict[Node, Tensor]:
        """Sums over positions for all pairs, `(n1, n2)`, by the leaf of the head that they are."""
        rows, columns = self._sides
        symmetric = rows is columns
        inputs = [self._runner.inputs(k, rows, columns) for k in range(len(self._chain.runs))]
        together = max(1, CACHED // max(1, *(i.bytes for i in inputs)))
        pairs = _pairs(rows.count, columns.count, together, symmetric=symmetric)
        sums = self._runner.sums(pairs, inputs, self._pool, symmetric=symmetric)
        i, j = torch.from_numpy(pairs).unbind(1)
        found: dict[Node, Tensor] = {}
        for leaf, root in self._chain.leaves:
            values = torch.from_numpy(np.ascontiguousarray(sums[:, root])).to(leaf.dtype)
            matrix = torch.empty(rows.count, columns.count, dtype=leaf.dtype)
            matrix[i, j] = values
            if symmetric:
                matrix[j, i] = values
            found[leaf] = matrix
        return found


def _tell(side: Side, value: Value, moments: Tensor) -> None:
    side.memo((value, "second_moment"), lambda: moments.clamp_min(0))


def _pairs(n1: int, n2: int, together: int, *, symmetric: bool) -> NDArray[np.int64]:
    """Indices of all pairs of examples, or of those on one side of the diagonal.

    Some right examples at a time meet all left ones, so that their quantities stay in cache.
    """
    i, j = np.triu_indices(n1) if symmetric else np.indices((n1, n2)).reshape(2, -1)
    order = np.lexsort((j, i, j // together))
    return np.stack([i[order], j[order]], axis=1).astype(np.int64)
