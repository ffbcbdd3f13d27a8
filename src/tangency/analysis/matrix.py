"""Kernel matrices and targets as analyses take them: checked, flattened, factorised once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tangency.errors import InvalidInput

__all__ = [
    "ArrayLike",
    "Eigensystem",
    "Kernel",
    "KernelMatrix",
    "Lazy",
    "Targets",
    "cross_matrix",
    "eigensystem",
    "kernel_matrix",
    "targets",
]

ArrayLike: TypeAlias = Tensor | npt.NDArray[Any]
"""A torch tensor or a NumPy array of real numbers."""


@runtime_checkable
class Lazy(Protocol):
    """A matrix that is stored or computed on demand, and read whole when it is needed.

    Zarr and Dask arrays, h5py data sets, anything that NumPy can read.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, n) or (n, n, out, out)."""
        ...

    def __array__(self, dtype: Any = None) -> npt.NDArray[Any]: ...


@runtime_checkable
class _Dense(Protocol):
    """A linear operator that can be written down (linear_operator, GPyTorch)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def to_dense(self) -> Tensor: ...


ASYMMETRY_LIMIT = 1e-5
"""Largest |K - K^T| over the largest |K| that passes as rounding (single precision, many sums)."""


@dataclass(frozen=True, eq=False, repr=False)
class KernelMatrix:
    """A symmetric kernel matrix over n examples, flattened to two dimensions.

    Made by `tangency.kernel_matrix`. Every analysis takes one in place of a tensor or array; those
    that are given the same one share its eigendecomposition.

    Attributes:
        matrix: (N, N) float64, symmetric; N = n, or n * out with row index (example, output).
        examples: n.
        outputs: out of a kernel given as (n, n, out, out); None for one given as (n, n), which
            acts on every output alike.
        dtype: of results: that of the kernel given, at least single precision.
        device: of results: that of the kernel given.
        rounding: relative rounding error (machine epsilon) of the entries given.
    """

    matrix: Tensor
    examples: int
    outputs: int | None
    dtype: torch.dtype
    device: torch.device
    rounding: float

    def flatten(self, values: Tensor) -> Tensor:
        """Values (m, out) as columns that the matrix multiplies: (m, out) or (m * out, 1)."""
        return values if self.outputs is None else values.reshape(-1, 1)

    def unflatten(self, columns: Tensor) -> Tensor:
        """Undo `flatten` in the last two dimensions of `columns`."""
        if self.outputs is None:
            return columns
        return columns.reshape(*columns.shape[:-2], -1, self.outputs)

    def result(self, values: Tensor) -> Tensor:
        """`values` in the dtype and on the device of the kernel given."""
        return values.to(self.dtype).to(self.device)

    @cached_property
    def eigensystem(self) -> Eigensystem:
        """Eigendecomposition, made at first need: analyses that share the object share it.

        Raises:
            InvalidInput: it would need more memory than the machine has.
        """
        return eigensystem(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, n) or (n, n, out, out): that of the kernel given."""
        n, out = self.examples, self.outputs
        return (n, n) if out is None else (n, n, out, out)

    def __repr__(self) -> str:
        known = "factorised" if "eigensystem" in self.__dict__ else "not factorised yet"
        return f"KernelMatrix({self.shape}, {self.dtype}, {known})"


@dataclass(frozen=True, eq=False)
class Targets:
    """Real targets: `values` (n, out) in float64; `is_vector` if they were given as (n,)."""

    values: Tensor
    is_vector: bool


@dataclass(frozen=True, eq=False)
class Eigensystem:
    """Eigenvalues and eigenvectors of a kernel matrix, in float64.

    Attributes:
        values: (N,), descending, as computed: tiny negative ones are kept.
        vectors: (N, N), eigenvectors in columns, orthonormal.
        tolerance: an eigenvalue of at most this size cannot be told from zero, given the
            rounding of the entries and of the factorisation.
    """

    values: Tensor
    vectors: Tensor
    tolerance: float

    @property
    def null(self) -> Tensor:
        """(N,) True for the modes whose eigenvalue cannot be told from zero."""
        return self.values.abs() <= self.tolerance

    def null_power_limit(self, total: float) -> float:
        """Power in a null mode below which a target of power `total` has none there.

        A function of the least norm that such a target can have, total / lambda_max, has power
        of at most lambda * total / lambda_max in a mode of eigenvalue lambda; here lambda is the
        tolerance.
        """
        largest = float(self.values[0])
        return total * self.tolerance / largest if largest > 0 else 0.0


Kernel: TypeAlias = ArrayLike | Lazy | KernelMatrix
"""What analyses take for a kernel: a tensor, an array, a stored or lazy matrix, or one that has
been checked before, whose eigendecomposition is then shared."""


def kernel_matrix(kernel: Kernel, name: str = "K") -> KernelMatrix:
    """Check and flatten the kernel matrix `kernel`, (n, n) or (n, n, out, out).

    Pass the result to several analyses, and it is factorised once for all of them. What is stored
    or lazy (a Zarr or Dask array, a `linear_operator`) is read whole. Gradients do not flow into
    the result. `name` is what the caller calls the matrix.

    Raises:
        InvalidInput: not a tensor or array of real floating-point numbers, empty, not square,
            NaN or infinite entries, not symmetric, or too large for the machine's memory.
    """
    if isinstance(kernel, KernelMatrix):
        return kernel
    tensor = _real_tensor(_read(kernel, name), name)
    shape = tuple(tensor.shape)
    square = len(shape) in (2, 4) and shape[0] == shape[1] and shape[2:3] == shape[3:4]
    if not square:
        hint = ""
        if len(shape) == 3:
            hint = f" Of a kernel per output, pass one output at a time: {name}[:, :, a]."
        raise InvalidInput(
            f"{name} has shape {shape}, but a kernel matrix over n examples is (n, n) or "
            f"(n, n, out, out).{hint}"
        )
    _check_entries(tensor, name)
    matrix = _flat(tensor)
    _check_symmetric(matrix, name, torch.finfo(tensor.dtype).eps)
    return KernelMatrix(
        matrix=(matrix + matrix.mT) / 2,
        examples=shape[0],
        outputs=shape[2] if len(shape) == 4 else None,
        dtype=torch.promote_types(tensor.dtype, torch.float32),
        device=tensor.device,
        rounding=torch.finfo(tensor.dtype).eps,
    )


def cross_matrix(
    kernel: ArrayLike | Lazy, train: KernelMatrix, name: str = "K_test_train"
) -> Tensor:
    """Check and flatten a kernel between m test and the n training examples of `train`.

    Returns:
        (m, n) or (m * out, n * out) in float64, as `train` is (n, n) or (n, n, out, out).

    Raises:
        InvalidInput: not a tensor or array of real floating-point numbers, empty, NaN or
            infinite entries, or a shape that does not fit `train`.
    """
    tensor = _real_tensor(_read(kernel, name), name)
    n, out = train.examples, train.outputs
    tail = (n,) if out is None else (n, out, out)
    if tensor.dim() == 0 or tuple(tensor.shape[1:]) != tail:
        wanted = ", ".join(str(size) for size in tail)
        raise InvalidInput(
            f"{name} has shape {tuple(tensor.shape)}, but beside the training kernel it must be "
            f"(m, {wanted}): rows are test examples, columns training examples."
        )
    _check_entries(tensor, name)
    return _flat(tensor).to(train.matrix.device)


def targets(
    values: ArrayLike, kernel: KernelMatrix, name: str = "targets", count: int | None = None
) -> Targets:
    """Check real targets (or outputs) of shape (n,) or (n, out) against `kernel`.

    `count` replaces n where the values belong to other examples than those of the kernel.

    Raises:
        InvalidInput: integers or booleans, NaN or infinite values, or a shape that does not fit.
    """
    tensor = _real_tensor(
        values,
        name,
        "targets of the squared loss are real: one-hot encode class labels (then subtract the "
        "mean, if you like) and convert them, e.g. with .to(torch.get_default_dtype())",
    )
    n = kernel.examples if count is None else count
    if tensor.dim() not in (1, 2) or tensor.shape[0] != n or tensor.numel() == 0:
        raise InvalidInput(
            f"{name} has shape {tuple(tensor.shape)}, but for {n} examples it must be ({n},) "
            f"or ({n}, out)."
        )
    out = tensor.shape[1] if tensor.dim() == 2 else 1
    if kernel.outputs is not None and out != kernel.outputs:
        raise InvalidInput(
            f"{name} has {out} outputs per example (shape {tuple(tensor.shape)}), but the kernel "
            f"has {kernel.outputs} (its last dimension)."
        )
    _check_entries(tensor, name)
    flat = tensor.to(kernel.matrix.device).double().reshape(n, out)
    return Targets(values=flat, is_vector=tensor.dim() == 1)


def eigensystem(kernel: KernelMatrix) -> Eigensystem:
    """Eigendecomposition in float64, eigenvalues descending.

    The tolerance adds the backward error of the factorisation, N eps64 |lambda|_max, and the
    error of entries computed with a few roundings each, 10 eps(dtype) |K|_F (Weyl: eigenvalues
    move by no more than the norm of the error).

    Raises:
        InvalidInput: the factorisation would need more memory than the machine has.
    """
    _check_memory(len(kernel.matrix), FACTORISATION, "its eigendecomposition")
    ascending, vectors = torch.linalg.eigh(kernel.matrix)
    values = ascending.flip(0)
    largest = float(values.abs().max())
    # |K|_F from scaled eigenvalues, so that squares cannot overflow.
    frobenius = largest * float((values / largest).norm()) if largest > 0 else 0.0
    factorisation = len(values) * torch.finfo(torch.float64).eps * largest
    return Eigensystem(values, vectors.flip(1), factorisation + 10 * kernel.rounding * frobenius)


MATRICES = 3
"""float64 matrices of size N x N alive while a kernel is checked and flattened."""

FACTORISATION = 5
"""The same while it is factorised: the matrix, its eigenvectors, and LAPACK's workspace."""


def _check_memory(size: int, copies: int, purpose: str) -> None:
    """Refuse what cannot fit into this machine, before the system kills the process."""
    needed = 8 * copies * size**2
    there = _physical_memory()
    if there is not None and needed > there:
        raise InvalidInput(
            f"the kernel matrix has {size} rows: {purpose} needs about {needed / 2**30:.3g} GiB, "
            f"and this machine has {there / 2**30:.3g} GiB. Take fewer examples, or ask for a part "
            "of the spectrum, which needs products with the matrix only: "
            "tangency.top_spectrum and tangency.spectral_density take operators."
        )


def _physical_memory() -> int | None:
    """Bytes of memory of this machine, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return None


def _read(kernel: ArrayLike | Lazy | _Dense, name: str) -> ArrayLike:
    """What is stored or lazy, as an array; a tensor or array as it is."""
    if isinstance(kernel, Tensor | np.ndarray):
        return kernel
    if not isinstance(kernel, _Dense | Lazy):
        raise InvalidInput(
            f"{name} is a {type(kernel).__name__}, but must be a torch tensor, a NumPy array, or "
            "a stored or lazy matrix that NumPy can read."
        )
    shape = tuple(kernel.shape)
    rows = [a * b for a, b in zip(shape[:2], shape[2:] or (1, 1), strict=False)]
    _check_memory(max(rows, default=0), MATRICES, "reading it whole")
    return kernel.to_dense() if isinstance(kernel, _Dense) else np.asarray(kernel)


def _real_tensor(values: ArrayLike, name: str, hint: str = "convert it, e.g. .double()") -> Tensor:
    if isinstance(values, np.ndarray):
        # torch has no byte-swapped, long double or object arrays; refuse those by their name.
        if values.dtype.kind not in "fiub" or values.dtype.itemsize > 8:
            raise InvalidInput(f"{name} has dtype {values.dtype}, but must be real: {hint}.")
        native = values.astype(values.dtype.newbyteorder("="), order="C", copy=True)
        values = torch.from_numpy(native)
    if not isinstance(values, Tensor):
        raise InvalidInput(
            f"{name} is a {type(values).__name__}, but must be a torch tensor or a NumPy array."
        )
    if not values.is_floating_point():
        raise InvalidInput(f"{name} has dtype {values.dtype}, but must be real: {hint}.")
    return values.detach()


def _check_entries(tensor: Tensor, name: str) -> None:
    if tensor.numel() == 0:
        raise InvalidInput(f"{name} is empty: its shape is {tuple(tensor.shape)}.")
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        first = tuple(bad.nonzero()[0].tolist())
        raise InvalidInput(
            f"{name} holds {int(bad.sum())} NaN or infinite entries, the first at index {first}."
        )


def _flat(tensor: Tensor) -> Tensor:
    """(m, n) or (m, n, out, out) as a matrix in float64, row index (example, output)."""
    if tensor.device.type == "mps":  # has no float64
        tensor = tensor.cpu()
    tensor = tensor.double()
    if tensor.dim() == 2:
        return tensor
    m, n, a, b = tensor.shape
    return tensor.permute(0, 2, 1, 3).reshape(m * a, n * b)


def _check_symmetric(matrix: Tensor, name: str, rounding: float) -> None:
    scale = float(matrix.abs().max())
    gap = float((matrix - matrix.mT).abs().max())
    if gap > max(ASYMMETRY_LIMIT, 10 * rounding) * scale:
        raise InvalidInput(
            f"{name} is not symmetric: |{name} - {name}^T| reaches {gap:.3g}, where the largest "
            f"entry is {scale:.3g}. A kernel between two sets of examples is no Gram matrix; if "
            f"this is rounding (TF32?), pass ({name} + {name}.mT) / 2."
        )
