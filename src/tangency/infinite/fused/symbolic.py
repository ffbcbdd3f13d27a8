"""Runs the rules symbolically: pairs whose blocks are graphs.

The rules are those of `tangency.infinite.values`, each written once; here they act on traced
tensors of a small example.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

import torch
from torch import Tensor

from tangency.infinite.fused.graph import Data, Kind, Node, NotFusable, Reduction
from tangency.infinite.fused.pooling import Map, mapping
from tangency.infinite.fused.trace import (
    EXAMPLES,
    WHOLE,
    Label,
    Traced,
    Tracer,
    WindowFound,
    multiple,
    traced,
)
from tangency.infinite.fused.traced_two import traced_pair_of_two
from tangency.infinite.layout import Block, Layout, Moments, Ties, Which
from tangency.infinite.pairs import Pairs, WithoutSamples
from tangency.infinite.side import DATA, Side
from tangency.infinite.values.composite import Composite
from tangency.infinite.values.composite_of_two import pair_of_two
from tangency.infinite.values.concrete import Concrete
from tangency.infinite.values.sources import Bias
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value, uncorrelated
from tangency.infinite.values.window import single_sum
from tangency.program.axes import Axis

__all__ = ["SymbolicPairs", "traced_output"]


_UNTRACEABLE = (RuntimeError, NotImplementedError, TypeError, AttributeError, AssertionError)
"""What a rule may raise that looks at numbers, or at more of a side than its quantities."""


def traced_output(
    output: Value, rows: Side, columns: Side, *, wraps: bool = True
) -> tuple[Tracer, tuple[Node, ...]]:
    """The graph of NNGP and NTK (where it is not zero) of a network's output without positions.

    Args:
        wraps: whether windows may wrap around; else what they read is padded first.

    Raises:
        NotFusable: the covariance is not made of operations that have a C form.
    """
    if output.positions:
        raise NotFusable("an output with positions")
    if rows.smooth or columns.smooth:
        raise NotFusable("derivatives of the kernel")
    try:
        try:
            return _traced(output, rows, columns, Tracer(windows=False))
        except WindowFound:
            return _traced(output, rows, columns, Tracer(windows=True, wraps=wraps))
    except _UNTRACEABLE as error:
        raise NotFusable(f"a rule that cannot be traced: {error}") from error


def _traced(
    output: Value, rows: Side, columns: Side, tracer: Tracer
) -> tuple[Tracer, tuple[Node, ...]]:
    """Where windows are met, affine maps act on float64 moments, as convolutions do.

    That needs fewer quantities per position than the versines of all terms.
    """
    pairs = SymbolicPairs(rows, columns, tracer)
    pairs.smooth = tracer.windows
    found = pairs.of_sum(output) if tracer.windows else pairs.of_block(output)
    if found is None:
        raise NotFusable("an output without randomness")
    roots = [root for root in found if root is not None]
    if not all(isinstance(root, Traced) for root in roots):
        raise NotFusable("an output that does not depend on the data")
    return tracer, tuple(cast(Traced, root).node for root in roots)


WHOLE[pair_of_two] = traced_pair_of_two


class _SymbolicSide(WithoutSamples):
    """The quantities of one side as leaves, which are computed only if the result needs them."""

    def __init__(self, side: Side, kind: str, tracer: Tracer) -> None:
        self.side = side
        self.smooth = False
        self.kind = kind
        self.tracer = tracer

    def quantity(self, value: Value, name: str, *args: Hashable, wide: bool = False) -> Tensor:
        if name in DATA:
            return self.side.quantity(value, name, *args, wide=wide)
        return self._leaf((value, name, args, wide), torch.float64 if wide else self.side.dtype)

    def _leaf(self, detail: Hashable, dtype: torch.dtype) -> Traced:
        return self.tracer.leaf(self.kind, detail, torch.zeros(0, dtype=dtype), (None,))

    def mean(self, value: Value) -> Tensor | None:
        if self.side.mean(value) is None:
            return None
        return self._leaf((value, "mean", (), True), torch.float64)

    def names(self, value: Value, table: str) -> tuple[str, ...]:
        if not isinstance(value, Composite) or table != "closed_form" or value.dual is None:
            raise NotFusable("a numerical dual")
        return tuple(value.dual.moments(torch.ones(1, dtype=torch.float64)))

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
            mirror.smooth = self.smooth
            mirror.flipped, mirror._mirror = not self.flipped, self
            self._mirror = mirror
        return self._mirror

    def _spread(self, values: Tensor, which: Which, layout: Layout) -> Tensor:
        """Here it is known along which axes a quantity varies."""
        assert isinstance(values, Traced)
        positions = layout.positions(which)
        axes = tuple(a if a.size > 1 else None for a in positions)
        _lay_out(values.node, axes)
        on_rows = self._on_rows(which)
        count, batch = (EXAMPLES[0], "n1") if on_rows else (EXAMPLES[1], "n2")
        value = values.value.new_full((*(a.size for a in positions), count), 0.5)
        labels: tuple[Label, ...] = (*axes, batch)
        return super()._spread(traced(value, values.node, labels, self._tracer), which, layout)

    def quantity(
        self,
        which: Which,
        value: Value,
        name: str,
        *args: Hashable,
        layout: Layout,
        wide: bool = False,
    ) -> Tensor:
        if name == "sd" and isinstance(value, Bias) and not value.positions:
            forward = value.scale.forward
            if isinstance(forward, float):  # the same number everywhere
                return self.number(forward**0.5, layout, wide=wide)
        if name == "amplitude" and isinstance(value, Sum):
            term = value.terms[cast(int, args[0])]
            if not term.coefficients:  # the same number everywhere
                return self.number(term.number, layout, wide=wide)
        return super().quantity(which, value, name, *args, layout=layout, wide=wide)

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

    # -- maps over positions -------------------------------------------------------------------

    def block(self, u: Value, v: Value, ties: Ties) -> Block | None:
        if self.flipped or self._both_mapped(u, v) is None:
            return super().block(u, v, ties)
        return self.from_moments(u, v, Layout(u.positions, v.positions, ties))

    def moments(self, u: Value, v: Value, ties: Ties) -> Moments | None:
        maps = None if self.flipped else self._both_mapped(u, v)
        if maps is None:
            return super().moments(u, v, ties)
        return self._mapped(u, *maps, Layout(u.positions, v.positions, ties))

    def _both_mapped(self, u: Value, v: Value) -> tuple[Map, Map] | None:
        """Two values that are equal maps over positions of others."""
        mine, yours = mapping(u), mapping(v)
        if (mine is None and yours is None) or uncorrelated(u, v):
            return None
        if mine is None or yours is None:
            raise NotFusable("a pooled value with one that is not")
        sizes = [[m.shape for m in one.matrices] for one in (mine, yours)]
        if sizes[0] != sizes[1] or not all(map(torch.equal, mine.matrices, yours.matrices)):
            raise NotFusable("values that are pooled in different ways")
        return mine, yours

    def _mapped(self, value: Value, mine: Map, yours: Map, layout: Layout) -> Moments | None:
        """Sums over pairs of positions, from the covariance at equal positions."""
        self._tracer.expect_windows()
        left, right = mine.source.positions, yours.source.positions
        ties = frozenset(zip(left, right, strict=True))
        moments = self.moments(mine.source, yours.source, ties)
        if moments is None:
            return None
        if layout.free_right:
            raise NotFusable("a pooled value at unequal positions")
        for a, b in layout.ties:
            self._tracer.identify(a, b)
        moment = self._summed(moments.moment, value, mine, layout, moment=True)
        if moments.ntk is None:
            return Moments(moment, None)
        return Moments(moment, self._summed(moments.ntk, value, mine, layout, moment=False))

    def _summed(
        self, values: Tensor, value: Value, mapped: Map, layout: Layout, *, moment: bool
    ) -> Traced:
        if not isinstance(values, Traced):
            raise NotFusable("a covariance that does not depend on the data")
        if mapped.windows is not None:
            for dim, window in enumerate(mapped.windows):
                values = values if window is None else single_sum(values, dim, window)
            return cast(Traced, values)
        node = self._map_node(values, value, mapped, moment=moment)
        like = torch.full((*(a.size for a in layout.left), *EXAMPLES), 0.5, dtype=values.dtype)
        labels: tuple[Label, ...] = (*layout.left, "n1", "n2")
        return traced(like, node, labels, self._tracer)

    def _map_node(self, values: Traced, value: Value, mapped: Map, *, moment: bool) -> Node:
        inputs, dtype = (values.node,), values.dtype
        if mapped.weights is not None:
            source = mapped.source.positions
            detail = Reduction(source, mapped.weights, value if moment else None)
            return Node(Kind.REDUCE, dtype, frozenset(), inputs, detail=detail)
        pooling = mapped.pooling(value, moment=moment)
        if pooling is not None:
            axes = frozenset(pooling.targets)
            node = Node(Kind.POOL, dtype, axes, inputs, detail=pooling)
            return multiple(node, pooling.factor)
        gathered = mapped.resampling(value, moment=moment)
        node = Node(Kind.RESAMPLE, dtype, frozenset(gathered.targets), inputs, detail=gathered)
        return multiple(node, 1.0, always=True)

    # -- the output ----------------------------------------------------------------------------

    def of_block(self, output: Value) -> tuple[Tensor | None, Tensor | None] | None:
        """NNGP and NTK of an output by its versine."""
        layout = Layout((), ())
        block = self.block(output, output, layout.ties)
        if block is None:
            return None
        return self.moment(output, output, block, layout), block.ntk

    def of_sum(self, output: Value) -> tuple[Tensor | None, Tensor | None] | None:
        """NNGP and NTK of an output by the moments of its terms."""
        terms = output.terms if isinstance(output, Sum) else (Term(output),)
        layout = Layout((), ())
        nngp: Tensor | None = None
        ntk: Tensor | None = None
        for i, u in enumerate(terms):
            for j, v in enumerate(terms):
                moments = self.moments(u.value, v.value, layout.ties)
                if moments is None:
                    continue
                a, b = self._amplitude("left", output, i), self._amplitude("right", output, j)
                factor = a * b
                part = factor * moments.moment
                nngp = part if nngp is None else nngp + part
                if moments.ntk is not None:
                    own = factor.to(self.dtype) * moments.ntk
                    ntk = own if ntk is None else ntk + own
        return None if nngp is None else (nngp.to(self.dtype), ntk)

    def _amplitude(self, which: Which, output: Value, index: int) -> Tensor:
        layout = Layout((), ())
        if not isinstance(output, Sum):
            return self.number(1.0, layout, wide=True)
        return self.quantity(which, output, "amplitude", index, layout=layout, wide=True)


def _lay_out(node: Node, axes: tuple[Axis | None, ...]) -> None:
    """Note the axes of a quantity when they become known."""
    if not node.order:
        node.order = axes
        node.axes = frozenset(a for a in axes if a is not None)
    elif node.order != axes:
        raise NotFusable("a quantity laid out in two ways")
