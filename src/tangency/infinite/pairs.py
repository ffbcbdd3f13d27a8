"""Covariances of pairs of values between two sides, demand-driven and memoised."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from tangency.infinite.input_angles import input_products, input_versines
from tangency.infinite.layout import Block, Layout, Moments, Ties, Which
from tangency.infinite.memory import Memory
from tangency.infinite.sampling.draw import Draw, NeedsSamples
from tangency.infinite.values.concrete import Concrete
from tangency.infinite.values.value import Value, uncorrelated

__all__ = ["Key", "Kind", "Pairs", "Quantities", "Uses", "WithoutSamples"]


class Quantities(Protocol):
    """What a block needs to know of one of its two sides.

    `smooth` asks for formulas that can be differentiated everywhere, at zero and at equal inputs:
    through the moments of linear values, rather than norms and angles, which have cusps there. In a
    `rehearsal` only the shape of what is costly counts.
    """

    smooth: bool
    rehearsal: bool

    def quantity(self, value: Value, name: str, *args: Hashable, wide: bool = False) -> Tensor: ...

    def mean(self, value: Value) -> Tensor | None: ...

    def names(self, value: Value, table: str) -> tuple[str, ...]: ...

    def parts(self, *values: Value) -> Iterator[slice]: ...

    def samples(self, value: Value, part: slice) -> Draw: ...

    def number(self, number: float, *, wide: bool = False) -> Tensor: ...


class WithoutSamples:
    """A side of an exact kernel."""

    rehearsal = False

    def parts(self, *values: Value) -> Iterator[slice]:
        """Refused."""
        raise NeedsSamples("a covariance in this network has no closed form")

    def samples(self, value: Value, part: slice) -> Draw:
        """Refused."""
        raise NeedsSamples("a covariance in this network has no closed form")


Kind: TypeAlias = Literal["block", "moments"]

Key: TypeAlias = "tuple[Kind, Value, Value, Ties]"

Askers: TypeAlias = "Mapping[Key, set[Key | None]]"
"""The covariances for which each one is asked; None stands for whoever asks from outside."""


class Uses:
    """What each covariance is needed for, so that it can be forgotten when that is done.

    Counts would not do: a computation that starts anew (`tangency.infinite.memory`) asks again.
    """

    def __init__(self, askers: Askers) -> None:
        self.askers = askers
        self.asks: dict[Key | None, list[Key]] = defaultdict(list)
        for key, waiting in askers.items():
            for asker in waiting:
                self.asks[asker].append(key)


class Pairs:
    """Blocks between the examples of two sides, or of one side with itself example by example.

    Args:
        rows, columns: the two sides; with `coincident` both are the same side and a block has one
            batch dimension, `(n,)`, otherwise two, `(n1, n2)`.
        uses: if given, a covariance is forgotten when all that is made of it is there.
        like: pairs of the same examples whose covariances are the same where they are exact.
        memory: where the covariances are remembered, if not in a memory of its own.
    """

    def __init__(
        self,
        rows: Quantities,
        columns: Quantities,
        *,
        coincident: bool = False,
        uses: Uses | None = None,
        like: Pairs | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.rows = rows
        self.columns = columns
        self.coincident = coincident
        self.uses = uses
        self.asked: defaultdict[Key, set[Key | None]] = defaultdict(set)
        self._done: set[Key | None] = set()
        self._under_way: list[Key] = []
        self.flipped = False
        self.whole = False
        """Whether rows and columns are all examples of one side."""
        self.smooth = rows.smooth or columns.smooth
        self.rehearsal = rows.rehearsal
        self.memory: Memory = (
            memory if memory is not None else Memory(None if like is None else like.memory)
        )
        self.angle_blocks: dict[tuple[Concrete, Concrete, Ties], Tensor] = {}
        self._mirror: Pairs | None = None

    def block(self, u: Value, v: Value, ties: Ties) -> Block | None:
        """The covariance of u (left) and v (right), laid out by their positions and `ties`."""
        return cast("Block | None", self._ask("block", u, v, ties))

    def moments(self, u: Value, v: Value, ties: Ties) -> Moments | None:
        """The same covariance as its float64 moment E[u v], for linear maps over positions."""
        return cast("Moments | None", self._ask("moments", u, v, ties))

    def _ask(self, kind: Kind, u: Value, v: Value, ties: Ties) -> Any:
        layout = Layout(u.positions, v.positions, ties)
        if self.flipped:
            there = layout.mirrored
            ask = self.mirror.block if kind == "block" else self.mirror.moments
            return _turn(ask(v, u, there.ties), there, layout)
        key = (kind, u, v, ties)

        def compute() -> Any:
            self._under_way.append(key)
            try:
                covariance = self._compute(kind, u, v, layout)
            finally:
                self._under_way.pop()
            self.keep(key, covariance)
            self._forget_parts(key)
            return covariance

        self.asked[key].add(self._under_way[-1] if self._under_way else None)
        return self.memory.ask(key, compute)

    def _forget_parts(self, key: Key) -> None:
        """Forget the covariances that were needed for the one under `key` and those before it."""
        if self.uses is None:
            return
        self._done.add(key)
        for part in self.uses.asks.get(key, ()):
            if part in self.memory and self.uses.askers[part] <= self._done:
                self.drop(self.memory.pop(part))

    def _compute(self, kind: Kind, u: Value, v: Value, layout: Layout) -> Any:
        """Of two values, the one of higher precedence expands."""
        if uncorrelated(u, v):
            return None
        expands, other = (u, v) if u.precedence >= v.precedence else (v, u)
        compute = expands.covariance if kind == "block" else expands.moments
        if expands is u:
            return compute(other, layout, self)
        there = layout.mirrored
        return _turn(compute(other, there, self.mirror), there, layout)

    def keep(self, key: Key, covariance: Block | Moments | None) -> None:
        """Called when a covariance is remembered."""

    def drop(self, covariance: Block | Moments | None) -> None:
        """Called when a covariance is forgotten."""

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
        self,
        which: Which,
        value: Value,
        name: str,
        *args: Hashable,
        layout: Layout,
        wide: bool = False,
    ) -> Tensor:
        """A quantity of the left or right value, shaped to broadcast in the block.

        It is of the block's type, or float64 if `wide`.
        """
        side = self._side(which)
        wide = wide or self.coincident
        return self._spread(side.quantity(value, name, *args, wide=wide), which, layout)

    def table(self, which: Which, value: Value, table: str, layout: Layout) -> dict[str, Tensor]:
        """All entries of a composite's table on one side."""
        names = self._side(which).names(value, table)
        own = table == "expansion"  # a series chooses the types of its entries itself
        return {
            name: self.quantity(which, value, "entry", table, name, layout=layout, wide=own)
            for name in names
        }

    def samples(
        self, which: Which, value: Value, part: slice, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """Some samples of the left or right value and of its tangent, in float64, with as many
        leading dimensions, shaped to broadcast in the block. `layout` tells where positions go.
        """
        draw = self._side(which).samples(value, part)
        return (
            self._spread(draw.value.double(), which, layout),
            self._spread(draw.tangent.double(), which, layout),
        )

    def parts(self, *values: Value) -> Iterator[slice]:
        """All samples, some at a time."""
        return self.rows.parts(*values)

    def mean(self, which: Which, value: Value, layout: Layout) -> Tensor | None:
        """E[value], in float64, or None where it is zero by construction."""
        mean = self._side(which).mean(value)
        return None if mean is None else self._spread(mean, which, layout)

    def number(self, number: float, layout: Layout, *, wide: bool = False) -> Tensor:
        """A number with the rank of the block."""
        rank = layout.rank + (1 if self.coincident else 2)
        scalar = self.rows.number(number, wide=wide or self.coincident)
        return scalar.reshape((1,) * rank)

    def moment(self, u: Value, v: Value, block: Block, layout: Layout) -> Tensor:
        """E[u v] = sd_u sd_v (1 - versine), in the block's type."""
        left = self.quantity("left", u, "sd", layout=layout)
        right = self.quantity("right", v, "sd", layout=layout)
        return left * right * (1 - block.versine)

    def from_block(self, u: Value, v: Value, layout: Layout) -> Moments | None:
        """Moments of two values from their block."""
        block = self.block(u, v, layout.ties)
        if block is None:
            return None
        left = self.quantity("left", u, "sd", layout=layout, wide=True)
        right = self.quantity("right", v, "sd", layout=layout, wide=True)
        return Moments(left * right * (1 - block.versine.double()), block.ntk)

    def from_moments(self, u: Value, v: Value, layout: Layout) -> Block | None:
        """The block of two values from their moments."""
        moments = self.moments(u, v, layout.ties)
        if moments is None:
            return None
        return self.from_moment(u, v, moments.moment, moments.ntk, layout)

    def from_moment(
        self, u: Value, v: Value, moment: Tensor, ntk: Tensor | None, layout: Layout
    ) -> Block:
        """The block with E[u v] = `moment`."""
        left = self.quantity("left", u, "sd", layout=layout, wide=True)
        right = self.quantity("right", v, "sd", layout=layout, wide=True)
        versine = 1 - moment * (_inverse(left) * _inverse(right))
        if self.coincident and u is v and layout.ties == {(a, a) for a in u.positions}:
            versine = torch.zeros_like(versine)  # without rounding
        return Block(versine.clamp(0.0, 2.0).to(self.dtype), ntk)

    @property
    def dtype(self) -> torch.dtype:
        """The type of versines and NTKs."""
        return self.rows.number(0.0, wide=self.coincident).dtype

    def products(self, u: Concrete, v: Concrete, layout: Layout) -> Tensor:
        """Means over the features of the products of two concrete values, in float64."""
        if self.flipped:
            there = layout.mirrored
            return layout.embed_mirrored(self.mirror.products(v, u, there), there)
        left, right = self.rows.quantity(u, "array"), self.columns.quantity(v, "array")
        whole = input_products(left.double(), right.double(), layout, coincident=self.coincident)
        return whole / u.length

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


def _inverse(values: Tensor) -> Tensor:
    """1 / values, and 0 where they are 0."""
    positive = values > 0
    return torch.where(positive, 1 / torch.where(positive, values, 1.0), 0.0)


Covariance = TypeVar("Covariance", Block, Moments)


def _turn(block: Covariance | None, there: Layout, layout: Layout) -> Covariance | None:
    """A block computed with left and right exchanged, in the layout asked for."""
    if block is None:
        return None
    first, ntk = block
    turned = None if ntk is None else layout.embed_mirrored(ntk, there)
    return type(block)(layout.embed_mirrored(first, there), turned)
