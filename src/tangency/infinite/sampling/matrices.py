"""Covariances of all examples as matrices over pairs of an example and a position."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from tangency.infinite.layout import Layout
from tangency.infinite.sampling.scratch import Scratch
from tangency.program.axes import size_of

__all__ = ["matrix_of"]


def matrix_of(
    block: Tensor,
    layout: Layout,
    count: int,
    scratch: Scratch,
    order: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Tensor:
    """A block `(*left, *right, n, n)` as a new matrix in float64, the examples outermost.

    Args:
        block: moments or NTK; dimensions may be broadcast.
        layout: its positions, of which none are tied.
        count: number of examples n.
        scratch: where the matrix goes.
        order: of the left and of the right positions in the matrix, if not theirs.
    """
    left, right = len(layout.left), len(layout.right)
    sizes = [axis.size for axis in (*layout.left, *layout.right)]
    rows, columns = order or (range(left), range(right))
    permutation = [left + right, *rows, left + right + 1, *(left + k for k in columns)]
    full = block.double().expand(*sizes, count, count).permute(permutation)
    matrix = scratch.empty(*full.shape, like=full)
    size = count * size_of(layout.left), count * size_of(layout.right)
    if not scratch.holds(matrix):
        return matrix.copy_(full).view(size)
    for i, j in itertools.product(range(count), repeat=2):
        from_, to = (whole.select(1 + left, j)[i] for whole in (full, matrix))
        to.copy_(from_)
        scratch.touched(2 * 8 * to.numel())
    return matrix.view(size)
