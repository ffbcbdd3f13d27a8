"""The NTK as an operator of the package `linear_operator`, on which GPyTorch is built."""

from __future__ import annotations

import torch
from linear_operator import LinearOperator
from torch import Tensor

from tangency.empirical.matrix_free.operator import KernelOperator

__all__ = ["NTKLinearOperator"]


class NTKLinearOperator(LinearOperator):  # type: ignore[misc]
    """A `KernelOperator` for conjugate gradients, Lanczos and the other methods of the package.

    It carries no gradient. Methods that need the matrix (a Cholesky decomposition, for sizes up to
    `linear_operator.settings.max_cholesky_size`) make it by products with the identity.

    Args:
        marker: an empty tensor with the dtype and on the device of the operator, by which the
            package knows them.
        operator: the kernel.
    """

    def __init__(self, marker: Tensor, *, operator: KernelOperator) -> None:
        super().__init__(marker, operator=operator)
        self.operator = operator

    @classmethod
    def of(cls, operator: KernelOperator) -> NTKLinearOperator:
        """The view of `operator`."""
        marker = torch.empty(0, dtype=operator.dtype, device=operator.device)
        return cls(marker, operator=operator)

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() <= 2:
            return self.operator @ rhs
        columns = rhs.movedim(-2, 0)
        product = self.operator @ columns.flatten(1)
        result: Tensor = product.unflatten(1, columns.shape[1:]).movedim(0, -2)
        return result

    def _size(self) -> torch.Size:
        return self.operator.shape

    def _transpose_nonbatch(self) -> NTKLinearOperator:
        return self.of(self.operator.T)

    def _diagonal(self) -> Tensor:
        return self.operator.diagonal()
