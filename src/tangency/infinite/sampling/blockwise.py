"""Covariances of a whole data set, each computed for some pairs of examples at a time.

What is remembered are covariances of all examples, which samples need; what is computed on the way
to one of them, and for nothing else, is as small as a few pairs of examples. Of a value with
itself, half of the pairs are computed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tangency import tiles
from tangency.infinite.layout import Block, Layout, Moments, Ties
from tangency.infinite.memory import Memory
from tangency.infinite.pairs import Key, Kind, Pairs
from tangency.infinite.sampling.mirroring import is_symmetric, mirror
from tangency.infinite.sampling.plan import SamplingPlan
from tangency.infinite.sampling.uses import entries_of, expands, gathered_entries
from tangency.infinite.values.value import Value, uncorrelated
from tangency.program.axes import size_of

if TYPE_CHECKING:
    from tangency.infinite.side import Side, SideTile

__all__ = ["BlockwisePairs", "Diagonals"]

TILE = 512**2
"""Entries of one covariance that are computed at a time, so that they stay in cache."""


_BYTES = 8 * 20 * 8
"""Bytes of the budget for each of these entries: with some twenty intermediate results they take an
eighth of it."""

_SAMPLED_BYTES = 8 * 8 * 8
"""The same of a covariance that is a mean over samples, which has some eight."""


class BlockwisePairs(Pairs):
    """Covariances between all examples of one side.

    Args:
        whole: the side.
        memory: where the covariances are remembered.
        plan: what each of them is needed for, and how much memory all may take.
    """

    def __init__(self, whole: SideTile, memory: Memory, plan: SamplingPlan) -> None:
        super().__init__(whole, whole, memory=memory)
        self.whole = True
        self.side: Side = whole.side
        self.needed = plan.uses
        self.scratch = plan.scratch
        self._tile = min(TILE, plan.memory // _BYTES)
        self._sampled_tile = plan.memory // _SAMPLED_BYTES
        self._open: dict[Key, _Assembly] = {}

    def _compute(self, kind: Kind, u: Value, v: Value, layout: Layout) -> Any:
        if uncorrelated(u, v):
            return None
        key = (kind, u, v, layout.ties)
        by_samples, count = expands(u, v).whole, self.side.count
        gathered = gathered_entries(u, v, layout) if by_samples and kind == "moments" else 0
        size = math.isqrt(max(1, self._pairs_at_a_time(key, layout, gathered)))
        largest = max(gathered, size_of((*layout.left, *layout.free_right)))
        in_file = self.scratch.takes(8 * largest * count**2)
        if size >= count or (by_samples and not in_file):
            found = super()._compute(kind, u, v, layout)
            return found and type(found)(
                *(t if t is None else self.scratch.moved(t) for t in found)
            )
        if key not in self._open:
            self._open[key] = _Assembly(self, key, layout, size)
        result = self._open[key].result()
        del self._open[key]
        return result

    def _moved(self, found: Any) -> Any:
        """A covariance, in files where it is large."""
        if found is None:
            return None
        return type(found)(*(None if part is None else self.scratch.moved(part) for part in found))

    def _pairs_at_a_time(self, key: Key, layout: Layout, gathered: int) -> int:
        _, u, v, _ = key
        if gathered:
            return self._sampled_tile // gathered
        if self.needed is None:
            return self._tile // entries_of(u, v, layout)
        return self._tile // self.needed.most_entries(key)


class Diagonals(Pairs):
    """Covariances of every example with itself, cut from those of all pairs.

    A recursion of its own would ask for the samples of all layers once more, at the end.
    """

    def __init__(self, side: Side, whole: BlockwisePairs) -> None:
        super().__init__(side, side, coincident=True)
        self._all = whole

    def _ask(self, kind: Kind, u: Value, v: Value, ties: Ties) -> Any:
        if self.flipped:
            return super()._ask(kind, u, v, ties)
        found = self._all._ask(kind, u, v, ties)
        if found is None:
            return None
        return type(found)(*(None if part is None else self._diagonal(part) for part in found))

    def _diagonal(self, values: Tensor) -> Tensor:
        """What is the same for all examples has one entry."""
        size = max(values.shape[-2:])
        return values.expand(*values.shape[:-2], size, size).diagonal(dim1=-2, dim2=-1)


class _Assembly:
    """One covariance, tile by tile. Where it has to start anew, it goes on from what was found."""

    def __init__(self, whole: BlockwisePairs, key: Key, layout: Layout, size: int) -> None:
        self._whole = whole
        self._kind, self._u, self._v, _ = key
        self._layout = layout
        self._symmetric = self._u is self._v and is_symmetric(layout)
        count = whole.side.count
        self._tiles = tiles.plan(count, count, size, symmetric=self._symmetric)
        self._next = _Part(whole, self._tiles[0])
        self._done = 0
        self._made: list[Tensor | None] = [None, None]

    def result(self) -> Block | Moments | None:
        """The covariance of all examples."""
        made = Block if self._kind == "block" else Moments
        while self._done < len(self._tiles):
            tile = self._tiles[self._done]
            part = self._next._compute(self._kind, self._u, self._v, self._layout)
            if part is None:
                return None
            for k, values in enumerate(part):
                if values is not None:
                    self._fill(k, tile, values)
            self._done += 1
            if self._done < len(self._tiles):
                self._next = _Part(self._whole, self._tiles[self._done])
        first, ntk = self._made
        assert first is not None
        return made(first, ntk)

    def _fill(self, k: int, tile: tiles.Tile, values: Tensor) -> None:
        """Write one tile, and its mirror image."""
        count = self._whole.side.count
        whole = self._made[k]
        if whole is None:
            shape = (*values.shape[:-2], count, count)
            whole = self._made[k] = self._whole.scratch.covariance(*shape, like=values)
        whole[..., tile.rows, tile.columns] = values
        self._whole.scratch.touched(2 * values.numel() * values.element_size())
        if self._symmetric:
            mirror(whole, tile, self._layout)


class _Part(Pairs):
    """The covariances of the examples of a tile.

    Those that have more than one use come from all examples; others are computed here.
    """

    def __init__(self, whole: BlockwisePairs, tile: tiles.Tile) -> None:
        from tangency.infinite.side import SideTile

        super().__init__(SideTile(whole.side, tile.rows), SideTile(whole.side, tile.columns))
        self._all = whole
        self._tile = tile

    def _ask(self, kind: Kind, u: Value, v: Value, ties: Ties) -> Any:
        key = (kind, u, v, ties)
        known, needed = key in self._all.memory, self._all.needed
        if not known and needed is not None and needed.passes(key):
            return super()._ask(kind, u, v, ties)
        found = self._all._ask(kind, u, v, ties)
        if found is None:
            return None
        return type(found)(*(None if part is None else self._cut(part) for part in found))

    def _cut(self, values: Tensor) -> Tensor:
        """The entries of the tile; what is the same for all examples has none of its own."""
        rows = self._tile.rows if values.shape[-2] > 1 else slice(None)
        columns = self._tile.columns if values.shape[-1] > 1 else slice(None)
        tile, scratch = values[..., rows, columns], self._all.scratch
        if not scratch.holds(values):
            return tile
        scratch.touched(tile.numel() * tile.element_size())
        return tile.contiguous()
