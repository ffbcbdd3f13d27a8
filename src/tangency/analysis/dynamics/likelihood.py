"""Log marginal likelihood of a Gaussian process, differentiable in the kernel.

log p(y) = -1/2 y^T (K + noise)^-1 y - 1/2 log det(K + noise) - n/2 log(2 pi), summed over outputs
(Rasmussen & Williams 2006, eq. 2.30).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tangency.analysis.matrix import ArrayLike, Kernel, kernel_matrix, targets
from tangency.errors import InvalidInput, SingularKernel

__all__ = ["log_marginal_likelihood"]


def log_marginal_likelihood(K: Kernel, y: ArrayLike, noise: float | Tensor = 0.0) -> Tensor:
    """Log probability density of the targets under a Gaussian process with kernel `K`.

    Gradients flow into `K` and `noise`, and so, with `InfiniteKernel`, into the moments of its
    `Init`: maximise it to fit them. The factorisation (Cholesky) runs in float64.

    Args:
        K: (n, n), the same for all (independent) outputs, or (n, n, out, out).
        y: (n,) or (n, out), real.
        noise: variance of the observations' noise, positive or zero; a scalar tensor may require
            gradients.

    Returns:
        (), in the dtype of `K`, at least float32.

    Raises:
        InvalidInput: a kernel that is not square, not symmetric or holds NaN, targets that do
            not fit, or a noise that is not one number, at least 0.
        SingularKernel: K + noise is not positive definite.
    """
    checked = kernel_matrix(K, "K")
    labels = targets(y, checked, "y")
    given = torch.as_tensor(noise, dtype=torch.float64, device=checked.matrix.device)
    if given.numel() != 1 or not bool(torch.isfinite(given)) or float(given.detach()) < 0:
        raise InvalidInput(f"noise is {noise}, but must be one number, at least 0.")
    # A checked matrix lets no gradients through.
    device = checked.matrix.device
    matrix = _flat(K.to(device).double()) if isinstance(K, Tensor) else checked.matrix
    size = len(matrix)
    eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex((matrix + matrix.mT) / 2 + given.reshape(()) * eye)
    if int(failed):
        raise SingularKernel(
            f"K + noise is not positive definite (noise {float(given.detach()):.3g}, mean diagonal "
            f"of K {float(checked.matrix.diagonal().mean()):.3g}): pass a larger noise, or compute "
            "the kernel in float64."
        )
    columns = checked.flatten(labels.values)
    white = torch.linalg.solve_triangular(factor, columns, upper=False)
    count = columns.shape[1]
    log_determinant = 2 * factor.diagonal().log().sum()
    total = white.square().sum() + count * (log_determinant + size * math.log(2 * math.pi))
    return checked.result(-total / 2)


def _flat(kernel: Tensor) -> Tensor:
    """(n, n, out, out) as a matrix with rows (example, output); gradients flow."""
    if kernel.dim() == 2:
        return kernel
    n, out = kernel.shape[0], kernel.shape[2]
    return kernel.permute(0, 2, 1, 3).reshape(n * out, n * out)
