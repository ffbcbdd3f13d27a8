"""Curvature against the step: the edge of stability and catapults, read off a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tangency.errors import InvalidInput

__all__ = ["Catapult", "Edge", "EdgeState", "catapults", "edge_of_stability", "stability_limit"]

EdgeState: TypeAlias = Literal["stable", "edge of stability", "above"]

REACHED = 0.95
"""Share of the limit at which the curvature counts as having reached it."""

HOVERING = (0.8, 1.25)
"""Between these multiples of the limit the curvature hovers there."""

FALL = 0.95
"""After a catapult the kernel's largest eigenvalue is at most this share of what it was."""

SPIKE = 1.5
"""A loss this many times the least before it is a spike."""


def stability_limit(
    learning_rate: float, momentum: float = 0.0, *, nesterov: bool = False
) -> float:
    """Largest curvature of a quadratic loss at which descent is stable: 2 / learning_rate.

    With heavy-ball momentum 2 (1 + momentum) / learning_rate, with Nesterov's
    2 (1 + momentum) / ((1 + 2 momentum) learning_rate) (Cohen et al. 2021). For
    full-batch `torch.optim.SGD` without dampening.

    Raises:
        InvalidInput: a learning rate that is not positive, or momentum outside [0, 1).
    """
    if not learning_rate > 0:
        raise InvalidInput(f"learning_rate is {learning_rate}, but must be positive.")
    if not 0 <= momentum < 1:
        raise InvalidInput(f"momentum is {momentum}, but must be at least 0 and below 1.")
    limit = 2 * (1 + momentum) / learning_rate
    return limit / (1 + 2 * momentum) if nesterov else limit


@dataclass(frozen=True)
class Edge:
    """Where the largest curvature stood against what the step allows.

    Attributes:
        state: "stable": it never came near the limit. "edge of stability": it reached the limit
            and then stayed about it (Cohen et al. 2021). "above": it reached the limit and was
            found far from it later: above it (the run may be diverging) or below it again (a
            catapult, or a flatter region).
        first: curvature over the limit at the first record.
        last: the same at the last record.
        reached: step of the first record at the limit; None for "stable".
        typical: median of curvature over limit from then on; None for "stable".
    """

    state: EdgeState
    first: float
    last: float
    reached: int | None
    typical: float | None


def edge_of_stability(steps: Tensor, curvature: Tensor, limit: Tensor | float) -> Edge:
    """Whether training runs at the edge of stability.

    Args:
        steps: (T,) of the records, ascending.
        curvature: (T,) largest eigenvalue of the Hessian of the training loss (sharpness), or of
            the kernel over n, its part that is positive for squared loss.
        limit: (T,) or a number, see `stability_limit`.

    Raises:
        InvalidInput: no records, or series of different lengths.
    """
    ratio = _series(steps, curvature) / torch.as_tensor(limit, dtype=torch.float64)
    at = (ratio >= REACHED).nonzero().flatten()
    first, last = float(ratio[0]), float(ratio[-1])
    if len(at) == 0:
        return Edge("stable", first, last, None, None)
    start = int(at[0])
    typical = float(ratio[start:].median())
    hovers = HOVERING[0] <= typical <= HOVERING[1] and len(ratio) - start >= 3
    state: EdgeState = "edge of stability" if hovers else "above"
    return Edge(state, first, last, int(steps[start]), typical)


@dataclass(frozen=True)
class Catapult:
    """A spike of the loss after which the kernel is flatter (Lewkowycz et al. 2020).

    Attributes:
        start, peak, end: steps of the records before the loss rose, where it was highest (or that
            follows on the peak), and where it was back below where it started.
        growth: loss at the peak over loss at the start.
        before, after: largest eigenvalue of the kernel over n, over what the step allows, at start
            and end: from above 1 (about, see `REACHED`) to less.
    """

    start: int
    peak: int
    end: int
    growth: float
    before: float
    after: float


def catapults(
    steps: Tensor,
    loss: Tensor,
    curvature: Tensor,
    limit: Tensor | float,
    peaks: Tensor | None = None,
) -> tuple[Catapult, ...]:
    """Spikes of the loss that end below where they began, with a flatter kernel than before.

    With a learning rate above 2 / lambda_0 (lambda_0 the largest eigenvalue of the initial kernel
    over n) training does not fit the linearised network; up to about 4 / lambda_0 in the
    theory of a wide two-layer linear network, and further for ReLU networks in experiments, it does
    not diverge either: the loss grows until the curvature has fallen below 2 / learning_rate, and
    falls from there (Lewkowycz et al. 2020). At the edge of stability small ones may follow.

    Args:
        steps: (T,) of the records, ascending.
        loss: (T,).
        curvature: (T,) largest eigenvalue of the kernel over n.
        limit: (T,) or a number, see `stability_limit`.
        peaks: (T,) largest loss since the record before, where the loss is known more often.

    Raises:
        InvalidInput: no records, or series of different lengths.
    """
    ratio = _series(steps, curvature) / torch.as_tensor(limit, dtype=torch.float64)
    losses = _series(steps, loss).tolist()
    highest = losses if peaks is None else _series(steps, peaks).tolist()
    found = []
    i = 0
    while i < len(losses) - 1:
        end = next((j for j in range(i + 1, len(losses)) if losses[j] <= losses[i]), None)
        if end is None:
            break
        peak = max(range(i + 1, end + 1), key=highest.__getitem__)
        before, after = float(ratio[i]), float(ratio[end])
        if highest[peak] >= SPIKE * losses[i] and before >= REACHED and after <= FALL * before:
            start, top, back = (int(steps[k]) for k in (i, peak, end))
            found.append(Catapult(start, top, back, highest[peak] / losses[i], before, after))
        i = end
    return tuple(found)


def _series(steps: Tensor, values: Tensor) -> Tensor:
    if steps.dim() != 1 or len(steps) == 0 or steps.shape != values.shape:
        raise InvalidInput(
            f"steps have shape {tuple(steps.shape)} and values {tuple(values.shape)}: both must "
            "be (T,), with at least one record."
        )
    return values.detach().cpu().double()
