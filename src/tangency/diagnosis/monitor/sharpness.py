"""The largest eigenvalue of the Hessian of the loss, by curvlinops and Lanczos."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tangency.diagnosis.monitor.probe import Loss, Probe
from tangency.empirical.function import outputs, trainable
from tangency.errors import MissingDependency, UnsupportedOperation
from tangency.examples import Examples

__all__ = ["Sharpness"]

TOLERANCE = 1e-3
"""Of the residual of Lanczos, relative; the error of the eigenvalue is smaller, of second order."""

ASYMMETRY = 1e-3
"""|u . H v - v . H u| over |u| |H v| that passes as rounding."""

SMALL = 3
"""Parameters below which Lanczos has no room."""


class Sharpness:
    """The largest (most positive) eigenvalue of the Hessian, each time from the last eigenvector.

    The Hessian is that of the loss on the probe in the trainable parameters of `network`, by
    products with vectors (`curvlinops.HessianLinearOperator`), never written down. A network with
    an operation that has no derivative in forward mode, which curvlinops needs, takes products by
    autograd's reverse mode, twice. Not every operation of PyTorch has a right second derivative
    there (in 2.13 that of `weight_norm` is no symmetric matrix), so these are checked.
    """

    def __init__(self, network: nn.Module, probe: Probe, seed: int) -> None:
        """Raises MissingDependency without curvlinops."""
        try:
            from curvlinops import HessianLinearOperator
        except ImportError as error:
            raise MissingDependency.for_extra("curvlinops-for-pytorch", "curvature") from error
        self._hessian = HessianLinearOperator
        self._bound = _OnData(network, probe.x)
        self._parameters = list(trainable(dict(self._bound.named_parameters())).values())
        self._loss, self._y = _Loss(probe.loss), probe.y
        size = sum(p.numel() for p in self._parameters)
        self._vector: npt.NDArray[Any] = np.random.default_rng(seed).standard_normal(size)
        self._forward_mode = True

    def __call__(self) -> float:
        """At the present parameters; NaN where Lanczos does not converge.

        Raises:
            UnsupportedOperation: second derivatives that are missing or plainly wrong.
        """
        # Fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            if not self._forward_mode:
                return self._largest(self._by_autograd())
            try:
                return self._largest(self._by_curvlinops())
            except (NotImplementedError, RuntimeError):
                operator = self._by_autograd()
                self._refuse_asymmetric(operator)
                self._forward_mode = False
                return self._largest(operator)

    def _refuse_asymmetric(self, operator: Any) -> None:
        u, v = np.random.default_rng(0).standard_normal((2, len(self._vector)))
        try:
            left, right = operator @ u.astype(self._dtype), operator @ v.astype(self._dtype)
        except (NotImplementedError, RuntimeError) as error:
            raise UnsupportedOperation(
                f"{_ADVICE} An operation has no second derivative: {error}"
            ) from error
        gap = abs(float(u @ right) - float(v @ left))
        if gap > ASYMMETRY * float(np.linalg.norm(u) * np.linalg.norm(right)):
            raise UnsupportedOperation(
                f"{_ADVICE} PyTorch's second derivatives of its operations are no symmetric matrix."
            )

    def _largest(self, operator: Any) -> float:
        size = len(self._vector)
        if size < SMALL:
            whole = operator @ np.eye(size, dtype=operator.dtype)
            return float(np.linalg.eigvalsh((whole + whole.T) / 2)[-1])
        start = self._vector.astype(operator.dtype)
        try:
            values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=TOLERANCE)
        except ArpackNoConvergence:
            return math.nan
        self._vector = vectors[:, 0]
        return float(values[0])

    @property
    def _dtype(self) -> np.dtype[Any]:
        return torch.empty(0, dtype=self._parameters[0].dtype).numpy().dtype

    def _by_curvlinops(self) -> Any:
        rows = torch.arange(len(self._y), device=self._y.device)
        return self._hessian(
            self._bound,
            self._loss,
            self._parameters,
            [(rows, self._y)],
            check_deterministic=False,
            num_data=len(self._y),
        ).to_scipy(self._dtype)

    def _by_autograd(self) -> Any:
        parameters = self._parameters
        loss = self._loss(self._bound(torch.empty(0)), self._y)
        gradients = torch.autograd.grad(
            loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True
        )
        flat = torch.cat([g.flatten() for g in gradients])

        def product(v: npt.NDArray[Any]) -> npt.NDArray[Any]:
            given = torch.from_numpy(np.ascontiguousarray(v.ravel())).to(flat)
            pulled = torch.autograd.grad(
                flat @ given,
                parameters,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return np.asarray(torch.cat([p.flatten() for p in pulled]).cpu().numpy())

        size = len(self._vector)
        return LinearOperator((size, size), matvec=product, dtype=self._dtype)


_ADVICE = "the Hessian of this network cannot be had: pass curvature=False."


class _OnData(nn.Module):
    """A module bound to its data: curvlinops gives it the numbers of the rows."""

    def __init__(self, network: nn.Module, x: Examples) -> None:
        super().__init__()
        self.network = network
        self._x = x

    def forward(self, rows: Tensor) -> Tensor:
        # Buffers that the network updates are copies: torch.func allows no other.
        return outputs(self.network, self._x)


class _Loss(nn.Module):
    """A loss function as curvlinops takes it: one batch holds all examples."""

    reduction = "sum"

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self._function = loss

    def forward(self, found: Tensor, y: Tensor) -> Tensor:
        return self._function(found, y)
