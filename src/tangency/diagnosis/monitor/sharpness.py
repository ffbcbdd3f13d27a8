"""The largest eigenvalue of the Hessian of the loss, by curvlinops and Lanczos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tangency import examples
from tangency.empirical.function import trainable
from tangency.errors import MissingDependency
from tangency.examples import Examples

__all__ = ["Sharpness"]

TOLERANCE = 1e-3
"""Of the residual of Lanczos, relative; the error of the eigenvalue is smaller, of second order."""


class Sharpness:
    """The largest (most positive) eigenvalue of the Hessian, each time from the last eigenvector.

    The Hessian is that of `loss(outputs, y)` in the trainable parameters of `network`, by products
    with vectors (`curvlinops.HessianLinearOperator`), never written down.
    """

    def __init__(
        self,
        network: nn.Module,
        x: Examples,
        y: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        seed: int,
    ) -> None:
        """Raises MissingDependency without curvlinops."""
        try:
            from curvlinops import HessianLinearOperator
        except ImportError as error:
            raise MissingDependency.for_extra("curvlinops-for-pytorch", "curvature") from error
        self._operator = HessianLinearOperator
        self._bound = _OnData(network, x)
        self._parameters = list(trainable(dict(self._bound.named_parameters())).values())
        self._loss = _Loss(loss)
        self._y = y
        size = sum(p.numel() for p in self._parameters)
        self._vector: npt.NDArray[Any] = np.random.default_rng(seed).standard_normal(size)

    def __call__(self) -> float:
        """At the present parameters; NaN where Lanczos does not converge."""
        from scipy.sparse.linalg import ArpackNoConvergence, eigsh

        rows = torch.arange(len(self._y), device=self._y.device)
        # Fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            operator = self._operator(
                self._bound,
                self._loss,
                self._parameters,
                [(rows, self._y)],
                check_deterministic=False,
                num_data=len(self._y),
            )
            if len(self._vector) < 3:  # too small for Lanczos
                whole = (operator @ torch.eye(len(self._vector), dtype=operator.dtype)).double()
                return float(torch.linalg.eigvalsh((whole + whole.mT) / 2)[-1])
            dtype = torch.empty(0, dtype=operator.dtype).numpy().dtype
            try:
                values, vectors = eigsh(
                    operator.to_scipy(dtype),
                    k=1,
                    which="LA",
                    v0=self._vector.astype(dtype),
                    tol=TOLERANCE,
                )
            except ArpackNoConvergence:
                return float("nan")
        self._vector = vectors[:, 0]
        return float(values[0])


class _OnData(nn.Module):
    """A module bound to its data: curvlinops gives it the numbers of the rows."""

    def __init__(self, network: nn.Module, x: Examples) -> None:
        super().__init__()
        self.network = network
        self._args, self._kwargs = examples.arguments(x)

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.network(*self._args, **self._kwargs)
        return outputs


class _Loss(nn.Module):
    """A loss function as curvlinops takes it: one batch holds all examples."""

    reduction = "sum"

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._function = loss

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self._function(outputs, y)
