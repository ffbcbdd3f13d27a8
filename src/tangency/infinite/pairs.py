"""Covariances of pairs of values between two sides, demand-driven and memoised."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import torch
from torch import Tensor

from tangency.infinite.input_angles import input_versines
from tangency.infinite.layout import Block, Layout, Ties, Which
from tangency.infinite.values.concrete import Concrete
from tangency.infinite.values.value import Value

__all__ = ["Pairs", "Quantities"]


class Quantities(Protocol):
    """What a block needs to know of one of its two sides."""

    def quantity(self, value: Value, name: str, *args: Hashable) -> Tensor: ...

    def mean(self, value: Value) -> Tensor | None: ...

    def names(self, value: Value, table: str) -> tuple[str, ...]: ...

    def number(self, number: float) -> Tensor: ...


class Pairs:
    """Blocks between the examples of two sides, or of one side with itself example by example.

    Args:
        rows, columns: the two sides; with `coincident` both are the same side and a block has one
            batch dimension, `(n,)`, otherwise two, `(n1, n2)`.
    """

    def __init__(self, rows: Quantities, columns: Quantities, *, coincident: bool = False) -> None:
        self.rows = rows
        self.columns = columns
        self.coincident = coincident
        self.flipped = False
        self._blocks: dict[tuple[Value, Value, Ties], Block | None] = {}
        self.angle_blocks: dict[tuple[Concrete, Concrete, Ties], Tensor] = {}
        self._mirror: Pairs | None = None

    def block(self, u: Value, v: Value, ties: Ties) -> Block | None:
        """The covariance of u (left) and v (right), laid out by their positions and `ties`."""
        if self.flipped:
            layout = Layout(u.positions, v.positions, ties)
            there = layout.mirrored
            return _turn(self.mirror.block(v, u, there.ties), there, layout)
        key = (u, v, ties)
        if key not in self._blocks:
            self._blocks[key] = self._compute(u, v, ties)
        return self._blocks[key]

    def _compute(self, u: Value, v: Value, ties: Ties) -> Block | None:
        layout = Layout(u.positions, v.positions, ties)
        if u.precedence >= v.precedence:
            return u.covariance(v, layout, self)
        there = layout.mirrored
        return _turn(v.covariance(u, there, self.mirror), there, layout)

    @property
    def mirror(self) -> Pairs:
        """The same blocks with left and right exchanged (the batch stays (rows, columns))."""
        if self._mirror is None:
            mirror = Pairs(self.rows, self.columns, coincident=self.coincident)
            mirror.flipped, mirror._mirror = not self.flipped, self
            self._mirror = mirror
        return self._mirror

    def _on_rows(self, which: Which) -> bool:
        return (which == "left") != self.flipped

    def _side(self, which: Which) -> Quantities:
        return self.rows if self._on_rows(which) else self.columns

    def _spread(self, values: Tensor, which: Which, layout: Layout) -> Tensor:
        spread = layout.side(values, which)
        if self.coincident:
            return spread
        return spread.unsqueeze(-1) if self._on_rows(which) else spread.unsqueeze(-2)

    def quantity(
        self, which: Which, value: Value, name: str, *args: Hashable, layout: Layout
    ) -> Tensor:
        """A quantity of the left or right value, shaped to broadcast in the block."""
        return self._spread(self._side(which).quantity(value, name, *args), which, layout)

    def table(self, which: Which, value: Value, table: str, layout: Layout) -> dict[str, Tensor]:
        """All entries of a composite's table on one side."""
        names = self._side(which).names(value, table)
        return {
            name: self.quantity(which, value, "entry", table, name, layout=layout) for name in names
        }

    def mean(self, which: Which, value: Value, layout: Layout) -> Tensor | None:
        """E[value], or None where it is zero by construction."""
        mean = self._side(which).mean(value)
        return None if mean is None else self._spread(mean, which, layout)

    def number(self, number: float, layout: Layout) -> Tensor:
        """A number with the rank of the block."""
        rank = layout.rank + (1 if self.coincident else 2)
        return self.rows.number(number).reshape((1,) * rank)

    def moment(self, u: Value, v: Value, block: Block, layout: Layout) -> Tensor:
        """E[u v] = sd_u sd_v (1 - versine)."""
        left = self.quantity("left", u, "sd", layout=layout)
        right = self.quantity("right", v, "sd", layout=layout)
        return left * right * (1 - block.versine)

    def from_moment(
        self, u: Value, v: Value, moment: Tensor, ntk: Tensor | None, layout: Layout
    ) -> Block:
        """The block with E[u v] = `moment`."""
        left = self.quantity("left", u, "sd", layout=layout)
        right = self.quantity("right", v, "sd", layout=layout)
        scale = left * right
        cosine = torch.where(scale > 0, moment / torch.where(scale > 0, scale, 1.0), 0.0)
        return Block(1 - cosine, ntk)

    def angles(self, u: Concrete, v: Concrete, layout: Layout) -> Tensor:
        """Versines between the data of two concrete values."""
        if self.flipped:
            there = layout.mirrored
            return layout.embed_mirrored(self.mirror.angles(v, u, there), there)
        key = (u, v, layout.ties)
        if key not in self.angle_blocks:
            left, right = self.rows.quantity(u, "unit"), self.columns.quantity(v, "unit")
            self.angle_blocks[key] = input_versines(left, right, layout, coincident=self.coincident)
        return self.angle_blocks[key]


def _turn(block: Block | None, there: Layout, layout: Layout) -> Block | None:
    """A block computed with left and right exchanged, in the layout asked for."""
    if block is None:
        return None
    ntk = None if block.ntk is None else layout.embed_mirrored(block.ntk, there)
    return Block(layout.embed_mirrored(block.versine, there), ntk)
