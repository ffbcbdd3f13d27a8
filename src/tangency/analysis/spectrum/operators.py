"""Kernels that are known by their products with vectors only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from tangency.analysis import matrix
from tangency.analysis.matrix import ArrayLike, Kernel, KernelMatrix, kernel_matrix
from tangency.errors import InvalidInput

__all__ = ["KernelOrOperator", "Products", "column_targets", "products"]

_Array: TypeAlias = npt.NDArray[Any]


@runtime_checkable
class ToScipy(Protocol):
    """An operator that becomes one of SciPy's (`tangency`'s `KernelOperator`, curvlinops)."""

    def to_scipy(self) -> LinearOperator: ...


@runtime_checkable
class _LazyMatrix(Protocol):
    """An operator of the package `linear_operator`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def matmul(self, other: Tensor) -> Tensor: ...

    def to_dense(self) -> Tensor: ...


@runtime_checkable
class _Rows(Protocol):
    """A matrix whose rows can be read a few at a time: an array on disk, a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice) -> Any: ...


KernelOrOperator: TypeAlias = Kernel | LinearOperator | ToScipy
"""A kernel matrix, or an operator: SciPy's `LinearOperator`, whatever has `.to_scipy()`, or a
`linear_operator`."""


@dataclass(frozen=True, eq=False)
class Products:
    """Products of a symmetric kernel matrix with vectors.

    Attributes:
        multiply: (N, r) to (N, r), in float64.
        size: N.
        matrix: the checked matrix where there is one.
        dtype, device: of results.
        rounding: relative rounding error of a product.
    """

    multiply: Callable[[_Array], _Array]
    size: int
    matrix: KernelMatrix | None
    dtype: torch.dtype
    device: torch.device
    rounding: float

    def scipy(self) -> LinearOperator:
        """As SciPy's operator in float64, for its solvers."""

        def one(v: _Array) -> _Array:
            return self.multiply(v.reshape(-1, 1)).reshape(-1)

        return LinearOperator(
            shape=(self.size, self.size), matvec=one, matmat=self.multiply, dtype=np.float64
        )

    def result(self, values: _Array) -> Tensor:
        """Values in the dtype and on the device of results."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.dtype).to(self.device)


def products(kernel: KernelOrOperator, name: str = "K") -> Products:
    """The products of a matrix (checked as by `kernel_matrix`) or an operator.

    Of an operator is checked, by products with random vectors, that it is symmetric and finite. A
    stored matrix too large for memory is one: each product reads it once, some rows at a time.

    Raises:
        InvalidInput: a bad matrix, or an operator that is not square, not symmetric, not real, or
            gives NaN or infinity.
    """
    if isinstance(kernel, KernelMatrix):
        return _of_matrix(kernel)
    if isinstance(kernel, LinearOperator):
        return _checked(_of_scipy(kernel, name), name)
    if isinstance(kernel, Tensor | np.ndarray):
        return _of_array(kernel, name)
    if isinstance(kernel, _LazyMatrix):
        return _checked(_of_lazy(kernel, name), name)
    if isinstance(kernel, ToScipy):
        found = _checked(_of_scipy(kernel.to_scipy(), name), name)
        device = getattr(kernel, "device", None)
        return found if device is None else Products(**{**vars(found), "device": device})
    return _of_array(kernel, name)


def column_targets(values: ArrayLike, size: int) -> tuple[Tensor, int]:
    """Targets (n,) or (n, out) as columns that an operator with `size` rows multiplies, and n.

    Rows of the operator are examples, or else pairs (example, output).

    Raises:
        InvalidInput: integers, NaN, or shapes that do not fit.
    """
    tensor = torch.from_numpy(np.array(values)) if isinstance(values, np.ndarray) else values
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise InvalidInput(
            "targets must be a tensor or array of real numbers: one-hot encode class labels."
        )
    if tensor.dim() not in (1, 2) or size not in (len(tensor), tensor.numel()):
        raise InvalidInput(
            f"targets has shape {tuple(tensor.shape)}, but the operator has {size} rows: they are "
            "examples, so that targets are (n,) or (n, out), or pairs (example, output), n * out."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidInput("targets holds NaN or infinite entries.")
    flat = tensor.detach().cpu().double().reshape(size, -1)
    return flat, len(tensor)


def _of_array(array: Kernel, name: str) -> Products:
    """A matrix as a whole, or by its rows if it does not fit into memory."""
    if isinstance(array, _Rows) and len(array.shape) == 2 and not _fits(array.shape[0]):
        return _checked(_of_rows(array, name), name)
    return _of_matrix(kernel_matrix(array, name))


def _of_matrix(kernel: KernelMatrix) -> Products:
    array = kernel.matrix.cpu().numpy()
    return Products(
        multiply=lambda v: array @ v,
        size=len(array),
        matrix=kernel,
        dtype=kernel.dtype,
        device=kernel.device,
        rounding=kernel.rounding,
    )


def _of_scipy(operator: LinearOperator, name: str) -> Products:
    size = _square(operator.shape, name)
    given = np.dtype(operator.dtype)
    if given.kind != "f":
        raise InvalidInput(f"{name} is an operator of dtype {given}, but must be real.")
    single = given.itemsize < 8

    def multiply(v: _Array) -> _Array:
        return np.asarray(operator.matmat(v.astype(given))).astype(np.float64)

    return Products(
        multiply=multiply,
        size=size,
        matrix=None,
        dtype=torch.float32 if single else torch.float64,
        device=torch.device("cpu"),
        rounding=float(np.finfo(given).eps),
    )


def _of_lazy(operator: _LazyMatrix, name: str) -> Products:
    size = _square(tuple(operator.shape), name)

    def multiply(v: _Array) -> _Array:
        given = torch.from_numpy(np.ascontiguousarray(v)).to(operator.device, operator.dtype)
        product = operator.matmul(given).detach().cpu().double()
        return product.numpy()

    return Products(
        multiply=multiply,
        size=size,
        matrix=None,
        dtype=torch.promote_types(operator.dtype, torch.float32),
        device=operator.device,
        rounding=torch.finfo(operator.dtype).eps,
    )


BLOCK = 2**27
"""Bytes of the rows that are read at a time."""


def _fits(size: int) -> bool:
    """Whether a matrix can be checked and kept in float64."""
    there = matrix._physical_memory()
    return there is None or 8 * matrix.MATRICES * size**2 <= there


def _of_rows(stored: _Rows, name: str) -> Products:
    size = _square(tuple(stored.shape), name)
    height = max(1, BLOCK // (8 * size))
    dtype = getattr(_rows(stored, slice(0, 1)), "dtype", None)
    if dtype is None or np.dtype(dtype).kind != "f":
        raise InvalidInput(f"{name} has dtype {dtype}, but must be real.")

    def multiply(v: _Array) -> _Array:
        slices = (slice(i, min(i + height, size)) for i in range(0, size, height))
        return np.concatenate([_rows(stored, part).astype(np.float64) @ v for part in slices])

    return Products(
        multiply=multiply,
        size=size,
        matrix=None,
        dtype=torch.float64 if np.dtype(dtype).itemsize == 8 else torch.float32,
        device=torch.device("cpu"),
        rounding=float(np.finfo(dtype).eps),
    )


def _rows(stored: _Rows, part: slice) -> _Array:
    rows = stored[part]
    return np.asarray(rows.detach().cpu() if isinstance(rows, Tensor) else rows)


def _square(shape: tuple[int, ...], name: str) -> int:
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise InvalidInput(f"{name} is an operator of shape {tuple(shape)}, but must be square.")
    return int(shape[0])


def _checked(found: Products, name: str) -> Products:
    """u . (K v) = v . (K u) up to rounding, on random vectors."""
    vectors = np.random.default_rng(0).normal(size=(found.size, 2))
    images = found.multiply(vectors)
    if not np.isfinite(images).all():
        raise InvalidInput(f"{name} gives NaN or infinity in a product with a random vector.")
    across = vectors.T @ images
    scale = np.linalg.norm(vectors, axis=0) @ np.linalg.norm(images, axis=0)
    if abs(across[0, 1] - across[1, 0]) > max(1e-5, 100 * found.rounding) * scale:
        raise InvalidInput(
            f"{name} is not symmetric: u . ({name} v) = {across[0, 1]:.6g}, but v . ({name} u) = "
            f"{across[1, 0]:.6g}. An operator between two sets of examples has no spectrum."
        )
    return found
