"""What depth does to training: the verdict and its numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from tangency.diagnosis.trainability.layers import LayerSignals
from tangency.diagnosis.trainability.mean_field import MeanField
from tangency.diagnosis.trainability.propagation import Propagation

__all__ = ["DepthLimits", "Judgement", "State", "judge_block", "judge_layers"]

State: TypeAlias = Literal[
    "trainable",
    "ordered",
    "chaotic",
    "vanishing gradients",
    "exploding gradients",
    "signal explodes",
    "saturating",
    "dead units",
]
"""ordered: inputs become alike and gradients vanish; chaotic: like inputs become unlike and
gradients explode."""


EQUAL = 1e-9
"""1 - c of examples that count as equal."""


@dataclass(frozen=True)
class DepthLimits:
    """Marks of the verdict.

    Attributes:
        scales: depth scales that a trainable network may have: squared gradients change by at
            most e^scales through all blocks. Six, after Schoenholz et al. (2017), who find
            networks trainable up to some six times xi_c.
        separation: smallest 1 - c after the blocks, over that before.
        signal: largest factor by which squared lengths may change.
    """

    scales: float = 6.0
    separation: float = math.exp(-6.0)
    signal: float = 1e12


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on.

    Attributes:
        state: the verdict in a word.
        reason: in a sentence.
        gradient: ln of the factor by which squared gradients change from the last block to the
            first; NaN if no block was judged.
        separation: 1 - c after the blocks over 1 - c before; NaN likewise.
        signal: squared length after the blocks over that before; NaN likewise.
    """

    state: State
    reason: str
    gradient: float = math.nan
    separation: float = math.nan
    signal: float = math.nan

    @property
    def trainable(self) -> bool:
        """Whether nothing stands against training."""
        return self.state == "trainable"

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}"


def judge_block(theory: MeanField, through: Propagation, limits: DepthLimits) -> Judgement:
    """The verdict on a repeated block, from the phase and from its actual depth."""
    depth = len(through.gains)
    gradient = through.gradient
    apart = 1 - through.correlations
    # Examples that are equal from the start say nothing.
    separation = float(apart[-1] / apart[0]) if float(apart[0]) > EQUAL else math.nan
    signal = float(through.lengths[-1] / through.lengths[0].clamp(min=1e-300))
    state, reason = _state(theory, depth, gradient, separation, signal, limits)
    return Judgement(state, reason, gradient, separation, signal)


def _state(
    theory: MeanField,
    depth: int,
    gradient: float,
    separation: float,
    signal: float,
    limits: DepthLimits,
) -> tuple[State, str]:
    times = f"squared gradients change by {_factor(gradient)} through {depth} blocks"
    alike = separation < limits.separation
    if gradient < -limits.scales:
        if alike:
            return (
                "ordered",
                f"{times}, and inputs become alike (1 - c falls to {separation:.2g} of it)",
            )
        return "vanishing gradients", times
    if gradient > limits.scales:
        if theory.phase == "chaotic" and theory.correlation < 1:
            return (
                "chaotic",
                f"{times}, and like inputs become unlike (c* = {theory.correlation:.3g})",
            )
        return "exploding gradients", times
    if not signal < limits.signal:
        return "signal explodes", f"squared lengths grow {signal:.2g}-fold through {depth} blocks"
    if alike:
        return "ordered", (
            f"inputs become alike: 1 - c falls to {separation:.2g} of it through {depth} blocks"
        )
    return "trainable", f"{times}, and inputs stay apart (1 - c goes to {separation:.2g} of it)"


def judge_layers(signals: LayerSignals) -> Judgement:
    """The verdict by the measured layers alone: the first kind of problem by weight."""
    found: dict[str, list[str]] = {}
    for problem in signals.problems:
        found.setdefault(problem.kind, []).append(str(problem))
    ranks: tuple[tuple[str, State], ...] = (
        ("signal explodes", "signal explodes"),
        ("dead", "dead units"),
        ("saturating", "saturating"),
        ("exploding", "exploding gradients"),
        ("vanishing", "vanishing gradients"),
        ("signal lost", "ordered"),
        ("inputs alike", "ordered"),
    )
    for kind, state in ranks:
        if kind in found:
            more = len(found[kind]) - 1
            return Judgement(state, found[kind][0] + (f" (and {more} more)" if more else ""))
    return Judgement(
        "trainable",
        f"no layer is out of bounds (gradients of layers differ {signals.gradient_range:.2g}-fold)",
    )


def _factor(log: float) -> str:
    if abs(log) < math.log(1000):
        return f"a factor {math.exp(log):.3g}"
    return f"a factor 10^{log / math.log(10):.1f}"
