"""Covariances of what attention weights gather, as means over samples of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from tangency import tiles
from tangency.infinite.layout import Layout, Moments
from tangency.infinite.sampling.mirroring import mirror

__all__ = ["Sample", "contracted", "dims_of"]

CHUNK = 1 << 17
"""Entries of the largest intermediate result: it stays in cache."""

Sample: TypeAlias = tuple[Tensor, Tensor]
"""Samples of weights and of their tangents, `(S, *dims of the block, batch)`, perhaps broadcast."""


def contracted(
    parts: Iterable[slice],
    samples: Callable[[slice], tuple[Sample, Sample]],
    values: Moments,
    inner: Layout,
    layout: Layout,
    keys: tuple[int, int],
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
        keys: the dimensions of j and j' in `inner`.
        symmetric: whether left and right are the same.
    """
    sums: _Sums | None = None
    count = 0
    for part in parts:
        left, right = samples(part)
        if sums is None:
            sums = _Sums(left[0], values, right[0], inner, keys)
        sums.add(left, right, symmetric)
        count = part.stop
    assert sums is not None
    moment, ntk = (
        _laid_out(total.div_(count), sums, inner, layout) for total in (sums.moment, sums.ntk)
    )
    if symmetric:
        n = moment.shape[-1]
        for whole in (moment, ntk):
            for i in range(n):
                mirror(whole, tiles.Tile(slice(i, i + 1), slice(i, n)), layout)
    return moment, ntk


def dims_of(inner: Layout, layout: Layout) -> list[int]:
    """For every dimension of `layout` the one of `inner`."""
    left = [inner.index("left", a) for a in layout.left]
    return left + [inner.index("right", b) for b in layout.free_right]


def _laid_out(total: Tensor, sums: _Sums, inner: Layout, layout: Layout) -> Tensor:
    """A total `(*batch, *shared, *left, *right)` with the dimensions of a block."""
    shape = [sums.sizes[k] for k in (*sums.batch, *sums.shared, *sums.left, *sums.right)]
    order = [*sums.batch, *sums.shared, *sums.left, *sums.right]
    wanted = [*dims_of(inner, layout), *sums.batch]
    gone = [k for k in order if k not in wanted]  # of size one
    whole = total.reshape(shape).permute(*(order.index(k) for k in (*wanted, *gone)))
    return whole.flatten(-len(gone) - 1) if gone else whole


class _Sums:
    """Sums over samples, as products of matrices for each pair of examples.

    Of the dimensions of the block, `left` are in the left weights alone and `right` in the right
    ones; `shared` are all others but the keys.
    """

    def __init__(
        self, left: Tensor, values: Moments, right: Tensor, inner: Layout, keys: tuple[int, int]
    ) -> None:
        moment = values.moment
        self.sizes = torch.broadcast_shapes(left.shape[1:], moment.shape, right.shape[1:])
        self.keys = keys
        self.batch = list(range(inner.rank, moment.dim()))
        free = [k for k in range(inner.rank) if k not in keys and moment.shape[k] == 1]
        self.left = [k for k in free if left.shape[1 + k] > 1 and right.shape[1 + k] == 1]
        self.right = [k for k in free if right.shape[1 + k] > 1 and left.shape[1 + k] == 1]
        apart = {*keys, *self.left, *self.right}
        self.shared = [k for k in range(inner.rank) if k not in apart]
        self._kernels = [self._matrices(moment)]
        if values.ntk is not None:
            self._kernels.append(self._matrices(values.ntk.double()))
        rows, columns = self._size(self.left), self._size(self.right)
        shape = [self.sizes[k] for k in self.batch]
        whole = (*shape, self._size(self.shared), rows, columns)
        self.moment, self.ntk = moment.new_zeros(whole), moment.new_zeros(whole)

    def _size(self, dims: list[int]) -> int:
        return math.prod(self.sizes[k] for k in dims)

    def _matrices(self, values: Tensor) -> Tensor:
        """Moments of the values, `(*batch, shared, keys, keys)`."""
        order = [*self.batch, *self.shared, *self.keys]
        sizes = list(values.shape)
        for k in order:
            sizes[k] = self.sizes[k]
        full = values.expand(sizes).permute(*order, *self.left, *self.right)
        shape = [self.sizes[k] for k in self.batch]
        keys = [self.sizes[k] for k in self.keys]
        return full.reshape(*shape, self._size(self.shared), *keys).contiguous()

    def _weights(self, samples: Tensor, own: list[int], key: int, *, first: bool) -> Tensor:
        """Samples of weights, `(n, shared, own, S, keys)`, or `(n, shared, S, keys, own)`."""
        batch = self.batch[:1] if first else self.batch[-1:]
        sizes = list(samples.shape)
        for k in (*self.shared, *own, key, *batch):
            sizes[1 + k] = self.sizes[k]
        full = samples.expand(sizes)
        lead = [1 + k for k in (*batch, *self.shared)]
        mine = [1 + k for k in own]
        order = [*lead, *mine, 0, 1 + key] if first else [*lead, 0, 1 + key, *mine]
        rest = [k for k in range(samples.dim()) if k not in order]
        n, shared = self.sizes[batch[0]], self._size(self.shared)
        shape = (n, shared, self._size(own), samples.shape[0], self.sizes[key])
        if not first:
            shape = (n, shared, samples.shape[0], self.sizes[key], self._size(own))
        return full.permute(*order, *rest).reshape(shape).contiguous()

    def add(self, left: Sample, right: Sample, symmetric: bool) -> None:
        """Add the sums over some samples; with `symmetric`, of half of the pairs."""
        # Entries of the sums over j of one sample, for one pair of examples.
        pair = self._size(self.shared) * self._size(self.left) * self.sizes[self.keys[1]]
        step = max(1, CHUNK // pair)
        for begin in range(0, left[0].shape[0], step):
            some = slice(begin, begin + step)
            mine = [self._weights(z[some], self.left, self.keys[0], first=True) for z in left]
            yours = [self._weights(y[some], self.right, self.keys[1], first=False) for y in right]
            count = max(1, CHUNK // (pair * mine[0].shape[3]))
            self._accumulate(self.moment, mine[0], self._kernels[0], yours[0], symmetric, count)
            self._accumulate(self.ntk, mine[1], self._kernels[0], yours[1], symmetric, count)
            for kernel in self._kernels[1:]:
                self._accumulate(self.ntk, mine[0], kernel, yours[0], symmetric, count)

    def _accumulate(
        self,
        total: Tensor,
        left: Tensor,
        kernel: Tensor,
        right: Tensor,
        symmetric: bool,
        count: int,
    ) -> None:
        """Add the sums over some samples, for `count` pairs of examples at a time."""
        n1, n2 = kernel.shape[0], kernel.shape[1]
        if len(self.batch) == 1:
            for i in range(0, n1, count):
                at = slice(i, i + count)
                total[at] += _product(left[at], kernel[at], right[at])
            return
        for i in range(n1):
            for j in range(i if symmetric else 0, n2, count):
                at = slice(j, min(j + count, n2))
                total[i, at] += _product(left[i : i + 1], kernel[i, at], right[at])


def _product(left: Tensor, kernel: Tensor, right: Tensor) -> Tensor:
    """Sums over samples and both keys: `(n, shared, left, S, j) (n, shared, j, k) (n, shared, S, k,
    right)`, one left for all n perhaps.
    """
    n, shared, rows, samples, keys = left.shape
    half = left.view(n, shared, rows * samples, keys) @ kernel
    whole = half.view(*half.shape[:2], rows, samples * kernel.shape[-1])
    product: Tensor = whole @ right.flatten(2, 3)
    return product
