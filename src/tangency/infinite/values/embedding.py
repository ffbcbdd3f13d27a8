"""Rows of a table of parameters: embeddings of tokens, positional parameters, class tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Positions
from tangency.infinite.values.sources import Scale
from tangency.infinite.values.value import Value

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Embedding", "Padding"]

Rows = Callable[["Side"], Tensor]
"""Gives the number of the row at every position of every example, `(*positions, n)`."""


class Padding:
    """A row that is not trained (`padding_idx`), and perhaps zero.

    Attributes:
        row: its number.
        zero: whether its entries are zero (as `nn.Embedding` makes them).
    """

    def __init__(self, row: int, *, zero: bool) -> None:
        self.row = row
        self.zero = zero


class Embedding(Value):
    """The row that integers choose of a table with i.i.d. entries: K = m2 [same row], T = [same].

    A positional parameter or a class token is the same with rows that do not depend on the data.
    Two uses of one table are equal where their rows are.
    """

    precedence = 1
    gaussian = True
    centred = True

    def __init__(
        self,
        positions: Positions,
        identity: Hashable,
        scale: Scale,
        rows: Rows,
        padding: Padding | None = None,
    ) -> None:
        super().__init__(positions)
        self.identity = identity
        self.scale = scale
        self.numbers = rows
        self.padding = padding

    @cached_property
    def origins(self) -> frozenset[Hashable]:
        return frozenset((self.identity,))

    def rows(self, side: Side) -> Tensor:
        """Numbers of the rows, float64 `(*positions, n)`."""
        return side.full(self.numbers(side).double(), self.positions)

    def _filled(self, rows: Tensor) -> Tensor:
        """Where the row is not one of zeros."""
        if self.padding is None or not self.padding.zero:
            return torch.ones_like(rows)
        return (rows != self.padding.row).to(rows)

    def second_moment(self, side: Side) -> Tensor:
        return self.scale.forward * self._filled(side.quantity(self, "rows"))

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        if not isinstance(other, Embedding) or other.identity != self.identity:
            return None
        left = pairs.quantity("left", self, "rows", layout=layout, wide=True)
        right = pairs.quantity("right", other, "rows", layout=layout, wide=True)
        same = left == right
        trained = same if self.padding is None else same & (left != self.padding.row)
        ntk = self.scale.gradient * trained.to(pairs.dtype)
        return Block((~same).to(pairs.dtype), ntk)
