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
from tangency.infinite.sampling.noise import UNIT, Noise
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
        drawn = _correlated(left, right, blocks, draws.noise, stream, draws.part)
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


def _correlated(
    left: Factor, right: Factor, blocks: int, noise: Noise, stream: int, part: slice
) -> Tensor:
    """The diagonal blocks of F G H^T, `(S, blocks, rows, columns)`."""
    f, h = left.matrix, right.matrix
    rows, columns = len(f) // blocks, len(h) // blocks
    ranks = list(zip(_ranks(left, blocks), _ranks(right, blocks), strict=True))
    drawn = f.new_empty(part.stop - part.start, blocks, rows, columns)
    for units, where in _together(noise, part, ranks[-1][0] * ranks[-1][1]):
        count = where.stop - where.start
        white = torch.cat([_white(ranks, noise, size, stream, u) for u, size in units], 1)
        white = white.to(f.device)
        for x, (r, s) in enumerate(ranks):  # the factors are triangular
            mine, yours = f[x * rows : (x + 1) * rows, :r], h[x * columns : (x + 1) * columns, :s]
            half = (mine @ white[:r, :, :s].reshape(r, -1)).reshape(rows * count, s)
            drawn[where, x] = (half @ yours.T).reshape(rows, count, columns).transpose(0, 1)
    return drawn


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


def _white(ranks: list[tuple[int, int]], noise: Noise, count: int, *key: int) -> Tensor:
    """White noise `(rank, count, rank)`; that for more blocks begins with that for fewer."""
    rows, columns = ranks[-1]
    shells = list(_shells(ranks))
    if len(shells) == 1:
        return noise.block(rows * count * columns, *key, *shells[0].name).reshape(rows, count, -1)
    white = torch.empty(rows, count, columns, dtype=torch.float64)
    for shell in shells:
        size = shell.rows.stop - shell.rows.start, shell.columns.stop - shell.columns.start
        new = noise.block(size[0] * count * size[1], *key, *shell.name)
        white[shell.rows, :, shell.columns] = new.reshape(size[0], count, size[1])
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
    sizes = [axis.size for axis in (*layout.left, *layout.right)]
    n, size = draws.side.count, size_of(order)
    left = [value.positions.index(a) for a in order]
    right = [len(order) + k for k in left]
    batch = 2 * len(order)

    def factor(block: Tensor | None) -> Factor | None:
        if block is None:
            return None
        full = block.double().expand(*sizes, n, n).permute(batch, *left, batch + 1, *right)
        matrix = torch.empty(full.shape, dtype=torch.float64, device=full.device).copy_(full)
        return factor_of(matrix.view(n * size, n * size))

    return factor(found.moment), factor(found.ntk)
