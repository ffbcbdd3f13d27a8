"""The spectrum of a kernel matrix: which patterns in the targets are learned, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.matrix import (
    ArrayLike,
    Eigensystem,
    Kernel,
    KernelMatrix,
    kernel_matrix,
)
from tangency.analysis.matrix import targets as check_targets
from tangency.analysis.numbers import check_ridge
from tangency.analysis.spectrum import learning

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Spectrum", "spectrum"]


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """Eigenmodes of a kernel matrix over n examples, and the targets seen in them.

    N is n, or n * out for a kernel (n, n, out, out), whose modes live on (example, output) pairs.

    Attributes:
        eigenvalues: (N,), descending, as computed: tiny negative ones are not hidden.
        modes: (N, N), the eigenvectors in columns, orthonormal.
        examples: n.
        tolerance: eigenvalues of at most this size cannot be told from zero (rounding).
        condition_number: lambda_max / lambda_min; infinite where lambda_min is not above the
            tolerance.
        effective_rank: exp of the Shannon entropy of the normalised eigenvalues (Roy & Vetterli,
            "The effective rank", EUSIPCO 2007, definition 1): 1 for a rank-one kernel, N for a
            multiple of the identity. Negative eigenvalues count as zero.
        power: (N,) or None without targets: squared projection of the targets on each mode,
            summed over outputs; the sum over modes is the squared norm of the targets.
        rkhs_norm: y^T K^-1 y summed over outputs, None without targets: the *squared* norm, in the
            function space of the kernel, of the smoothest function through the targets. Modes
            whose eigenvalue cannot be told from zero are left out if the targets have no power
            there (at most tolerance / lambda_max of the whole, each), else it is infinite.
    """

    eigenvalues: Tensor
    modes: Tensor
    examples: int
    tolerance: float
    condition_number: float
    effective_rank: float
    power: Tensor | None = None
    rkhs_norm: float | None = None

    @property
    def rank(self) -> int:
        """Number of eigenvalues above the tolerance."""
        return int((self.eigenvalues > self.tolerance).sum())

    @property
    def negative(self) -> int:
        """Number of eigenvalues below minus the tolerance; above 0, K is not a kernel matrix."""
        return int((self.eigenvalues < -self.tolerance).sum())

    @property
    def cumulative_power(self) -> Tensor | None:
        """(N,) fraction of the targets' power in the first modes, up to each; None without targets.

        The curve C(k) of Canatar, Bordelon & Pehlevan, Nature Communications 12 (2021). Targets
        that are all zero give ones.
        """
        return None if self.power is None else learning.cumulative_power(self.power)

    @property
    def learning_time(self) -> Tensor:
        """(N,) time for the residual in each mode to fall by a factor e: n / lambda_i.

        Gradient flow with learning rate 1 on 1/(2n) sum_i |f(x_i) - y_i|^2; infinite for modes
        whose eigenvalue is not above the tolerance.
        """
        return self.learning_times()

    def learning_times(self, learning_rate: float = 1.0, fraction: float = 1 / math.e) -> Tensor:
        """(N,) time after which `fraction` of the residual in each mode is left.

        t_i = n / (learning_rate * lambda_i) * ln(1 / fraction), under gradient flow on
        1/(2n) sum_i |f(x_i) - y_i|^2. For gradient descent well below its largest stable step,
        the time is the number of steps.

        Raises:
            InvalidInput: a learning rate that is not positive, or a fraction outside (0, 1).
        """
        values, n = self.eigenvalues, self.examples
        return learning.learning_times(values, self.tolerance, learning_rate, fraction, examples=n)

    def effective_dimension(self, ridge: float) -> float:
        """sum_i lambda_i / (lambda_i + ridge): how many modes a ridge leaves free.

        The effective dimension, or degrees of freedom, of kernel ridge regression with
        (K + ridge)^-1 (Zhang 2005; Caponnetto & De Vito 2007). Eigenvalues that cannot be told
        from zero count as zero; without a ridge it is the rank.

        Raises:
            InvalidInput: a ridge that is negative or not finite.
        """
        check_ridge(ridge)
        values = self.eigenvalues.double()
        values = values[values > self.tolerance]
        return float((values / (values + ridge)).sum())

    def figure(self) -> Figure:
        """Eigenvalues against their rank; beside it the cumulative power of the targets.

        Eigenvalues that cannot be told from zero are left out.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        cumulative = self.cumulative_power
        titles = ["eigenvalues"] + ([] if cumulative is None else ["targets' power up to here"])
        figure = drawing.panels("Spectrum of the kernel", titles)
        ranks = torch.arange(1, len(self.eigenvalues) + 1)
        shown = self.eigenvalues > self.tolerance
        drawing.line(
            figure, ranks[shown], self.eigenvalues[shown], "eigenvalues", row=1, col=1, legend=False
        )
        figure.update_xaxes(type="log", dtick=1, title_text="mode")
        figure.update_yaxes(type="log", dtick=1, exponentformat="power", row=1, col=1)
        if cumulative is not None:
            drawing.line(
                figure,
                ranks,
                cumulative,
                "cumulative power",
                drawing.INFINITE,
                row=1,
                col=2,
                legend=False,
            )
            figure.update_yaxes(range=[0, 1.02], row=1, col=2)
        return figure

    def to_dict(self) -> dict[str, Tensor | float | int | None]:
        """All attributes and derived quantities by name; tensors stay tensors."""
        return {
            "eigenvalues": self.eigenvalues,
            "modes": self.modes,
            "examples": self.examples,
            "tolerance": self.tolerance,
            "rank": self.rank,
            "negative": self.negative,
            "condition_number": self.condition_number,
            "effective_rank": self.effective_rank,
            "learning_time": self.learning_time,
            "power": self.power,
            "cumulative_power": self.cumulative_power,
            "rkhs_norm": self.rkhs_norm,
        }

    def __repr__(self) -> str:
        size = len(self.eigenvalues)
        lines = [
            f"Spectrum of {size} modes over {self.examples} examples",
            f"  eigenvalues       {float(self.eigenvalues[0]):.4g} to "
            f"{float(self.eigenvalues[-1]):.4g}",
            f"  condition number  {self.condition_number:.4g}",
            f"  effective rank    {self.effective_rank:.4g} (numerical rank {self.rank})",
            f"  learning times    {float(self.learning_time[0]):.4g} to "
            f"{float(self.learning_time[-1]):.4g} (learning rate 1)",
        ]
        if self.negative:
            lines.append(
                f"  warning           {self.negative} eigenvalues below -{self.tolerance:.2g}: "
                "not positive semi-definite"
            )
        cumulative = self.cumulative_power
        if cumulative is not None:
            needed = min(int((cumulative < 0.9).sum()) + 1, size)
            lines.append(f"  target power      90 % in the first {needed} modes")
            lines.append(f"  RKHS norm squared {self.rkhs_norm:.4g}")
        return "\n".join(lines)


def spectrum(K: Kernel, targets: ArrayLike | None = None) -> Spectrum:
    """Eigenmodes of the kernel matrix `K`, and the targets' power in them.

    Args:
        K: (n, n), acting on every output alike, or (n, n, out, out); tensor or NumPy array.
        targets: (n,) or (n, out), real.

    Returns:
        A `Spectrum` in the dtype (at least float32) and on the device of `K`; the factorisation
        runs in float64.

    Raises:
        InvalidInput: a kernel that is not square, not symmetric, empty or holds NaN; targets that
            do not fit it or are integers.
    """
    kernel = kernel_matrix(K, "K")
    labels = None if targets is None else check_targets(targets, kernel, "targets")
    system = kernel.eigensystem
    power = None if labels is None else _power(system, kernel.flatten(labels.values))
    return _assemble(kernel, system, power)


def _assemble(kernel: KernelMatrix, system: Eigensystem, power: Tensor | None) -> Spectrum:
    largest, smallest = float(system.values[0]), float(system.values[-1])
    return Spectrum(
        eigenvalues=kernel.result(system.values),
        modes=kernel.result(system.vectors),
        examples=kernel.examples,
        tolerance=system.tolerance,
        condition_number=largest / smallest if smallest > system.tolerance else math.inf,
        effective_rank=_effective_rank(system.values),
        power=None if power is None else kernel.result(power),
        rkhs_norm=None if power is None else _rkhs_norm(system, power),
    )


def _power(system: Eigensystem, columns: Tensor) -> Tensor:
    return (system.vectors.mT @ columns).square().sum(dim=1)


def _effective_rank(eigenvalues: Tensor) -> float:
    weights = eigenvalues.clamp(min=0)
    if not bool(weights.any()):
        return 0.0
    weights = weights / weights.sum()
    return math.exp(-float(torch.xlogy(weights, weights).sum()))


def _rkhs_norm(system: Eigensystem, power: Tensor) -> float:
    null = system.null
    if bool((power[null] > system.null_power_limit(float(power.sum()))).any()):
        return math.inf
    return float((power[~null] / system.values[~null]).sum())
