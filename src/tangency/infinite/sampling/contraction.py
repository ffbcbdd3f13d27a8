"""Covariances of what attention weights gather, as means over samples of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from tangency import tiles
from tangency.infinite.layout import Layout, Moments
from tangency.infinite.sampling.mirroring import mirror

__all__ = ["Sample", "contracted", "dims_of"]

CHUNK = 1 << 20
"""Entries of the largest intermediate result: it stays in cache."""

SPLIT = 4
"""Blocks into which the examples are cut at least where half of the pairs are enough."""

Sample: TypeAlias = tuple[Tensor, Tensor]
"""Samples of weights and of their tangents, `(S, *dims of the block, batch)`, perhaps broadcast."""


class _Sum(NamedTuple):
    """One of the sums over both keys: which samples it takes, and which of the values' moments."""

    kind: int
    values: Tensor
    total: Tensor


def contracted(
    parts: Iterable[slice],
    samples: Callable[[slice], tuple[Sample, Sample]],
    values: Moments,
    inner: Layout,
    layout: Layout,
    key: int,
    *,
    symmetric: bool,
) -> tuple[Tensor, Tensor]:
    """Means over samples of sum_jj' z(j) K(j, j') y(j') and of sum_jj' dz K dy + z T y.

    Samples and pairs of examples are taken some at a time, so that the sums over j alone, which
    each of them has, stay small.

    Args:
        parts: which samples to take at a time.
        samples: those of the left and of the right weights, over the dimensions of `inner`.
        values: moments K and NTK T of the values, laid out by `inner`.
        inner: the layout with both keys.
        layout: the layout of the result.
        key: the dimension of j in `inner`.
        symmetric: whether left and right are the same.
    """
    moment = ntk = torch.zeros((), dtype=torch.float64, device=values.moment.device)
    count = 0
    for part in parts:
        left, right = samples(part)
        if not count:
            moment, ntk = (_empty(left[0], values.moment, right[0], inner, layout) for _ in "KT")
        sums = [_Sum(0, values.moment, moment), _Sum(1, values.moment, ntk)]
        if values.ntk is not None:
            sums.append(_Sum(0, values.ntk.double(), ntk))
        for one in sums:
            _add(one, left[one.kind], right[one.kind], inner, layout, key, symmetric)
        count = part.stop
    return moment.div_(count), ntk.div_(count)


def dims_of(inner: Layout, layout: Layout) -> list[int]:
    """For every dimension of `layout` the one of `inner`."""
    left = [inner.index("left", a) for a in layout.left]
    return left + [inner.index("right", b) for b in layout.free_right]


def _empty(left: Tensor, values: Tensor, right: Tensor, inner: Layout, layout: Layout) -> Tensor:
    """Zeros of the shape of the result."""
    shape = torch.broadcast_shapes(left.shape[1:], values.shape, right.shape[1:])
    kept = [shape[k] for k in dims_of(inner, layout)]
    return values.new_zeros(*kept, *shape[inner.rank :])


def _add(
    one: _Sum,
    left: Tensor,
    right: Tensor,
    inner: Layout,
    layout: Layout,
    key: int,
    symmetric: bool,
) -> None:
    """Add the sum over some samples to the total."""
    shapes = zip(left.shape[1:], one.values.shape, strict=True)
    size = math.prod(max(pair) for k, pair in enumerate(shapes) if k not in (key, *_batch(inner, left)))
    if left.dim() - 1 - inner.rank == 1:  # pairs of equal examples
        _accumulate(one.total, left, one.values, right, inner, layout, key, size)
        return
    n1, n2 = one.total.shape[-2:]
    fitting = math.isqrt(max(1, CHUNK // (size * left.shape[0])))
    most = -(-n1 // SPLIT) if symmetric else max(n1, n2)
    for tile in tiles.plan(n1, n2, max(1, min(fitting, most)), symmetric=symmetric):
        at = (..., tile.rows, tile.columns)
        values = one.values.expand(*one.values.shape[:-2], n1, n2)[at]
        rows, columns = left[..., tile.rows, :], right[..., tile.columns]
        _accumulate(one.total[at], rows, values, columns, inner, layout, key, size)
        if symmetric:
            mirror(one.total, tile, layout)


def _batch(inner: Layout, samples: Tensor) -> range:
    """The dimensions of the examples."""
    return range(inner.rank, samples.dim() - 1)


def _accumulate(
    total: Tensor,
    left: Tensor,
    values: Tensor,
    right: Tensor,
    inner: Layout,
    layout: Layout,
    key: int,
    size: int,
) -> None:
    """Add the sum over samples and both keys to `total`."""
    labels = list(range(values.dim()))
    sample = len(labels)
    kept = [*dims_of(inner, layout), *labels[inner.rank :]]
    without = [k for k in labels if k != key]
    pairs = math.prod(values.shape[inner.rank :])
    step = max(1, CHUNK // (size * pairs))
    for begin in range(0, left.shape[0], step):
        z, y = (part[begin : begin + step] for part in (left, right))
        half = torch.einsum(z, [sample, *labels], values, labels, [sample, *without])
        total += torch.einsum(half, [sample, *without], y, [sample, *labels], kept)
