"""Attention as its heads and their widths go to infinity: logits, and what the weights gather.

Source: Hron, Bahri, Sohl-Dickstein and Novak (2020), "Infinite attention: NNGP and NTK for deep
attention networks". The width d of each head goes to infinity, and so does the number of heads.
With query and key weights that are independent, the logits A(i, j) = sum_d q_d(i) k_d(j) of the
heads are independent Gaussians; a coordinate of the width is a pair of a head and a place in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments, Positions, Which, place
from tangency.infinite.sampling.contraction import Sample, contracted, dims_of
from tangency.infinite.sampling.draw import Draw
from tangency.infinite.sampling.mirroring import is_symmetric
from tangency.infinite.sampling.products import draw_product
from tangency.infinite.values.dropped import Dropped
from tangency.infinite.values.sources import One
from tangency.infinite.values.sum import Sum
from tangency.infinite.values.value import (
    Value,
    at_odds,
    diagonal,
    fill,
    to_positions,
    untied,
)
from tangency.program.axes import Axis, size_of

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.sampling.draws import Draws
    from tangency.infinite.side import Side

__all__ = ["Attended", "Logits", "is_certain"]


def is_certain(value: Value) -> bool:
    """Whether a value is the same number on every coordinate, with no randomness."""
    if isinstance(value, Sum):
        return all(is_certain(term.value) for term in value.terms)
    return isinstance(value, One)


class Logits(Value):
    """sum over the width d of a head of q_d k_d, for independent q and k.

    Over the heads, it is Gaussian with K = d K_q K_k and T = d (T_q K_k + K_q T_k): the sum
    of d uncorrelated products. A scale of order 1 / sqrt(d) keeps it finite as d grows.
    """

    precedence = 1
    gaussian = True
    centred = True
    alone: bool
    """Whether no other logits are correlated with these."""

    def __init__(self, query: Value, key: Value, width: int) -> None:
        new = tuple(a for a in key.positions if a not in query.positions)
        super().__init__((*query.positions, *new))
        self.query = query
        self.key = key
        self.width = width
        self.alone = True

    @cached_property
    def origins(self) -> frozenset[Hashable]:
        return frozenset(("logits", o) for o in self.query.origins | self.key.origins)

    @cached_property
    def sampled(self) -> bool:
        return self.query.sampled or self.key.sampled

    @property
    def factored(self) -> bool:
        """Logits that share weights with others have to be drawn jointly with them."""
        return self.alone

    def draw(self, draws: Draws) -> Draw:
        value, tangent = draw_product(draws, self.query, self.key, self.positions, self)
        scale = math.sqrt(self.width)
        return Draw(scale * value, scale * tangent)

    def second_moment(self, side: Side) -> Tensor:
        moments = [
            to_positions(side.second_moment(value), value.positions, self.positions)
            for value in (self.query, self.key)
        ]
        return side.full(self.width * moments[0] * moments[1], self.positions)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        return pairs.from_moments(self, other, layout)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        if not isinstance(other, Logits):
            return None
        straight = self._product((other.query, other.key), layout, pairs)
        crossed = self._product((other.key, other.query), layout, pairs)
        if straight is None or crossed is None:
            return straight or crossed
        return Moments(straight.moment + crossed.moment, _sum(straight.ntk, crossed.ntk))

    def _product(self, others: tuple[Value, Value], layout: Layout, pairs: Pairs) -> Moments | None:
        """E[q q'] E[k k'] and its NTK, times the width; None if one of the two is zero."""
        parts = []
        for u, v in zip((self.query, self.key), others, strict=True):
            inner = layout.within(u.positions, v.positions)
            found = pairs.moments(u, v, inner.ties)
            if found is None:
                return None
            ntk = None if found.ntk is None else layout.embed(found.ntk, inner)
            parts.append(Moments(layout.embed(found.moment, inner), ntk))
        (q, tq), (k, tk) = parts
        first = None if tq is None else self.width * tq * k.to(tq.dtype)
        second = None if tk is None else self.width * tk * q.to(tk.dtype)
        return Moments(self.width * q * k, _sum(first, second))


class Attended(Value):
    """sum_j z(i, j) v(j): values gathered by the attention weights z of the head.

    K = sum_jj' E[z z'] K_v and T = sum_jj' E[z z'] T_v + T_z K_v. One coordinate of v has a
    vanishing influence on z, so that the two are independent even where they share weights. The
    moments of z are exact, or means over its samples; K_v and T_v are exact.

    Dropout gives every weight z(i, j) a mask of its own, in every head and example. That changes
    only E[z(i, j)^2], which is divided by the probability of keeping it.
    """

    precedence = 2.75  # what may contain other attended values expands first
    gaussian = False

    def __init__(self, weights: Value, values: Value, keys: Axis) -> None:
        found = [a for a in (*weights.positions, *values.positions) if a is not keys]
        super().__init__(tuple(dict.fromkeys(found)))
        self.weights = weights
        self.values = values
        self.keys = keys
        self.dropped: Dropped | None = None
        """The weights, if each has a mask of its own."""
        self.unmasked = weights
        """The weights without their masks."""
        if isinstance(weights, Dropped) and set(weights.masked) == set(weights.positions):
            self.dropped, self.unmasked = weights, weights.source

    @property
    def centred(self) -> bool:
        return self.values.centred

    @property
    def parts(self) -> tuple[Value, ...]:
        return (self.weights, self.values)

    @cached_property
    def sampled(self) -> bool:
        """The covariance with any other value follows from samples of the weights alone."""
        return self.values.sampled

    @property
    def _reads(self) -> Positions:
        return (*self.positions, self.keys)

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        weights = to_positions(parts[0], self.weights.positions, self._reads)
        return (weights * to_positions(parts[1], self.values.positions, self._reads)).sum(-2)

    # -- one example ---------------------------------------------------------------------------

    @property
    def whole(self) -> bool:
        return self.unmasked.sampled

    @property
    def reads(self) -> int:
        return size_of(self._reads)

    @property
    def gathers(self) -> int:
        return max(size_of(self.positions), size_of(self.values.positions))

    @property
    def _by_samples(self) -> bool:
        """Whether samples of the weights are used; those of certain weights are themselves."""
        return self.unmasked.sampled or is_certain(self.unmasked)

    def mean_weights(self, side: Side) -> Tensor:
        """E[z], `(*positions of the weights, n)`."""
        mean = side.mean(self.unmasked)
        zero = side.number(0.0)
        return side.full(zero if mean is None else mean, self.unmasked.positions)

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.values)
        if mean is None:
            return None
        weights = to_positions(
            side.quantity(self, "mean_weights"), self.unmasked.positions, self._reads
        )
        gathered = weights * to_positions(mean, self.values.positions, self._reads)
        return side.full(gathered.sum(-2), self.positions)

    def second_moment(self, side: Side) -> Tensor:
        ties = frozenset((a, a) for a in self.positions)
        if self.whole:  # what all pairs of examples need anyway is drawn once
            return self._diagonal(side)
        entries = self.keys.size**2
        for axis in self.positions:
            entries *= axis.size
        sizes = [axis.size for axis in self.positions]

        def moment(pairs: Pairs) -> Tensor:
            moments = pairs.moments(self, self, ties)
            assert moments is not None
            return moments.moment.expand(*sizes, moments.moment.shape[-1])

        return side.by_chunks(self, "second_moment", entries, moment)

    def _diagonal(self, side: Side) -> Tensor:
        """The second moments among those of all positions and pairs of examples."""
        found = side.draws.pairs.moments(self, self, frozenset())
        assert found is not None
        moment: Moments | None = Moments(found.moment.diagonal(dim1=-2, dim2=-1), None)
        layout = Layout(self.positions, self.positions)
        for axis in self.positions:
            moment = diagonal(moment, (axis, axis), layout)
            layout = Layout(layout.left, layout.right, layout.ties | {(axis, axis)})
        assert moment is not None
        return side.full(moment.moment, self.positions).clone()

    # -- pairs ---------------------------------------------------------------------------------

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        return pairs.from_moments(self, other, layout)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        if not isinstance(other, Attended):
            return self._with_other(other, layout, pairs)
        masks = self._masks_with(other)
        for a, b in layout.ties:
            if any((a is c) != (b is d) for c, d in masks):
                return untied(self, other, (a, b), layout, pairs.moments)
        whole = self._without_masks(other, layout, pairs)
        if whole is None or not masks:
            return whole
        added = self._of_masks(other, masks, layout, pairs)
        return Moments(whole.moment + added.moment, _sum(whole.ntk, added.ntk))

    def at_odds_with(self, other: Value) -> bool:
        if not isinstance(other, Attended):
            return at_odds(self.values, other)
        sampled = self._by_samples and other._by_samples
        return at_odds(self.values, other.values) or (
            not sampled and at_odds(self.unmasked, other.unmasked)
        )

    def _without_masks(self, other: Attended, layout: Layout, pairs: Pairs) -> Moments | None:
        inner = Layout(self._reads, other._reads, layout.ties)
        values = _embedded(self.values, other.values, inner, pairs)
        if values is None:
            return None
        if self._by_samples and other._by_samples:
            return self._over_samples(other, values, inner, layout, pairs)
        products = self._products(other, values, inner, pairs)
        if products is None:
            return None
        dims = [inner.index("left", self.keys), inner.index("right", other.keys)]
        return _map(products, lambda x: _ordered(x.sum(dims, keepdim=True), inner, layout))

    def _products(
        self, other: Attended, values: Moments, inner: Layout, pairs: Pairs
    ) -> Moments | None:
        """Moments of z(i, j) v(j), laid out by `inner`; `values` are those of the values."""
        weights = _embedded(self.unmasked, other.unmasked, inner, pairs)
        if weights is None:
            return None
        own = None if values.ntk is None else values.ntk * weights.moment.to(values.ntk.dtype)
        shared = None if weights.ntk is None else weights.ntk * values.moment.to(weights.ntk.dtype)
        return Moments(values.moment * weights.moment, _sum(own, shared))

    def _masks_with(self, other: Attended) -> tuple[tuple[Axis, Axis], ...]:
        """The axes along which both have the same masks, in pairs; none if they have no such."""
        mine, yours = self.dropped, other.dropped
        if mine is None or yours is None or mine.identity != yours.identity:
            return ()
        return tuple(zip(mine.masked, yours.masked, strict=True))

    def _of_masks(
        self, other: Attended, masks: tuple[tuple[Axis, Axis], ...], layout: Layout, pairs: Pairs
    ) -> Moments:
        """(1 / keep - 1) sum_j E[z(i, j)^2] K_v(j, j) where a query of an example meets itself, and
        the same of the NTK.
        """
        assert self.dropped is not None
        assert other.dropped is not None
        inner = Layout(self._reads, other._reads, layout.ties | frozenset(masks))
        values = _embedded(self.values, other.values, inner, pairs)
        assert values is not None
        products = self._products(other, values, inner, pairs)
        assert products is not None
        key, tied = inner.index("left", self.keys), inner.ties - {(self.keys, other.keys)}
        kept = Layout(self.positions, other.positions, tied)
        same = self.dropped.same_example(other.dropped, layout, pairs)
        for a, b in masks:
            if a is not self.keys:
                same = same & layout.equal(a, b, same)
        gain = same.double() * (1 / self.dropped.keep - 1)

        def gathered(x: Tensor) -> Tensor:
            whole = fill(x, key, self.keys.size).sum(key, keepdim=True)
            return gain.to(x.dtype) * layout.embed(_ordered(whole, inner, kept), kept)

        return _map(products, gathered)

    def _over_samples(
        self, other: Attended, values: Moments, inner: Layout, layout: Layout, pairs: Pairs
    ) -> Moments:
        """Means over samples of the sums over both keys."""
        sampled = [v.unmasked for v in (self, other) if v.unmasked.sampled]
        parts = pairs.parts(*sampled) if sampled else [slice(0, 1)]

        def samples(part: slice) -> tuple[Sample, Sample]:
            mine = self._weight_samples("left", part, inner, pairs)
            return mine, other._weight_samples("right", part, inner, pairs)

        symmetric = self is other and pairs.whole and is_symmetric(layout)
        keys = inner.index("left", self.keys), inner.index("right", other.keys)
        moment, ntk = contracted(parts, samples, values, inner, layout, keys, symmetric=symmetric)
        return Moments(moment, ntk.to(pairs.dtype))

    def _weight_samples(self, which: Which, part: slice, inner: Layout, pairs: Pairs) -> Sample:
        """Samples of the weights and of their tangents over all dimensions of `inner`."""
        own = inner.swap(which, self.unmasked.positions)
        if self.unmasked.sampled:
            value, tangent = pairs.samples(which, self.unmasked, part, own)
        else:
            value = pairs.quantity(which, self, "mean_weights", layout=own, wide=True)[None]
            value = value.expand(part.stop - part.start, *value.shape[1:])
            tangent = torch.zeros_like(value)
        return _widened(value, own, inner), _widened(tangent, own, inner)

    def _with_other(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        """sum_j E[z(i, j)] E[v(j) u'], and its NTK, with a value that has no such weights."""
        inner = Layout(self._reads, other.positions, layout.ties)
        values = _embedded(self.values, other, inner, pairs)
        if values is None:
            return None
        part = inner.swap("left", self.unmasked.positions)
        mean = pairs.quantity("left", self, "mean_weights", layout=part, wide=True)
        mean = _widened(mean[None], part, inner)[0]
        dim = inner.index("left", self.keys)
        return _map(
            values, lambda x: _ordered((mean.to(x) * x).sum(dim, keepdim=True), inner, layout)
        )


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return first if second is None else second
    return first + second


def _map(moments: Moments, function: Callable[[Tensor], Tensor]) -> Moments:
    ntk = None if moments.ntk is None else function(moments.ntk)
    return Moments(function(moments.moment), ntk)


def _embedded(u: Value, v: Value, inner: Layout, pairs: Pairs) -> Moments | None:
    """Moments of two values as they broadcast in `inner`."""
    part = inner.within(u.positions, v.positions)
    found = pairs.moments(u, v, part.ties)
    return None if found is None else _map(found, lambda x: inner.embed(x, part))


def _widened(samples: Tensor, part: Layout, inner: Layout) -> Tensor:
    """Samples `(S, *dims of part, batch)` as they broadcast in `inner`."""
    indices = [inner.index("left", a) for a in part.left]
    indices += [inner.index("right", b) for b in part.free_right]
    return place(samples, indices, inner.rank, lead=1)


def _ordered(values: Tensor, inner: Layout, layout: Layout) -> Tensor:
    """From `inner`, whose dimensions of the keys are summed (of size one), to `layout`."""
    dims = dims_of(inner, layout)
    gone = [k for k in range(inner.rank) if k not in dims]
    moved = values.permute(*dims, *range(inner.rank, values.dim()), *gone)
    return moved.flatten(-len(gone) - 1) if gone else moved
