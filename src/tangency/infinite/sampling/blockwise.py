"""Covariances of a whole data set, each computed for some pairs of examples at a time.

What is remembered are covariances of all examples, which samples need; what is computed on the way
to one of them is as small as a few pairs of examples. Of a value with itself, half of the pairs
are computed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangency import tiles
from tangency.infinite.layout import Block, Layout, Moments
from tangency.infinite.memory import Memory
from tangency.infinite.pairs import Kind, Pairs
from tangency.infinite.sampling.mirroring import is_symmetric, mirror
from tangency.infinite.values.value import Value, uncorrelated
from tangency.program.axes import size_of

if TYPE_CHECKING:
    from tangency.infinite.side import SideTile

__all__ = ["BlockwisePairs"]

TILE = 512**2
"""Entries of one covariance that are computed at a time, so that they stay in cache."""


class BlockwisePairs(Pairs):
    """Covariances between all examples of one side.

    Args:
        whole: the side.
        memory: where the covariances are remembered.
    """

    def __init__(self, whole: SideTile, memory: Memory) -> None:
        super().__init__(whole, whole, memory=memory)
        self.whole = True
        self._one_side = whole.side
        self._count = whole.side.count

    def _compute(self, kind: Kind, u: Value, v: Value, layout: Layout) -> Any:
        if uncorrelated(u, v):
            return None
        expands = u if u.precedence >= v.precedence else v
        pairs = max(1, TILE // _entries(u, v, layout))
        if expands.whole or pairs >= self._count**2:
            return super()._compute(kind, u, v, layout)
        symmetric = u is v and is_symmetric(layout)
        cut = tiles.plan(self._count, self._count, math.isqrt(pairs), symmetric=symmetric)
        result: list[Tensor | None] = [None, None]
        made: type[Block] | type[Moments] = Block if kind == "block" else Moments
        for tile in cut:
            part = _Part(self, tile)._compute(kind, u, v, layout)
            if part is None:
                return None
            for k, values in enumerate(part):
                if values is not None:
                    result[k] = self._filled(result[k], tile, values, layout, symmetric)
        first, ntk = result
        assert first is not None
        return made(first, ntk)

    def _filled(
        self, whole: Tensor | None, tile: tiles.Tile, values: Tensor, layout: Layout, symmetric: bool
    ) -> Tensor:
        """The covariance of all examples with that of one tile written into it."""
        if whole is None:
            whole = values.new_zeros(*values.shape[:-2], self._count, self._count)
        whole[..., tile.rows, tile.columns] = values
        if symmetric:
            mirror(whole, tile, layout)
        return whole


class _Part(Pairs):
    """One covariance of the examples of a tile, from the others of all examples."""

    def __init__(self, whole: BlockwisePairs, tile: tiles.Tile) -> None:
        from tangency.infinite.side import SideTile

        side = whole._one_side
        super().__init__(SideTile(side, tile.rows), SideTile(side, tile.columns))
        self._from = whole
        self._tile = tile

    def _ask(self, kind: Kind, u: Value, v: Value, ties: Any) -> Any:
        if self.flipped:
            return super()._ask(kind, u, v, ties)
        found = self._from._ask(kind, u, v, ties)
        if found is None:
            return None
        return type(found)(*(None if part is None else self._cut(part) for part in found))

    def _cut(self, values: Tensor) -> Tensor:
        """The entries of the tile; what is the same for all examples has none of its own."""
        rows = self._tile.rows if values.shape[-2] > 1 else slice(None)
        columns = self._tile.columns if values.shape[-1] > 1 else slice(None)
        return values[..., rows, columns]


def _entries(u: Value, v: Value, layout: Layout) -> int:
    """Of a covariance and those that it is made of, at most, for one pair of examples."""
    tied = size_of(a for a, _ in layout.ties)
    return max(1, _reach(u) * _reach(v) // tied)


def _reach(value: Value) -> int:
    """Positions of a value and of what it is made of, at most."""
    sizes = [size_of(part.positions) for part in value.parts]
    return max(size_of(value.positions), value.reads, *sizes, 1)


