"""Runs the rules symbolically: pairs whose blocks are graphs.

The rules are those of `tangency.infinite.values`, each written once; here they act on traced
tensors of a small example.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

import torch
from torch import Tensor

from tangency.infinite.fused.graph import Data, Kind, Node, NotFusable
from tangency.infinite.fused.trace import (
    EXAMPLES,
    Label,
    Traced,
    Tracer,
    multiple,
    reduction,
    traced,
)
from tangency.infinite.layout import Layout, Moments, Ties, Which
from tangency.infinite.pairs import Pairs
from tangency.infinite.side import DATA, Side
from tangency.infinite.values.concrete import Concrete
from tangency.infinite.values.position import Average
from tangency.infinite.values.value import Value
from tangency.program.axes import Axis, size_of

__all__ = ["SymbolicPairs", "traced_output"]


def traced_output(output: Value, rows: Side, columns: Side) -> tuple[Tracer, tuple[Node, ...]]:
    """The graph of NNGP and NTK (where it is not zero) of a network's output without positions.

    Raises:
        NotFusable: the covariance is not made of operations that have a C form.
    """
    if output.positions:
        raise NotFusable("an output with positions")
    if rows.smooth or columns.smooth:
        raise NotFusable("derivatives of the kernel")
    tracer = Tracer()
    pairs = SymbolicPairs(rows, columns, tracer)
    layout = Layout((), ())
    block = pairs.block(output, output, layout.ties)
    if block is None:
        raise NotFusable("an output without randomness")
    moment = pairs.moment(output, output, block, layout)
    roots = [moment] if block.ntk is None else [moment, block.ntk]
    if not all(isinstance(root, Traced) for root in roots):
        raise NotFusable("an output that does not depend on the data")
    return tracer, tuple(cast(Traced, root).node for root in roots)


class _SymbolicSide:
    """The quantities of one side as leaves."""

    def __init__(self, side: Side, kind: str, tracer: Tracer) -> None:
        self.side = side
        self.smooth = side.smooth
        self.kind = kind
        self.tracer = tracer

    def quantity(self, value: Value, name: str, *args: Hashable, wide: bool = False) -> Tensor:
        real = self.side.quantity(value, name, *args, wide=wide)
        if name in DATA:
            return real
        return self._leaf((value, name, args, wide), real)

    def _leaf(self, detail: Hashable, real: Tensor) -> Traced:
        if real.requires_grad:
            raise NotFusable("a quantity with a gradient")
        count = EXAMPLES[0] if self.kind == Kind.LEFT else EXAMPLES[1]
        value = real[..., :1].expand(*real.shape[:-1], count)
        return self.tracer.leaf(self.kind, detail, value, (None,) * real.dim())

    def mean(self, value: Value) -> Tensor | None:
        real = self.side.mean(value)
        return None if real is None else self._leaf((value, "mean", (), True), real)

    def names(self, value: Value, table: str) -> tuple[str, ...]:
        if table == "expansion":
            raise NotFusable("a numerical dual")
        return self.side.names(value, table)

    def number(self, number: float, *, wide: bool = False) -> Tensor:
        return self.side.number(number, wide=wide)


class SymbolicPairs(Pairs):
    """Pairs whose blocks are traced tensors."""

    def __init__(self, rows: Side, columns: Side, tracer: Tracer) -> None:
        sides = (
            _SymbolicSide(rows, Kind.LEFT, tracer),
            _SymbolicSide(columns, Kind.RIGHT, tracer),
        )
        super().__init__(*sides)
        self._sides = rows, columns
        self._tracer = tracer

    @property
    def mirror(self) -> Pairs:
        if self._mirror is None:
            mirror = SymbolicPairs(*self._sides, self._tracer)
            mirror.rows, mirror.columns = self.rows, self.columns
            mirror.flipped, mirror._mirror = not self.flipped, self
            self._mirror = mirror
        return self._mirror

    def _spread(self, values: Tensor, which: Which, layout: Layout) -> Tensor:
        """Here it is known along which axes a quantity varies."""
        assert isinstance(values, Traced)
        axes = [a if a.size > 1 else None for a in layout.positions(which)]
        if len(axes) != values.dim() - 1:
            raise NotFusable("a quantity with several numbers per position")
        _lay_out(values.node, tuple(axes))
        batch = "n1" if self._on_rows(which) else "n2"
        labels: tuple[Label, ...] = (*axes, batch)
        labelled = traced(values.value, values.node, labels, self._tracer)
        return super()._spread(labelled, which, layout)

    def products(self, u: Concrete, v: Concrete, layout: Layout) -> Tensor:
        if self.flipped:
            return super().products(u, v, layout)
        return self._data(u, v, layout, versine=False)

    def angles(self, u: Concrete, v: Concrete, layout: Layout) -> Tensor:
        if self.flipped:
            return super().angles(u, v, layout)
        return self._data(u, v, layout, versine=True)

    def _data(self, u: Concrete, v: Concrete, layout: Layout, *, versine: bool) -> Traced:
        if layout.free_right:
            raise NotFusable("data at unequal positions")
        for a, b in layout.ties:
            self._tracer.identify(a, b)
        array = self._sides[0].quantity(u, "array")
        if array.requires_grad:
            raise NotFusable("data with a gradient")
        detail = Data(u, v, layout.ties, versine, array.shape[-1])
        dtype = array.dtype if versine else torch.float64
        value = torch.full((*(a.size for a in layout.left), *EXAMPLES), 0.5, dtype=dtype)
        return self._tracer.leaf(Kind.DATA, detail, value, (*layout.left, "n1", "n2"))

    def moments(self, u: Value, v: Value, ties: Ties) -> Moments | None:
        if not self.flipped and isinstance(u, Average) and isinstance(v, Average):
            return self._averaged(u, v)
        return super().moments(u, v, ties)

    def _averaged(self, u: Average, v: Average) -> Moments | None:
        """Means over all pairs of positions."""
        mine, yours = u.source.positions, v.source.positions
        if u.positions or v.positions or [a.size for a in mine] != [b.size for b in yours]:
            raise NotFusable("an average over some of the positions")
        ties = frozenset(zip(mine, yours, strict=True))
        moments = self.moments(u.source, v.source, ties)
        if moments is None:
            return None
        ntk = moments.ntk
        return Moments(
            self._sum(moments.moment, mine), None if ntk is None else self._sum(ntk, mine)
        )

    def _sum(self, values: Tensor, axes: tuple[Axis, ...]) -> Traced:
        if not isinstance(values, Traced):
            raise NotFusable("a covariance that does not depend on the data")
        node = reduction(values.node, axes, self._tracer, offsets=True)
        node = multiple(node, 1 / size_of(axes) ** 2)
        value = torch.ones(EXAMPLES, dtype=values.dtype)
        return traced(value, node, ("n1", "n2"), self._tracer)


def _lay_out(node: Node, axes: tuple[Axis | None, ...]) -> None:
    """Note the axes of a quantity when they become known."""
    if not node.order:
        node.order = axes
        node.axes = frozenset(a for a in axes if a is not None)
    elif node.order != axes:
        raise NotFusable("a quantity laid out in two ways")
