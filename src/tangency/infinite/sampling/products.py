"""Gaussians whose covariance is a product: logits of attention between many positions.

The logits A(x; i, j) of T queries and T keys of n examples have n T^2 entries, too many for a
Cholesky factor. But Cov(A(x; i, j), A(y; i', j')) = Q(x i, y i') R(x j, y j'), so that with factors
Q = F F^T and R = H H^T and a matrix G of independent numbers, A(x) is the block (x, x) of F G H^T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.errors import InvalidInput
from tangency.infinite.layout import Layout, Positions
from tangency.infinite.sampling.gaussians import Factor
from tangency.infinite.values.value import Value
from tangency.program.axes import size_of

if TYPE_CHECKING:
    from tangency.infinite.sampling.draws import Draws

__all__ = ["MOST", "draw_product"]

MOST = 1 << 28
"""Samples times entries of logits: 2 GiB."""

Pair = tuple[Tensor, Tensor | None]
"""A covariance between all examples and positions, and the NTK."""


def draw_product(
    draws: Draws, query: Value, key: Value, positions: Positions
) -> tuple[Tensor, Tensor]:
    """Samples of a Gaussian with covariance K_q K_k, and of its tangent, T_q K_k + K_q T_k.

    Args:
        draws: where the samples come from.
        query, key: the two values, which may have positions in common.
        positions: of the result.

    Returns:
        Value and tangent, `(S, *positions, n)`.

    Raises:
        InvalidInput: the samples would need too much memory.
    """
    count = draws.side.count
    entries = draws.samples * size_of(positions) * count
    if entries > MOST:
        raise InvalidInput(
            f"attention between {size_of(positions)} pairs of positions of {count} examples "
            f"takes {entries:.2g} numbers in {draws.samples} samples, more than {MOST:.2g}: ask "
            "for fewer examples at a time, or pass a smaller samples=."
        )
    lead = tuple(a for a in query.positions if a in key.positions)
    rows = tuple(a for a in query.positions if a not in lead)
    columns = tuple(a for a in key.positions if a not in lead)
    q, tq = _covariance(draws, query, (*lead, *rows))
    k, tk = _covariance(draws, key, (*lead, *columns))
    blocks = count * size_of(lead)

    def sample(left: Tensor, right: Tensor) -> Tensor:
        drawn = _correlated(left, right, blocks, draws.blocks(size_of(rows), size_of(columns)))
        have = (*lead, *rows, *columns)
        sizes = [axis.size for axis in have]
        whole = drawn.reshape(draws.samples, count, *sizes).movedim(1, -1)
        return whole.permute(0, *(1 + have.index(a) for a in positions), whole.dim() - 1)

    tangent = torch.zeros((), dtype=torch.float64, device=q.device)
    value = sample(q, k)
    for left, right in ((tq, k), (q, tk)):
        if left is not None and right is not None:
            tangent = tangent + sample(left, right)
    return value, tangent.expand(value.shape)


def _correlated(
    left: Tensor, right: Tensor, blocks: int, noise: Callable[[int, int], Tensor]
) -> Tensor:
    """The diagonal blocks of F G H^T, `(S, blocks, rows, columns)`."""
    f, h = (Factor(c, c.diagonal().clamp_min(0).sqrt()).matrix for c in (left, right))
    f, h = (m.unflatten(0, (blocks, -1)).unflatten(2, (blocks, -1)) for m in (f, h))
    parts: list[Tensor | int] = [0] * blocks
    for a in range(blocks):
        for b in range(blocks):
            g = noise(a, b)
            for x in range(max(a, b), blocks):  # the factors are triangular
                parts[x] = parts[x] + f[x, :, a] @ g @ h[x, :, b].T
    return torch.stack([torch.as_tensor(part) for part in parts], dim=1)


def _covariance(draws: Draws, value: Value, order: Positions) -> Pair:
    """Moment and NTK as matrices over (example, *order)."""
    found = draws.pairs.moments(value, value, frozenset())
    layout = Layout(value.positions, value.positions)
    sizes = [axis.size for axis in (*layout.left, *layout.right)]
    n, size = draws.side.count, size_of(order)
    left = [value.positions.index(a) for a in order]
    right = [len(order) + k for k in left]
    batch = 2 * len(order)

    def matrix(block: Tensor) -> Tensor:
        full = block.double().expand(*sizes, n, n)
        return full.permute(batch, *left, batch + 1, *right).reshape(n * size, n * size)

    assert found is not None
    return matrix(found.moment), None if found.ntk is None else matrix(found.ntk)
