"""Eigenvalues of a kernel over the distribution of the data, and the target's power in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.matrix import ArrayLike, Kernel, kernel_matrix
from tangency.analysis.matrix import targets as check_targets
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Population", "population"]


@dataclass(frozen=True, eq=False, repr=False)
class Population:
    """A kernel and a target over a distribution: k = sum_i lambda_i phi_i phi_i, f = sum v_i phi_i.

    The eigenfunctions phi_i are orthonormal over the distribution of the inputs. Made by
    `population` from a sample, or by hand where the eigenvalues are known.

    Attributes:
        eigenvalues: (M,) lambda_i, float64, zero or positive; their sum (with `tail_trace`) is the
            mean of k(x, x).
        power: (M,) v_i^2, summed over outputs.
        tail_trace: sum of the eigenvalues of modes that are too small to be listed.
        tail_power: power of the target in those modes and outside the kernel's reach.
        samples: how many examples it was estimated from; None if it is exact.

    Raises:
        InvalidInput: negative, NaN or infinite numbers, or shapes that differ.
    """

    eigenvalues: Tensor
    power: Tensor
    tail_trace: float = 0.0
    tail_power: float = 0.0
    samples: int | None = None

    def __post_init__(self) -> None:
        for name in ("eigenvalues", "power"):
            values = torch.as_tensor(getattr(self, name)).detach().cpu().double()
            if values.dim() != 1 or not bool((values.isfinite() & (values >= 0)).all()):
                raise InvalidInput(f"{name} must be a vector of numbers that are not negative.")
            object.__setattr__(self, name, values)
        if self.eigenvalues.shape != self.power.shape or len(self.power) == 0:
            raise InvalidInput(
                f"eigenvalues {tuple(self.eigenvalues.shape)} and power {tuple(self.power.shape)} "
                "must be of one length, and not empty."
            )
        for name in ("tail_trace", "tail_power"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidInput(f"{name} is {getattr(self, name)}, but must be finite, not < 0.")

    @property
    def total_power(self) -> float:
        """Mean over the distribution of |f(x)|^2."""
        return float(self.power.sum()) + self.tail_power

    @property
    def rank(self) -> float:
        """Number of modes with a positive eigenvalue: infinite with a tail."""
        return float("inf") if self.tail_trace > 0 else float((self.eigenvalues > 0).sum())

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name."""
        return {
            "eigenvalues": self.eigenvalues,
            "power": self.power,
            "tail_trace": self.tail_trace,
            "tail_power": self.tail_power,
            "samples": self.samples,
        }

    def figure(self) -> Figure:
        """Eigenvalues and the target's power, mode by mode.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure("Population", "mode", "size", x_axis="log", y_axis="log")
        ranks = torch.arange(1, len(self.power) + 1)
        for name, values, colour in (
            ("eigenvalue", self.eigenvalues, drawing.EMPIRICAL),
            ("target power", self.power, drawing.INFINITE),
        ):
            shown = values > 0
            drawing.points(figure, ranks[shown], values[shown], name, colour, size=4.0)
        return figure

    def __repr__(self) -> str:
        origin = "exact" if self.samples is None else f"from {self.samples} examples"
        tail = f", tail of trace {self.tail_trace:.3g}" if self.tail_trace else ""
        return (
            f"Population({len(self.power)} modes, {origin}: eigenvalues "
            f"{float(self.eigenvalues.max()):.4g} to {float(self.eigenvalues.min()):.4g}, target "
            f"power {self.total_power:.4g}{tail})"
        )


def population(K: Kernel, y: ArrayLike, modes: int | None = None) -> Population:
    """Estimate the population from the kernel matrix of a large sample of m examples.

    lambda_i is the i-th eigenvalue of K over m, v_i^2 the squared projection of the targets on
    the i-th mode over m, summed over outputs (Bordelon, Canatar & Pehlevan 2020; Canatar et al.
    2021). Both are biased for i near m: the smallest eigenvalues share out the trace of all modes
    that m examples do not resolve. The noise of the labels cannot be told from power in hopeless
    modes; it is counted there, and acts the same.

    Good for tails (`scaling_law`) and for which modes are learned (`eigenlearning`). The sample
    takes the place of the distribution, and n examples out of it are a part n / m of all that
    there is: errors come out too small by about this part, so predictions are made up to m / 10
    only. `estimated_learning_curve` knows the difference, and goes up to n = m.

    Args:
        K: (m, m); of a kernel (m, m, out, out), pass the mean over outputs.
        y: (m,) or (m, out), real.
        modes: list so many and sum up the others as the tail; all by default.

    Raises:
        InvalidInput: a bad kernel, targets that do not fit, or `modes` out of range.
    """
    kernel = kernel_matrix(K, "K")
    if kernel.outputs is not None:
        raise InvalidInput(
            f"K has shape {kernel.shape}: the theory is for a kernel that acts on every output "
            "alike. Pass its mean over outputs, (m, m)."
        )
    labels = check_targets(y, kernel, "y").values
    system, m = kernel.eigensystem, kernel.examples
    count = m if modes is None else modes
    if not 1 <= count <= m:
        raise InvalidInput(f"modes is {modes}, but must lie between 1 and m = {m}.")
    if float(system.values[-1]) < -system.tolerance:
        raise InvalidInput(
            f"K is not positive semi-definite: its smallest eigenvalue is "
            f"{float(system.values[-1]):.3g}. Compute the kernel in float64."
        )
    eigenvalues = torch.where(system.null, 0.0, system.values).clamp(min=0) / m
    power = (system.vectors.mT @ labels).square().sum(dim=1) / m
    return Population(
        eigenvalues=eigenvalues[:count],
        power=power[:count],
        tail_trace=float(eigenvalues[count:].sum()),
        tail_power=float(power[count:].sum()),
        samples=m,
    )
