"""How fast the kernel of a finite network approaches its infinite-width limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tangency.empirical import EmpiricalKernel
from tangency.infinite import InfiniteKernel
from tangency.study.networks import Family

__all__ = ["Convergence", "converge"]

WIDTHS = (32, 64, 128, 256, 512, 1024)
REPETITIONS = 8
EXAMPLES = 40
NETWORK_SEEDS = 1000
"""Seeds of the repetitions begin here, away from that of the network that is trained."""


@dataclass(frozen=True, eq=False, repr=False)
class Convergence:
    """Relative distances of empirical NTKs from their infinite-width limits.

    Attributes:
        widths: (w,) int64.
        errors: (w, r) relative Frobenius distance |K - K_inf| / |K_inf| of r networks a width,
            K the mean over outputs. Each width has its own limit, in which the factors that grow
            with width (standard parametrisation) are those of the network.
        examples: that the kernels are taken on.
    """

    widths: Tensor
    errors: Tensor
    examples: int

    @property
    def mean(self) -> Tensor:
        """(w,) mean error over the repetitions."""
        return self.errors.mean(dim=1)

    @property
    def slope(self) -> float:
        """Exponent of the power of width that fits the errors; theory says -1/2."""
        x, y = self.widths.double().log(), self.mean.double().log()
        x = x - x.mean()
        return float((x * y).sum() / x.square().sum())

    @property
    def guide(self) -> Tensor:
        """(w,) the line c / sqrt(width) that fits the errors best in logarithms."""
        roots = self.widths.double().sqrt()
        level = (self.mean.double() * roots).log().mean().exp()
        return level / roots

    def to_dict(self) -> dict[str, Any]:
        """Attributes and the fitted slope by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"slope": self.slope}

    def __repr__(self) -> str:
        first, last = float(self.mean[0]), float(self.mean[-1])
        return (
            f"Convergence(widths {int(self.widths[0])} to {int(self.widths[-1])}: relative error "
            f"{first:.3g} to {last:.3g}, slope {self.slope:.2f})"
        )


def converge(
    family: Family,
    x: Tensor,
    *,
    widths: tuple[int, ...] = WIDTHS,
    repetitions: int = REPETITIONS,
    on_width: Callable[[int], None] = lambda width: None,
) -> Convergence:
    """Empirical kernels of freshly drawn networks against the limit, over several widths.

    Args:
        family: with a width.
        x: (n, features); at most 40 examples, spread evenly over them, are used.
        widths: ascending, at least two.
        repetitions: networks of each width.
        on_width: called before each width.

    Raises:
        UnsupportedOperation: the family has no infinite-width limit that is known.
    """
    chosen = torch.linspace(0, len(x) - 1, min(EXAMPLES, len(x))).round().long()
    probe = x[chosen]
    errors = torch.empty(len(widths), repetitions, dtype=torch.float64)
    for i, width in enumerate(widths):
        on_width(width)
        first = family.network(NETWORK_SEEDS, width)
        limit = InfiniteKernel(first, probe[:2], init=family.init).ntk(probe)
        kernel = EmpiricalKernel(first)
        for r in range(repetitions):
            if r:
                drawn = family.network(NETWORK_SEEDS + r, width)
                first.load_state_dict(drawn.state_dict())
            errors[i, r] = torch.linalg.norm(kernel.ntk(probe) - limit) / torch.linalg.norm(limit)
    return Convergence(torch.tensor(widths), errors, len(probe))
