"""The NTK as a linear operator: products with the kernel matrix, which is never written down."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from torch import Tensor

from tangency import examples, tiles
from tangency.empirical.function import undisturbed, user_module
from tangency.empirical.matrix_free.products import JacobianProducts
from tangency.errors import InvalidInput, MissingDependency
from tangency.examples import Examples

if TYPE_CHECKING:
    from linear_operator import LinearOperator

__all__ = ["KernelOperator"]


class KernelOperator:
    """The empirical NTK between `x1` and `x2` as an exact matrix-free linear operator.

    Made by `EmpiricalKernel.operator`. A product with a vector is K v = J1 (J2^T v): one vector
    in the space of parameters, by reverse mode over `x2`, and one product with the Jacobian, by
    forward mode over `x1` (Novak, Sohl-Dickstein and Schoenholz, 2022, section 3.2, "NTK-vector
    products"); the kernel matrix and the Jacobian never exist. Exact up to rounding, for every
    module that `EmpiricalKernel` takes. With `output="trace"`, the mean over outputs, it takes one
    such pair for each output.

    Rows and columns are laid out example by example: with `output="full"` row i * out + a stands
    for output a of example i, so that `y.reshape(-1)` of targets (n, out) fits. Then the matrix
    has shape (n1 * out, n2 * out), otherwise (n1, n2).

    The operator is that of the parameters, buffers and training mode that the module had when it
    was made; where they have changed since, a product is refused. The data are not copied. The
    module stays as it was.

    Attributes:
        shape: of the matrix.
        dtype: of the vectors it takes and gives: that of the outputs, float32 for half precision,
            in which the sums over examples are then taken.
        device: of the module's outputs.
    """

    def __init__(
        self,
        products: JacobianProducts,
        x1: Examples,
        x2: Examples | None,
        cotangents: Tensor,
        *,
        mean: bool,
        diagonal: Callable[[], Tensor],
    ) -> None:
        """`cotangents` (k, out) are the k outputs that count, each by itself or as a `mean`;
        `diagonal()` gives (n1,) or (n1, k, k). Without `x2` the operator is symmetric.
        """
        self._products = products
        self._x1 = x1
        self._x2 = x2
        self._outputs = cotangents
        self._mean = mean
        self._diagonal = diagonal
        self._state = [t.detach().clone() for t in _state(products)]
        self._modes = _modes(products)
        self._device = cotangents.device

    @property
    def shape(self) -> torch.Size:
        """Rows and columns."""
        each = 1 if self._mean else len(self._outputs)
        return torch.Size(examples.count(x) * each for x in (self._x1, self._columns))

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors it takes and gives."""
        return torch.promote_types(self._outputs.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """Of the vectors it takes and gives."""
        return self._device

    @property
    def T(self) -> KernelOperator:  # noqa: N802
        """The transpose: the operator between `x2` and `x1` (the same one without `x2`)."""
        if self._x2 is None:
            return self
        transposed = copy.copy(self)
        transposed._x1, transposed._x2 = self._x2, self._x1
        return transposed

    def __repr__(self) -> str:
        name = type(user_module(self._products.model)).__name__
        rows, columns = self.shape
        outputs = f"mean over {len(self._outputs)} outputs, " if self._mean else ""
        return (
            f"KernelOperator({name}, {rows} x {columns}, {outputs}"
            f"{str(self.dtype).removeprefix('torch.')}, J v by {self._products.path})"
        )

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """K v for `vectors` of shape (columns,) or (columns, r): (rows,) or (rows, r).

        Right-hand sides share the passes forward through the network.

        Raises:
            InvalidInput: `vectors` has another shape, dtype or device, or the module has changed
                since the operator was made.
        """
        self._check(vectors)
        self._check_unchanged()
        with undisturbed(self._products.model, self._x1):
            v = vectors.detach().reshape(len(vectors), -1)
            product = self._of_mean(v) if self._mean else self._of_outputs(v)
        return product.reshape(self.shape[0], *vectors.shape[1:])

    def diagonal(self) -> Tensor:
        """The diagonal of the symmetric matrix, (rows,), exactly, by `EmpiricalKernel.diagonal`.

        Raises:
            InvalidInput: the operator is one between two sets, or the module has changed.
        """
        if self._x2 is not None:
            raise InvalidInput(
                "the operator is one between two sets of examples, whose diagonal has no meaning: "
                "take operator(x).diagonal() of one set."
            )
        self._check_unchanged()
        blocks = self._diagonal().to(self.dtype)
        return blocks if blocks.dim() == 1 else blocks.diagonal(dim1=1, dim2=2).reshape(-1)

    def to_scipy(self) -> ScipyOperator:
        """As a `scipy.sparse.linalg.LinearOperator`, for `eigsh`, `cg`, `svds` and others."""

        def product(operator: KernelOperator) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
            def multiply(v: npt.NDArray[Any]) -> npt.NDArray[Any]:
                given = torch.from_numpy(np.ascontiguousarray(v))
                result = operator @ given.to(self.device, self.dtype)
                return np.asarray(result.cpu().numpy())

            return multiply

        forward, backward = product(self), product(self.T)
        return ScipyOperator(
            shape=tuple(self.shape),
            matvec=forward,
            rmatvec=backward,
            matmat=forward,
            rmatmat=backward,
            dtype=torch.empty(0, dtype=self.dtype).numpy().dtype,
        )

    def to_linear_operator(self) -> LinearOperator:
        """As an operator of the package `linear_operator`, on which GPyTorch's solvers work.

        Raises:
            MissingDependency: the package is not installed.
        """
        try:
            from tangency.empirical.matrix_free.lazy_matrix import NTKLinearOperator
        except ImportError as error:
            raise MissingDependency.for_extra("linear_operator", "linear-operator") from error
        return NTKLinearOperator.of(self)

    @property
    def _columns(self) -> Examples:
        return self._x1 if self._x2 is None else self._x2

    def _of_outputs(self, v: Tensor) -> Tensor:
        """K v for v (n2 * k, r), every output by itself."""
        k, n2 = len(self._outputs), examples.count(self._columns)
        weights = v.T.reshape(-1, n2, k).to(self._outputs.dtype) @ self._outputs
        products = [
            self._pulled_and_pushed(part) @ self._counted.mT for part in self._parts(weights)
        ]
        return torch.cat(products).flatten(1).T

    def _of_mean(self, v: Tensor) -> Tensor:
        """K v for v (n2, r): the mean over outputs of their own kernels' products."""
        k, r = len(self._outputs), v.shape[1]
        total = v.new_zeros(r, examples.count(self._x1))
        # Pairs of a right-hand side and an output, the outputs innermost.
        pairs = torch.arange(r * k, device=v.device)
        for part in self._parts(pairs):
            of_side, output = part // k, part % k
            rows = v.T[of_side].to(self._outputs.dtype)
            product = self._pulled_and_pushed(rows[..., None] * self._outputs[output][:, None])
            own = torch.einsum("mno,mo->mn", product, self._counted[output])
            total.index_add_(0, of_side, own)
        return total.T / k

    @property
    def _counted(self) -> Tensor:
        return self._outputs.to(self.dtype)

    def _parts(self, items: Tensor) -> Iterator[Tensor]:
        """As many at a time as the memory budget allows."""
        parts = items.split(self._products.vectors_at_once)
        with tiles.progress("empirical kernel, product", len(parts)) as advance:
            for part in parts:
                yield part
                advance()

    def _pulled_and_pushed(self, cotangents: Tensor) -> Tensor:
        """J1 (J2^T u) for m vectors u, (m, n2, out): (m, n1, out)."""
        vectors = self._products.transposed(self._columns, cotangents)
        return self._products.forward(self._x1, vectors)

    def _check_unchanged(self) -> None:
        same = self._modes == _modes(self._products)
        if not (same and all(map(torch.equal, self._state, _state(self._products)))):
            raise InvalidInput(
                f"{'parameters or buffers' if same else 'training modes'} of the module have "
                "changed since the operator was made, and it would now be that of another network: "
                "make a new one with kernel.operator(...)."
            )

    def _check(self, vectors: Tensor) -> None:
        if not isinstance(vectors, Tensor):
            raise InvalidInput(
                f"@ takes a torch.Tensor, not {type(vectors).__name__}: use torch.from_numpy, or "
                "operator.to_scipy() for NumPy arrays."
            )
        if vectors.dim() not in (1, 2) or len(vectors) != self.shape[1]:
            raise InvalidInput(
                f"the operator is {self.shape[0]} x {self.shape[1]}, but the right-hand side has "
                f"shape {tuple(vectors.shape)}: give ({self.shape[1]},) or ({self.shape[1]}, r)."
            )
        if vectors.dtype != self.dtype or vectors.device != self.device:
            raise InvalidInput(
                f"the operator is {self.dtype} on {self.device}, but the right-hand side "
                f"{vectors.dtype} on {vectors.device}: convert it with v.to(operator.device, "
                "operator.dtype)."
            )


def _state(products: JacobianProducts) -> list[Tensor]:
    """All that the module's outputs depend on besides the data."""
    return [*products.model.parameters(), *products.model.buffers()]


def _modes(products: JacobianProducts) -> list[bool]:
    return [module.training for module in products.model.modules()]
