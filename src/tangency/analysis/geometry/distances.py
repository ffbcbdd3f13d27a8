"""Distances between examples as the kernel sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from tangency.analysis.matrix import Kernel, KernelMatrix, kernel_matrix

__all__ = ["kernel_distances", "mean_over_outputs", "squared_distances"]


def kernel_distances(K: Kernel, normalized: bool = False) -> Tensor:
    """Distances |phi(x_i) - phi(x_j)| between examples in the feature space of the kernel.

    d_ij^2 = K_ii + K_jj - 2 K_ij; of a kernel (n, n, out, out) the mean over outputs. `normalized`
    brings every phi to norm 1 first: d_ij^2 = 2 - 2 cos, between 0 and 2 at a right angle.

    A distance below about sqrt(rounding) of the norms cannot be told from zero: it is a small
    difference of large numbers. Compute the kernel in float64 for near-duplicates.

    Args:
        K: (n, n) or (n, n, out, out).
        normalized: whether to divide by the norms; examples whose features are zero then have
            distance 0 from each other and sqrt(2) from all others.

    Returns:
        (n, n).

    Raises:
        InvalidInput: a bad kernel.
    """
    kernel = kernel_matrix(K, "K")
    return kernel.result(squared_distances(mean_over_outputs(kernel), normalized).sqrt())


def mean_over_outputs(kernel: KernelMatrix) -> Tensor:
    """(n, n) in float64: the kernel, or the mean of its diagonal blocks over outputs."""
    if kernel.outputs is None:
        return kernel.matrix
    n, out = kernel.examples, kernel.outputs
    blocks = kernel.matrix.reshape(n, out, n, out)
    return torch.diagonal(blocks, dim1=1, dim2=3).mean(dim=-1)


def squared_distances(matrix: Tensor, normalized: bool) -> Tensor:
    """(n, n) squared distances of a kernel matrix (n, n)."""
    own = matrix.diagonal().clamp(min=0)
    if normalized:
        norms = own.sqrt()
        seen = norms > 0
        safe = torch.where(seen, norms, 1.0)
        matrix = matrix / safe[:, None] / safe
        own = seen.double()
    squares = (own[:, None] + own - 2 * matrix).clamp(min=0)
    if normalized:
        one_is_zero = seen[:, None] != seen
        squares = torch.where(one_is_zero, 2.0, squares)
    squares.fill_diagonal_(0)
    return squares
