"""How targets lie in a kernel: their norm beside that of noise, and what is out of reach."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from tangency.analysis.matrix import Eigensystem, KernelMatrix, Targets
from tangency.errors import InvalidInput

__all__ = ["TargetFit", "target_fit"]


@dataclass(frozen=True)
class TargetFit:
    """Targets against a kernel matrix.

    Attributes:
        rkhs_norm: y^T K^-1 y summed over outputs, the squared norm of the smoothest function
            through the targets; infinite if there is none.
        noise_norm: the same, on average, for random noise of the same power:
            |y|^2 / N * tr K^-1. Infinite for a singular kernel.
        norm_ratio: the first over the second, as the ridge goes to zero: 1 for targets that the
            kernel cannot tell from noise, small for smooth ones. 0 for targets that are zero.
        learning_rate: of the training that the budget counts.
        budget: time (steps) at that rate.
        hopeless_modes: number of modes that are not learned in it: learning time
            n / (learning_rate lambda) beyond the budget, or an eigenvalue that cannot be told from
            zero.
        hopeless_power: fraction of the targets' power in these modes.
    """

    rkhs_norm: float
    noise_norm: float
    norm_ratio: float
    learning_rate: float
    budget: float
    hopeless_modes: int
    hopeless_power: float

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name."""
        return asdict(self)


def target_fit(
    kernel: KernelMatrix, labels: Targets, budget: float, learning_rate: float | None
) -> TargetFit:
    """The norm of the targets, and their power in modes that training does not reach.

    `learning_rate` None takes n / lambda_max, half the largest stable one.
    """
    system = kernel.eigensystem
    largest = float(system.values[0])
    if learning_rate is None:
        learning_rate = kernel.examples / largest if largest > system.tolerance else 1.0
    for name, value in (("budget", budget), ("learning_rate", learning_rate)):
        if not (math.isfinite(value) and value > 0):
            raise InvalidInput(f"{name} is {value}, but must be positive.")
    power = (system.vectors.mT @ kernel.flatten(labels.values)).square().sum(dim=1)
    total = float(power.sum())
    hopeless = system.values <= system.tolerance
    hopeless |= learning_rate * budget * system.values < kernel.examples
    norm, noise, ratio = _norms(system, power, total)
    return TargetFit(
        rkhs_norm=norm,
        noise_norm=noise,
        norm_ratio=ratio,
        learning_rate=learning_rate,
        budget=float(budget),
        hopeless_modes=int(hopeless.sum()),
        hopeless_power=float(power[hopeless].sum()) / total if total > 0 else 0.0,
    )


def _norms(system: Eigensystem, power: Tensor, total: float) -> tuple[float, float, float]:
    """Squared norm of the targets, of noise, and their ratio for a vanishing ridge."""
    null = system.values <= system.tolerance
    if total == 0:
        return 0.0, 0.0, 0.0
    rows = len(power)
    if not bool(null.any()):
        # Relative to the smallest eigenvalue, so that no sum overflows.
        weights = system.values[-1] / system.values
        norm, noise = float(weights @ power), total / rows * float(weights.sum())
        smallest = float(system.values[-1])
        return norm / smallest, noise / smallest, norm / noise
    in_null = float(power[null].sum())
    reachable = bool((power[null] <= system.null_power_limit(total)).all())
    norm = float((power[~null] / system.values[~null]).sum()) if reachable else math.inf
    ratio = 0.0 if reachable else in_null / total * rows / int(null.sum())
    return norm, math.inf, ratio
