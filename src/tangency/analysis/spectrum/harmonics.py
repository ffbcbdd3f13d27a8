"""The spectrum of a kernel by frequency: on the circle and the sphere, for kernels of the angle.

A kernel K(x, x') = kappa(x . x') on the unit sphere of R^d, under the uniform distribution, has the
spherical harmonics for eigenfunctions: all N(d, k) of them of degree k share one eigenvalue, which
Funk and Hecke's formula gives as a one-dimensional integral,

    lambda_k = c_d int_0^pi kappa(cos a) P_k(cos a) sin^{d-2}(a) da,   c_d int_0^pi sin^{d-2} = 1,

with the Gegenbauer polynomial P_k of index (d - 2) / 2, P_k(1) = 1. On the circle, d = 2, P_k is
cos(k a), and degree is frequency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.spectrum import learning
from tangency.analysis.spectrum.kernel_functions import KernelFunction, values_at
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["HarmonicSpectrum", "gegenbauer", "harmonic_spectrum", "multiplicity"]


@dataclass(frozen=True, eq=False, repr=False)
class HarmonicSpectrum:
    """The eigenvalues of a kernel of the angle on the sphere S^{d-1}, by degree.

    Attributes:
        dimension: d, of the space around the sphere; 2 is the circle.
        degrees: (D,) int64.
        eigenvalues: (D,) float64, of the integral operator under the uniform distribution. The
            eigenvalues of the kernel matrix of n such examples tend to n times these.
        multiplicity: (D,) float64: how many harmonics share each of them.
        diagonal: kappa(1), the sum of all eigenvalues.
        accuracy: (D,) float64, absolute errors of the eigenvalues, estimated: the difference to a
            quadrature with fewer nodes, plus rounding.
    """

    dimension: int
    degrees: Tensor
    eigenvalues: Tensor
    multiplicity: Tensor
    diagonal: float
    accuracy: Tensor

    @property
    def captured(self) -> float:
        """Share of the kernel's trace in these degrees, sum of multiplicity * eigenvalue over
        kappa(1): 1 if no other degree matters. Eigenvalues that cannot be told from zero are left
        out.
        """
        seen = self.eigenvalues > self.accuracy
        return float(self.multiplicity[seen] @ self.eigenvalues[seen]) / self.diagonal

    def learning_times(self, learning_rate: float = 1.0, fraction: float = 1 / math.e) -> Tensor:
        """(D,) time after which `fraction` of the residual in each degree is left.

        ln(1 / fraction) / (learning_rate * lambda_k), under gradient flow on half the mean squared
        error over the whole sphere: the limit of many examples. Infinite where the eigenvalue
        cannot be told from zero.

        Raises:
            InvalidInput: a learning rate that is not positive, or a fraction outside (0, 1).
        """
        return learning.learning_times(self.eigenvalues, self.accuracy, learning_rate, fraction)

    def expanded(self, count: int) -> Tensor:
        """(count,) the largest eigenvalues, each as often as its multiplicity, descending.

        Raises:
            InvalidInput: these degrees hold fewer.
        """
        order = torch.argsort(self.eigenvalues, descending=True, stable=True)
        found: list[Tensor] = []
        left = count
        for i in order.tolist():
            repeats = min(left, int(self.multiplicity[i]))
            found.append(self.eigenvalues[i].expand(repeats))
            left -= repeats
        if left > 0 or count < 1:
            raise InvalidInput(f"count is {count}, but these degrees hold {count - left}.")
        return torch.cat(found)

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name; tensors stay tensors."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def figure(self) -> Figure:
        """The eigenvalues against the degree, both axes logarithmic.

        Degree 0 and eigenvalues that cannot be told from zero are left out.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        word = "frequency" if self.dimension == 2 else "degree"
        figure = drawing.new_figure(
            f"The kernel's eigenvalues by {word}", word, "eigenvalue", x_axis="log", y_axis="log"
        )
        seen = self.eigenvalues > self.accuracy
        for parity, name in enumerate(("even", "odd")):
            shown = seen & (self.degrees % 2 == parity) & (self.degrees > 0)
            colour = drawing.PALETTE[parity]
            drawing.points(figure, self.degrees[shown], self.eigenvalues[shown], name, colour)
        return figure

    def __repr__(self) -> str:
        place = (
            "the circle" if self.dimension == 2 else f"the sphere in {self.dimension} dimensions"
        )
        lines = [
            f"HarmonicSpectrum on {place}: degrees {int(self.degrees[0])} to "
            f"{int(self.degrees[-1])}, {self.captured:.2%} of the trace, "
            f"accuracy {float(self.accuracy.max()):.1g}",
            f"  {'degree':>6} {'multiplicity':>13} {'eigenvalue':>12}",
        ]
        lines += [
            f"  {int(self.degrees[i]):>6} {float(self.multiplicity[i]):>13.6g} "
            f"{float(self.eigenvalues[i]):>12.4g}"
            for i in range(min(8, len(self.degrees)))
        ]
        return "\n".join(lines)


def harmonic_spectrum(
    kernel_function: KernelFunction,
    dimension: int,
    degrees: int | Sequence[int],
    *,
    nodes: int | None = None,
) -> HarmonicSpectrum:
    """The eigenvalues of K(x, x') = kappa(x . x') on the unit sphere S^{d-1}, by degree.

    The integral is taken by Fejer's quadrature (at Chebyshev points) over the *angle*: the kernels
    of ReLU networks have a square-root singularity in the cosine at both ends, which would make
    Gauss-Jacobi quadrature in the cosine converge slowly, but are smooth in the angle, where the
    error falls exponentially. Eigenvalues are accurate to about 1e-15 kappa(1) then; `accuracy`
    says what was reached, also for kernels with kinks.

    Args:
        kernel_function: kappa, from cosines (m,) in [-1, 1], float64 and ascending, to values
            (m,). `tangency.kernel_profile` makes one of an `InfiniteKernel`.
        dimension: d, at least 2; 2 is the circle, whose degrees are frequencies.
        degrees: the degrees wanted, or the largest one.
        nodes: of the quadrature; by default four for each degree, at least 256.

    Raises:
        InvalidInput: a dimension below 2, negative or no degrees, or a kernel function that does
            not give one finite number for each cosine.
    """
    if dimension < 2:
        raise InvalidInput(f"dimension is {dimension}, but a circle needs two.")
    wanted = list(range(degrees + 1)) if isinstance(degrees, int) else sorted(set(degrees))
    if not wanted or wanted[0] < 0:
        raise InvalidInput(f"degrees is {degrees}, but they must be zero or positive.")
    count = max(256, 4 * wanted[-1]) if nodes is None else nodes
    if count < 2:
        raise InvalidInput(f"nodes is {nodes}, but must be two or more.")
    coarse = _integrals(kernel_function, dimension, wanted, count)
    fine = _integrals(kernel_function, dimension, wanted, count * 3 // 2)
    return HarmonicSpectrum(
        dimension=dimension,
        degrees=torch.tensor(wanted),
        eigenvalues=fine.values,
        multiplicity=torch.tensor(
            [multiplicity(dimension, k) for k in wanted], dtype=torch.float64
        ),
        diagonal=fine.diagonal,
        accuracy=(fine.values - coarse.values).abs() + fine.rounding,
    )


def multiplicity(dimension: int, degree: int) -> int:
    """N(d, k): how many linearly independent spherical harmonics of degree k there are on S^{d-1}.

    (2k + d - 2) / k * binomial(k + d - 3, d - 2); 1 at degree 0 and 2 on the circle.
    """
    if degree == 0:
        return 1
    if dimension == 2:
        return 2
    whole = math.comb(degree + dimension - 3, dimension - 2)
    return (2 * degree + dimension - 2) * whole // degree


def gegenbauer(dimension: int, degrees: Sequence[int], cosines: Tensor) -> Tensor:
    """P_k(cosines) for each of the `degrees`, (D, *cosines.shape): P_k(1) = 1.

    The harmonic of degree k on S^{d-1} that is symmetric about an axis, as a function of the cosine
    of the angle to it; cos(k * angle) on the circle. By the three-term recurrence
    (k + d - 2) P_{k+1} = (2k + d - 2) t P_k - k P_{k-1}.
    """
    before, now = torch.ones_like(cosines), cosines
    found, wanted = {0: before, 1: now}, set(degrees)
    for k in range(1, max(degrees)):
        ahead = ((2 * k + dimension - 2) * cosines * now - k * before) / (k + dimension - 2)
        before, now = now, ahead
        if k + 1 in wanted:
            found[k + 1] = ahead
    return torch.stack([found[k] for k in degrees])


@dataclass(frozen=True, eq=False)
class _Integrals:
    """Eigenvalues and their rounding errors, (D,), and kappa(1)."""

    values: Tensor
    rounding: Tensor
    diagonal: float


def _integrals(
    kernel_function: KernelFunction, dimension: int, degrees: list[int], count: int
) -> _Integrals:
    points, weights = _fejer(count)
    angles = math.pi * (1 - points) / 2  # descending, so that cosines ascend
    density = weights * angles.sin() ** (dimension - 2)
    cosines = torch.cat([angles.cos(), torch.ones(1, dtype=torch.float64)])
    values = values_at(kernel_function, cosines)
    terms = gegenbauer(dimension, degrees, cosines[:-1]) * (values[:-1] * density / density.sum())
    roundings = torch.tensor(degrees) + ROUNDINGS  # those of the recurrence add up
    return _Integrals(
        values=terms.sum(dim=1),
        rounding=roundings * torch.finfo(torch.float64).eps * terms.abs().sum(dim=1),
        diagonal=float(values[-1]),
    )


ROUNDINGS = 4
"""Relative rounding errors in a term of the quadrature at degree 0, in machine epsilons."""


def _fejer(count: int) -> tuple[Tensor, Tensor]:
    """Nodes in (-1, 1), ascending, and weights of Fejer's first rule (Waldvogel 2006)."""
    angle = (torch.arange(count, dtype=torch.float64) + 0.5) * (math.pi / count)
    k = torch.arange(1, count // 2 + 1, dtype=torch.float64)
    series = torch.cos(2 * angle[:, None] * k) @ (1 / (4 * k**2 - 1))
    return -angle.cos(), (2 - 4 * series) / count
