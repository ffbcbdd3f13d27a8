"""Which examples make a kernel matrix ill-conditioned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.analysis.matrix import KernelMatrix

__all__ = ["Conditioning", "conditioning"]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What each example contributes to the inverse of the kernel matrix.

    Attributes:
        novelty: (n,) share of the squared norm of phi(x_i) that lies outside the span of all
            other examples' features, 1 / (K_ii (K^-1)_ii), between 0 and 1: the part of the
            example that the others say nothing about. 0 for a duplicate. Mean over outputs.
        participation: (n,) share of the example in tr K^-1: eigenmodes weighted by one over their
            eigenvalue. Sums to 1; large where an example takes part in the smallest modes.
    """

    novelty: Tensor
    participation: Tensor


def conditioning(kernel: KernelMatrix) -> Conditioning:
    """Novelty and participation, in float64; eigenvalues count as at least the tolerance."""
    system, out = kernel.eigensystem, kernel.outputs or 1
    floor = max(system.tolerance, torch.finfo(torch.float64).tiny)
    # Scaled, so that a kernel of tiny entries has a finite inverse.
    weights = floor / system.values.clamp(min=floor)
    rows = system.vectors.reshape(kernel.examples, out, -1)
    blocks = (rows * weights) @ rows.mT  # floor * K^-1 on the diagonal, (n, out, out)
    shares = torch.diagonal(blocks, dim1=1, dim2=2).sum(dim=1)
    own = kernel.matrix.diagonal().reshape(kernel.examples, out).mean(dim=1)
    # The inverse of a block is the covariance of the example, given all others.
    alone = torch.diagonal(torch.linalg.inv(blocks), dim1=1, dim2=2).mean(dim=1) * floor
    novelty = torch.where(own > 0, alone / torch.where(own > 0, own, 1.0), 0.0)
    return Conditioning(
        novelty=novelty.clamp(0, 1),
        participation=shares / shares.sum(),
    )
