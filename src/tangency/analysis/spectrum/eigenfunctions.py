"""Eigenfunctions of a kernel at new points, by the method of Nystrom."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.matrix import ArrayLike, Kernel, Lazy, cross_matrix, kernel_matrix
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Eigenfunctions", "eigenfunctions"]


@dataclass(frozen=True, eq=False, repr=False)
class Eigenfunctions:
    """The first k eigenfunctions of a kernel, estimated from n training examples.

    Attributes:
        eigenvalues: (k,), descending: lambda_i / n, estimates of the eigenvalues of the integral
            operator f -> E[K(., x) f(x)] over the distribution of the examples.
        train: (n, k), or (n, out, k) for a kernel (n, n, out, out): values on the training
            examples. The mean over examples of the square (summed over outputs) is one.
        test: (m, k) or (m, out, k): values at the new points.
    """

    eigenvalues: Tensor
    train: Tensor
    test: Tensor

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def figure(self, x: Tensor, count: int = 6) -> Figure:
        """The first `count` of them (the first output of each) against a coordinate of the new
        points.

        Args:
            x: (m,), what to draw them against: an angle, a pixel, a principal component.
            count: how many.

        Raises:
            InvalidInput: `x` does not fit.
            MissingDependency: Plotly is not installed.
        """
        if x.shape != self.test.shape[:1]:
            raise InvalidInput(
                f"x has shape {tuple(x.shape)}, but must hold one number for each of the "
                f"{len(self.test)} points."
            )
        figure = drawing.new_figure("Eigenfunctions of the kernel", "x", "value")
        order = torch.argsort(x.cpu())
        values = self.test if self.test.dim() == 2 else self.test[:, 0]
        for i in range(min(count, len(self.eigenvalues))):
            colour = drawing.PALETTE[i % len(drawing.PALETTE)]
            name = f"{i + 1}: {float(self.eigenvalues[i]):.3g}"
            drawing.line(figure, x.cpu()[order], values[:, i].cpu()[order], name, colour)
        return figure

    def __repr__(self) -> str:
        return (
            f"Eigenfunctions({len(self.eigenvalues)} of them, eigenvalues "
            f"{float(self.eigenvalues[0]):.4g} to {float(self.eigenvalues[-1]):.4g}: "
            f"train {tuple(self.train.shape)}, test {tuple(self.test.shape)})"
        )


def eigenfunctions(
    K: Kernel, K_test_train: ArrayLike | Lazy, count: int | None = None
) -> Eigenfunctions:
    """Extend the modes of a kernel matrix to functions, and evaluate them at new points.

    phi_i(x*) = sqrt(n) / lambda_i  sum_j K(x*, x_j) v_ij (Nystrom; Williams & Seeger 2001),
    which on the training examples is sqrt(n) v_i. As n grows, phi_i converges to the eigenfunction
    of the kernel's integral operator over the distribution of the examples (up to sign, or a
    rotation among equal eigenvalues); the first ones are good long before the last ones.

    Args:
        K: (n, n) or (n, n, out, out).
        K_test_train: (m, n) or (m, n, out, out), between new points and training examples.
        count: how many eigenfunctions; by default all whose eigenvalue can be told from zero.

    Raises:
        InvalidInput: bad kernels, or more eigenfunctions than can be told from zero.
    """
    kernel = kernel_matrix(K, "K")
    cross = cross_matrix(K_test_train, kernel)
    system = kernel.eigensystem
    rank = int((system.values > system.tolerance).sum())
    wanted = rank if count is None else count
    if not 1 <= wanted <= rank:
        raise InvalidInput(
            f"count is {wanted}, but {rank} eigenvalues of K can be told from zero: the others "
            "have no eigenfunction that could be divided out."
        )
    scale = math.sqrt(kernel.examples)
    modes, values = system.vectors[:, :wanted], system.values[:wanted]
    return Eigenfunctions(
        eigenvalues=kernel.result(values / kernel.examples),
        train=kernel.result(_by_output(scale * modes, kernel.outputs)),
        test=kernel.result(_by_output(scale * (cross @ modes) / values, kernel.outputs)),
    )


def _by_output(columns: Tensor, outputs: int | None) -> Tensor:
    """(m * out, k) as (m, out, k)."""
    return columns if outputs is None else columns.reshape(-1, outputs, columns.shape[-1])
