"""Sums over positions by matrices that come with the data: aggregation over graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Layout, Positions, Which
from tangency.infinite.values.position import Linear
from tangency.infinite.values.value import Value, fill

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Aggregated"]


class Aggregated(Linear):
    """sum_old A[new, old] u[old] with a matrix A of data or constants.

    `evaluate` gives A for a side as `(*new, *positions of the source, n)`, with dimensions of size
    one for the positions on which it does not depend.
    """

    def __init__(
        self,
        source: Value,
        old: Positions,
        new: Positions,
        evaluate: Callable[[Side], Tensor],
    ) -> None:
        super().__init__(source, (*new, *(a for a in source.positions if a not in old)))
        self.old = old
        self.new = new
        self.evaluate = evaluate

    def weights(self, side: Side) -> Tensor:
        """A, shape `(*new, *positions of the source, n)`."""
        return self.evaluate(side).double()

    def map(self, values: Tensor, side: Side, lead: int) -> Tensor:
        weights = side.quantity(self, "weights").to(values)
        leading = range(lead)
        inner = range(lead, values.dim())
        new = range(values.dim(), values.dim() + len(self.new))
        kept = [lead + k for k, a in enumerate(self.source.positions) if a not in self.old]
        mapped: Tensor = torch.einsum(
            weights, [*new, *inner], values, [*leading, *inner], [*leading, *new, *kept, inner[-1]]
        )
        return mapped

    def apply(self, values: Tensor, layout: Layout, which: Which, pairs: Pairs) -> Tensor:
        wide = values.dtype == torch.float64
        weights = pairs.quantity(which, self, "weights", layout=layout, wide=wide)
        for axis in self.old:
            values = fill(values, layout.index(which, axis), axis.size)
        rank = values.dim()
        news = range(rank, rank + len(self.new))
        known = [k for k in range(rank) if weights.shape[len(self.new) + k] > 1]
        compact = weights.squeeze([len(self.new) + k for k in range(rank) if k not in known])
        result = self._labels(layout, which, dict(zip(self.new, news, strict=True)))
        batch = range(layout.rank, rank)
        mapped: Tensor = torch.einsum(
            compact, [*news, *known], values, [*range(rank)], [*result, *batch]
        )
        return mapped

    def _labels(self, layout: Layout, which: Which, news: dict[object, int]) -> list[int]:
        """For every position dimension of the result, what it is among those that are summed."""
        made = layout.swap(which, self.positions)
        left = [
            news[a] if which == "left" and a in news else layout.index("left", a) for a in made.left
        ]
        right = [
            news[b] if which == "right" and b in news else layout.index("right", b)
            for b in made.free_right
        ]
        return left + right
