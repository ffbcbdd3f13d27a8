"""The spectrum of a kernel by frequency on the torus, for kernels of the difference of angles."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.spectrum import learning
from tangency.analysis.spectrum.kernel_functions import KernelFunction, values_at
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["TorusSpectrum", "torus_spectrum"]


@dataclass(frozen=True, eq=False, repr=False)
class TorusSpectrum:
    """The eigenvalues of a translation-invariant kernel on the p-dimensional torus, by frequency.

    The eigenfunctions are exp(i (k_1 a_1 + ... + k_p a_p)), under the uniform distribution of the
    angles a.

    Attributes:
        frequencies: (F, p) int64, all vectors k with |k_i| up to the largest one asked for.
        eigenvalues: (F,) float64, descending. The eigenvalues of the kernel matrix of n uniform
            examples tend to n times these.
        diagonal: K(x, x), the sum of the eigenvalues of all frequencies.
        accuracy: largest absolute error of the eigenvalues, estimated from half the grid.
    """

    frequencies: Tensor
    eigenvalues: Tensor
    diagonal: float
    accuracy: float

    @property
    def captured(self) -> float:
        """Share of the kernel's trace in these frequencies."""
        return float(self.eigenvalues.sum()) / self.diagonal

    def of(self, *frequency: int) -> float:
        """The eigenvalue of one frequency vector.

        Raises:
            InvalidInput: it is not among `frequencies`.
        """
        wanted = torch.tensor(frequency)
        if wanted.shape != self.frequencies.shape[1:]:
            raise InvalidInput(f"the torus has {self.frequencies.shape[1]} angles.")
        found = (self.frequencies == wanted).all(dim=1)
        if not bool(found.any()):
            raise InvalidInput(f"frequency {frequency} is beyond those that were asked for.")
        return float(self.eigenvalues[found])

    def learning_times(self, learning_rate: float = 1.0, fraction: float = 1 / math.e) -> Tensor:
        """(F,) time after which `fraction` of the residual in each frequency is left, as
        `HarmonicSpectrum.learning_times`.

        Raises:
            InvalidInput: a learning rate that is not positive, or a fraction outside (0, 1).
        """
        return learning.learning_times(self.eigenvalues, self.accuracy, learning_rate, fraction)

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name; tensors stay tensors."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def figure(self) -> Figure:
        """The eigenvalues against |k|, both axes logarithmic.

        Frequency zero and eigenvalues that cannot be told from zero are left out.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure(
            "The kernel's eigenvalues by frequency",
            "|k|",
            "eigenvalue",
            x_axis="log",
            y_axis="log",
        )
        length = self.frequencies.double().norm(dim=1)
        shown = (self.eigenvalues > self.accuracy) & (length > 0)
        labels = [str(tuple(k)) for k in self.frequencies[shown].tolist()]
        drawing.points(figure, length[shown], self.eigenvalues[shown], "eigenvalues", text=labels)
        return figure

    def __repr__(self) -> str:
        lines = [
            f"TorusSpectrum of {len(self.frequencies)} frequencies in "
            f"{self.frequencies.shape[1]} angles, {self.captured:.2%} of the trace, accuracy "
            f"{self.accuracy:.1g}"
        ]
        for k, value in zip(self.frequencies[:8].tolist(), self.eigenvalues[:8], strict=True):
            lines.append(f"  {tuple(k)!s:>12} {float(value):>12.4g}")
        return "\n".join(lines)


def torus_spectrum(
    kernel_function: KernelFunction,
    dimension: int,
    largest: int,
    *,
    points: int | None = None,
) -> TorusSpectrum:
    """The eigenvalues of K(a, a') = kappa(a - a') on the torus of `dimension` angles, by frequency.

    They are the Fourier coefficients of kappa, here by a fast Fourier transform on a grid, which
    gives the eigenvalues of the kernel matrix of the grid points exactly (it is circulant) and
    those of the torus up to aliasing: lambda_k + sum over j of lambda_{k + j points}. The network
    of inputs (cos a_1, sin a_1, ..., cos a_p, sin a_p) has such a kernel, since their inner
    product is the sum of cos(a_i - a'_i).

    Args:
        kernel_function: kappa, from differences of angles (m, p), float64, to values (m,).
        dimension: p, the number of angles.
        largest: the largest frequency wanted, in each angle.
        points: of the grid in each angle, even; by default 16 times `largest`, at least 64, at
            most a million in all.

    Raises:
        InvalidInput: numbers that are out of range, a grid too coarse for the frequencies, or a
            kernel function that is not real, finite and even, or not one number for each row.
    """
    if dimension < 1 or largest < 0:
        raise InvalidInput(f"dimension is {dimension} and largest {largest}: too small.")
    if points is None:
        points = min(max(64, 16 * largest), 4 * int(GRID ** (1 / dimension) / 4))
    if points % 4 or points < 4 * largest + 4:
        raise InvalidInput(
            f"points is {points}, but must be a multiple of 4 and at least 4 * largest + 4 = "
            f"{4 * largest + 4}, so that half the grid still tells the frequencies apart."
        )
    values = _on_grid(kernel_function, dimension, points)
    fine = _coefficients(values, largest)
    coarse = _coefficients(values[(slice(None, None, 2),) * dimension], largest)
    axis = np.arange(-largest, largest + 1)
    frequencies = np.stack(np.meshgrid(*[axis] * dimension, indexing="ij"), axis=-1)
    order = np.argsort(-fine.reshape(-1), kind="stable")
    rounding = 4 * np.finfo(np.float64).eps * float(np.abs(values).max())
    return TorusSpectrum(
        frequencies=torch.from_numpy(frequencies.reshape(-1, dimension)[order]),
        eigenvalues=torch.from_numpy(fine.reshape(-1)[order]),
        diagonal=float(values.reshape(-1)[0]),
        accuracy=float(np.abs(fine - coarse).max()) + rounding,
    )


GRID = 10**6
"""Points of the grid, at most, unless more are asked for."""


def _on_grid(
    kernel_function: KernelFunction, dimension: int, points: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    axis = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    grid = torch.stack(torch.meshgrid(*[axis] * dimension, indexing="ij"), dim=-1)
    values = values_at(kernel_function, grid.reshape(-1, dimension))
    return values.reshape([points] * dimension).numpy()


def _coefficients(
    values: np.ndarray[Any, np.dtype[np.float64]], largest: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Fourier coefficients with all frequencies up to `largest`, from -largest on."""
    whole = scipy.fft.fftn(values, norm="forward")
    if float(np.abs(whole.imag).max()) > 1e-6 * float(np.abs(values).max()):
        raise InvalidInput(
            "kernel_function is not even: a kernel is the same for a - a' and a' - a."
        )
    axis = np.arange(-largest, largest + 1)
    return np.asarray(whole.real[np.ix_(*[axis] * values.ndim)])
