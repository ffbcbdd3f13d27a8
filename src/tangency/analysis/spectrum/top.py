"""The largest eigenvalues of a kernel matrix or operator, by Lanczos iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from torch import Tensor

from tangency import drawing
from tangency.analysis.matrix import ArrayLike
from tangency.analysis.matrix import targets as check_targets
from tangency.analysis.spectrum import learning
from tangency.analysis.spectrum.operators import (
    KernelOrOperator,
    Products,
    column_targets,
    products,
)
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["TopSpectrum", "top_spectrum"]

_Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class TopSpectrum:
    """The k largest eigenvalues of a kernel with N rows over n examples.

    Attributes:
        eigenvalues: (k,), descending.
        modes: (N, k), eigenvectors in columns, orthonormal.
        residuals: (k,) |K v - lambda v|: each eigenvalue is within this distance of one of K's.
        converged: whether every residual is as small as was asked for, or as rounding allows.
            If not, fewer than k pairs may be here, and a larger eigenvalue may be missing.
        size: N.
        examples: n.
        power: (k,) squared projection of the targets on each mode, summed over outputs; None
            without targets.
        rest: power of the targets in all other modes; None without targets.
    """

    eigenvalues: Tensor
    modes: Tensor
    residuals: Tensor
    converged: bool
    size: int
    examples: int
    power: Tensor | None = None
    rest: float | None = None

    @property
    def cumulative_power(self) -> Tensor | None:
        """(k,) fraction of the targets' power in the first modes, up to each; None without
        targets. Targets that are all zero give ones.
        """
        if self.power is None or self.rest is None:
            return None
        return learning.cumulative_power(self.power, self.rest)

    def learning_times(self, learning_rate: float = 1.0, fraction: float = 1 / math.e) -> Tensor:
        """(k,) time after which `fraction` of the residual in each mode is left, as
        `Spectrum.learning_times`; infinite for eigenvalues not above their residual.

        Raises:
            InvalidInput: a learning rate that is not positive, or a fraction outside (0, 1).
        """
        values, n = self.eigenvalues, self.examples
        return learning.learning_times(values, self.residuals, learning_rate, fraction, examples=n)

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name, and `cumulative_power`; tensors stay tensors."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**found, "cumulative_power": self.cumulative_power}

    def figure(self) -> Figure:
        """The eigenvalues against their rank, both axes logarithmic.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure(
            f"The {len(self.eigenvalues)} largest of {self.size} eigenvalues",
            "mode",
            "eigenvalue",
            x_axis="log",
            y_axis="log",
        )
        shown = self.eigenvalues > 0
        ranks = torch.arange(1, len(self.eigenvalues) + 1)
        drawing.points(
            figure, ranks[shown], self.eigenvalues[shown], "eigenvalues", error=self.residuals
        )
        return figure

    def __repr__(self) -> str:
        found = len(self.eigenvalues)
        lines = [
            f"TopSpectrum of {found} of {self.size} modes over {self.examples} examples",
            f"  eigenvalues   {float(self.eigenvalues[0]):.4g} to "
            f"{float(self.eigenvalues[-1]):.4g}",
            f"  residuals     at most {float(self.residuals.max()):.2g}"
            + ("" if self.converged else ": NOT converged"),
        ]
        cumulative = self.cumulative_power
        if cumulative is not None:
            lines.append(f"  target power  {float(cumulative[-1]):.1%} in these modes")
        return "\n".join(lines)


def top_spectrum(
    K: KernelOrOperator,
    k: int,
    targets: ArrayLike | None = None,
    *,
    tolerance: float = 0.0,
    iterations: int | None = None,
    examples: int | None = None,
    seed: int = 0,
) -> TopSpectrum:
    """The k largest eigenvalues and modes, from products of the kernel with vectors only.

    Implicitly restarted Lanczos iteration (Lehoucq, Sorensen & Yang 1998, ARPACK, by
    `scipy.sparse.linalg.eigsh`) in float64. It needs some tens of products for well separated
    eigenvalues, and k more for the residuals. Where k is close to N, the matrix is written down.

    Args:
        K: a kernel matrix as for `spectrum`, a SciPy `LinearOperator`, an operator with
            `.to_scipy()` (`EmpiricalKernel(...).operator(x)`), or a `linear_operator`.
        k: how many.
        targets: (n,) or (n, out), real. For an operator with n * out rows, which are pairs
            (example, output), (n, out).
        tolerance: relative accuracy of the eigenvalues at which to stop; 0 goes to rounding.
        iterations: restarts at most; None for ten times N.
        examples: n, for an operator without targets whose rows are pairs (example, output).
        seed: of the start vector.

    Raises:
        InvalidInput: a bad kernel, an operator that is not symmetric, bad targets, k outside
            1 to N, a negative tolerance, or no eigenvalue converged in so many iterations.
    """
    kernel = products(K)
    if not 1 <= k <= kernel.size:
        raise InvalidInput(f"k is {k}, but the kernel has {kernel.size} eigenvalues.")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InvalidInput(f"tolerance is {tolerance}, but must be zero or positive.")
    columns, n = _columns(kernel, targets, examples)
    values, vectors, finished = _eigenpairs(kernel, k, tolerance, iterations, seed)
    gaps = np.linalg.norm(kernel.multiply(vectors) - vectors * values, axis=0)
    # Rounding of a product adds to what was asked for.
    limit = max(10 * tolerance, 100 * math.sqrt(kernel.size) * kernel.rounding) * abs(values[0])
    power = None if columns is None else np.square(vectors.T @ columns.numpy()).sum(axis=1)
    rest = None
    if columns is not None and power is not None:
        outside = columns.numpy() - vectors @ (vectors.T @ columns.numpy())
        rest = float(np.square(outside).sum())
    return TopSpectrum(
        eigenvalues=kernel.result(values),
        modes=kernel.result(vectors),
        residuals=kernel.result(gaps),
        converged=finished and bool((gaps <= limit).all()),
        size=kernel.size,
        examples=n,
        power=None if power is None else kernel.result(power),
        rest=rest,
    )


def _columns(
    kernel: Products, targets: ArrayLike | None, examples: int | None
) -> tuple[Tensor | None, int]:
    """Targets as columns, and the number of examples."""
    if kernel.matrix is not None:
        n = kernel.matrix.examples
        if targets is None:
            return None, n
        checked = check_targets(targets, kernel.matrix)
        return kernel.matrix.flatten(checked.values).cpu(), n
    if targets is not None:
        return column_targets(targets, kernel.size)
    n = kernel.size if examples is None else examples
    if n < 1 or kernel.size % n:
        raise InvalidInput(f"examples is {n}, but the operator has {kernel.size} rows.")
    return None, n


def _eigenpairs(
    kernel: Products, k: int, tolerance: float, iterations: int | None, seed: int
) -> tuple[_Array, _Array, bool]:
    """Eigenvalues (descending), vectors, and whether the iteration ended by itself."""
    start = np.random.default_rng(seed).normal(size=kernel.size)
    if not kernel.multiply(start[:, None]).any():
        return np.zeros(k), np.eye(kernel.size, k), True
    if 2 * k >= kernel.size:  # Lanczos needs room for more vectors than k
        whole = kernel.multiply(np.eye(kernel.size))
        ascending, vectors = np.linalg.eigh((whole + whole.T) / 2)
        return ascending[::-1][:k].copy(), vectors[:, ::-1][:, :k].copy(), True
    finished = True
    try:
        values, vectors = eigsh(
            kernel.scipy(),
            k=k,
            which="LA",
            v0=start,
            # Products in single precision do not converge to double precision.
            tol=max(tolerance, kernel.rounding if kernel.rounding > 1e-10 else 0.0),
            maxiter=iterations,
        )
    except ArpackNoConvergence as error:
        values, vectors, finished = error.eigenvalues, error.eigenvectors, False
        if len(values) == 0:
            raise InvalidInput(
                f"no eigenvalue converged in {iterations} iterations: give more, a larger "
                "tolerance, or another k (one that does not cut through a cluster)."
            ) from error
    order = np.argsort(-values, kind="stable")
    return values[order], vectors[:, order], finished
