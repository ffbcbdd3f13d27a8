"""Gaussians whose covariance is a product: logits of attention between many positions.

The logits A(x; i, j) of T queries and T keys of n examples have n T^2 entries, too many for a
Cholesky factor. But Cov(A(x; i, j), A(y; i', j')) = Q(x i, y i') R(x j, y j'), so that with factors
Q = F F^T and R = H H^T and a matrix G of independent numbers, A(x) is the block (x, x) of F G H^T.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tangency.infinite.layout import Layout, Positions
from tangency.infinite.sampling.factors import Factor
from tangency.infinite.sampling.gaussians import factor_of
from tangency.infinite.sampling.matrices import matrix_of
from tangency.infinite.sampling.noise import UNIT, Noise
from tangency.infinite.sampling.scratch import Scratch
from tangency.infinite.values.value import Value
from tangency.program.axes import size_of

if TYPE_CHECKING:
    from tangency.infinite.sampling.draws import Draws

__all__ = ["Factors", "draw_product", "factors_of"]


TOGETHER = 1 << 20
"""Numbers of white noise that are drawn at a time, so that they stay in cache."""


class Factors(NamedTuple):
    """Factors of the covariances and NTKs of queries and keys, over (example, *order)."""

    query: Factor
    key: Factor
    query_ntk: Factor | None
    key_ntk: Factor | None

    @property
    def all(self) -> tuple[Factor, ...]:
        """Those that there are."""
        return tuple(factor for factor in self if factor is not None)


class _Axes(NamedTuple):
    """Positions that queries and keys have in common, and those of each alone."""

    lead: Positions
    rows: Positions
    columns: Positions


def _axes(query: Value, key: Value) -> _Axes:
    lead = tuple(a for a in query.positions if a in key.positions)
    rows = tuple(a for a in query.positions if a not in lead)
    return _Axes(lead, rows, tuple(a for a in key.positions if a not in lead))


def factors_of(draws: Draws, query: Value, key: Value) -> Factors:
    """What the samples of a product are made of."""
    lead, rows, columns = _axes(query, key)
    q, tq = _factored(draws, query, (*lead, *rows))
    k, tk = _factored(draws, key, (*lead, *columns))
    assert q is not None
    assert k is not None
    return Factors(q, k, tq, tk)


def draw_product(
    draws: Draws, query: Value, key: Value, positions: Positions, owner: Value
) -> tuple[Tensor, Tensor]:
    """Samples of a Gaussian with covariance K_q K_k, and of its tangent, T_q K_k + K_q T_k.

    Args:
        draws: where the samples come from.
        query, key: the two values, which may have positions in common.
        positions: of the result.
        owner: whose samples they are.

    Returns:
        Value and tangent, `(S, *positions, n)`.
    """
    count = draws.side.count
    have = lead, rows, columns = _axes(query, key)
    factors = draws.factors(owner, query, key)
    blocks = count * size_of(lead)

    def sample(number: int, left: Factor, right: Factor) -> Tensor:
        stream = draws.stream(owner, number)
        source = _Source(draws.noise, stream, draws.plan.scratch)
        drawn = _correlated(left, right, blocks, source, draws.part)
        order = (*lead, *rows, *columns)
        sizes = [axis.size for axis in order]
        whole = drawn.reshape(-1, count, *sizes).movedim(1, -1)
        return whole.permute(0, *(1 + order.index(a) for a in positions), whole.dim() - 1)

    assert all(a in positions for axes in have for a in axes)
    value = sample(0, factors.query, factors.key)
    tangent = torch.zeros((), dtype=torch.float64, device=value.device)
    if factors.query_ntk is not None:
        tangent = tangent + sample(1, factors.query_ntk, factors.key)
    if factors.key_ntk is not None:
        tangent = tangent + sample(2, factors.query, factors.key_ntk)
    return value, tangent.expand(value.shape)


class _Source(NamedTuple):
    """A stream of white noise, and where much of it goes."""

    noise: Noise
    stream: int
    scratch: Scratch


def _correlated(left: Factor, right: Factor, blocks: int, source: _Source, part: slice) -> Tensor:
    """The diagonal blocks of F G H^T, `(S, blocks, rows, columns)`."""
    f, h = left.matrix, right.matrix
    rows, columns = len(f) // blocks, len(h) // blocks
    ranks = list(zip(_ranks(left, blocks), _ranks(right, blocks), strict=True))
    drawn = f.new_empty(part.stop - part.start, blocks, rows, columns)
    for units, where in _together(source.noise, part, ranks[-1][0] * ranks[-1][1]):
        white = [_white(ranks, source, size, u) for u, size in units]
        whole = (white[0] if len(white) == 1 else torch.cat(white, 1)).to(f.device)
        for x, (r, s) in enumerate(ranks):  # the factors are triangular
            mine, yours = f[x * rows : (x + 1) * rows, :r], h[x * columns : (x + 1) * columns, :s]
            half = _half(mine, whole[:r, :, :s], source.scratch)
            drawn[where, x] = (half @ yours.T).transpose(0, 1)
    return drawn


def _half(factor: Tensor, white: Tensor, scratch: Scratch) -> Tensor:
    """F G for some rows of F and samples of G `(rank, S, rank)`: `(rows, S, rank)`."""
    rank, samples, columns = white.shape
    if not scratch.holds(white):
        return (factor @ white.reshape(rank, -1)).reshape(len(factor), samples, columns)
    scratch.touched(8 * white.numel())
    return torch.stack([factor @ white[:, k] for k in range(samples)], 1)


def _together(
    noise: Noise, part: slice, size: int
) -> Iterator[tuple[list[tuple[int, int]], slice]]:
    """Units that are drawn together, as (number, samples), and where they lie."""
    units: list[tuple[int, int]] = []
    start = 0
    for unit, where in noise.units(part):
        units.append((unit, where.stop - where.start))
        if where.stop == part.stop - part.start or (where.stop - start + UNIT) * size > TOGETHER:
            yield units, slice(start, where.stop)
            units, start = [], where.stop


def _ranks(factor: Factor, blocks: int) -> list[int]:
    """Number of columns that are not zero in each block of rows."""
    size = len(factor.matrix) // blocks
    ends = torch.arange(1, blocks + 1, device=factor.kept.device) * size
    ranks: list[int] = torch.searchsorted(factor.kept, ends).tolist()
    return ranks


def _white(ranks: list[tuple[int, int]], source: _Source, count: int, unit: int) -> Tensor:
    """White noise `(rank, count, rank)`; that for more blocks begins with that for fewer."""
    rows, columns = ranks[-1]
    key = source.stream, unit
    shells = list(_shells(ranks))
    if len(shells) == 1:
        noise = source.noise.block(rows * count * columns, *key, *shells[0].name)
        return noise.reshape(rows, count, -1)
    like = torch.empty(0, dtype=torch.float64)
    white = source.scratch.empty(rows, count, columns, like=like)
    for shell in shells:
        size = shell.rows.stop - shell.rows.start, shell.columns.stop - shell.columns.start
        new = source.noise.block(size[0] * count * size[1], *key, *shell.name)
        white[shell.rows, :, shell.columns] = new.reshape(size[0], count, size[1])
        source.scratch.touched(8 * new.numel())
    return white


class _Shell(NamedTuple):
    """What white noise for one more block has more."""

    name: tuple[int, int]
    rows: slice
    columns: slice


def _shells(ranks: list[tuple[int, int]]) -> Iterator[_Shell]:
    """The parts of white noise that each block adds, if any."""
    r = s = 0
    for block, (rows, columns) in enumerate(ranks):
        if rows > r and columns:
            yield _Shell((block, 0), slice(r, rows), slice(0, columns))
        if columns > s and r:
            yield _Shell((block, 1), slice(0, r), slice(s, columns))
        r, s = rows, columns


def _factored(draws: Draws, value: Value, order: Positions) -> tuple[Factor | None, Factor | None]:
    """Factors of the moment and of the NTK as matrices over (example, *order)."""
    found = draws.pairs.moments(value, value, frozenset())
    assert found is not None
    layout = Layout(value.positions, value.positions)
    places = [value.positions.index(a) for a in order]
    scratch = draws.plan.scratch

    def factor(block: Tensor | None) -> Factor | None:
        if block is None:
            return None
        matrix = matrix_of(block, layout, draws.side.count, scratch, (places, places))
        return factor_of(matrix, scratch)

    return factor(found.moment), factor(found.ntk)
