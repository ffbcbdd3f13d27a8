"""Observations collected, and a course made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tangency.analysis import (
    KernelMatrix,
    alignment,
    kernel_drift,
    kernel_matrix,
    kernel_velocity,
    spectrum,
    target_alignment,
)
from tangency.diagnosis.monitor.course import Course
from tangency.diagnosis.monitor.observer import Observation
from tangency.diagnosis.monitor.probe import Probe
from tangency.errors import InvalidInput

__all__ = ["Circumstances", "History"]

ROUNDING = 100
"""Outputs that moved by less than so many units of rounding have not moved."""


@dataclass(frozen=True)
class Circumstances:
    """What the training loop says of a record; NaN where it does not.

    Attributes:
        training_loss, training_loss_peak: the loss now, and the largest since the last record.
        learning_rate, stability_limit: of the optimizer.
    """

    training_loss: float = math.nan
    training_loss_peak: float = math.nan
    learning_rate: float = math.nan
    stability_limit: float = math.nan


@dataclass(eq=False)
class History:
    """Observations so far of the examples `probe`, by a network of the given `rounding`."""

    probe: Probe
    rounding: float
    steps: list[int] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    circumstances: list[Circumstances] = field(default_factory=list)
    overflowed: int | None = None

    def add(self, step: int, seen: Observation | None, how: Circumstances) -> None:
        """None is a network whose numbers are not finite."""
        if seen is None:
            if not self.observations:
                raise InvalidInput("the parameters of the model are not finite at the start.")
            self.overflowed = step
            return
        self.steps.append(step)
        self.observations.append(seen)
        self.circumstances.append(how)

    def course(self, seconds: dict[str, float], skipped: int) -> Course:
        """All series; the last record stands for the end."""
        seen, how = self.observations, self.circumstances
        matrices = [kernel_matrix(o.kernel) for o in seen]
        outputs = torch.stack([o.outputs for o in seen])
        linearized = torch.stack([o.linearized for o in seen])
        layers = seen[0].movement_by_layer
        return Course(
            steps=torch.tensor(self.steps),
            loss=_series([o.loss for o in seen]),
            training_loss=_series([c.training_loss for c in how]),
            training_loss_peak=_series([c.training_loss_peak for c in how]),
            kernels=torch.stack([o.kernel for o in seen]),
            outputs=outputs,
            linearized=linearized,
            drift=_series([_drift(matrices[0], k) for k in matrices]),
            velocity=self._velocity(matrices, direction_only=False),
            turning=self._velocity(matrices, direction_only=True),
            alignment_initial=_series([_alignment(matrices[0], k) for k in matrices]),
            alignment_final=_series([_alignment(k, matrices[-1]) for k in matrices]),
            target_alignment=self._target_alignment(matrices, outputs.shape[2]),
            effective_rank=_series([spectrum(k).effective_rank for k in matrices]),
            kernel_curvature=_series([o.kernel_curvature for o in seen]),
            sharpness=_series([o.sharpness for o in seen]),
            stability_limit=_series([c.stability_limit for c in how]),
            learning_rate=_series([c.learning_rate for c in how]),
            movement=_series([o.movement for o in seen]),
            movement_by_layer={
                name: _series([o.movement_by_layer[name] for o in seen]) for name in layers
            },
            linearization_error=linearization_error(outputs, linearized, self.rounding),
            probe=self.probe.index,
            overflowed=self.overflowed,
            seconds=seconds,
            skipped=skipped,
            squared=self.probe.is_squared,
        )

    def _velocity(self, kernels: list[KernelMatrix], *, direction_only: bool) -> Tensor:
        found = [math.nan]
        for i in range(1, len(kernels)):
            before, now = kernels[i - 1], kernels[i]
            duration = self.steps[i] - self.steps[i - 1]
            if not bool(before.matrix.any()) or (direction_only and not bool(now.matrix.any())):
                found.append(math.nan)
                continue
            found.append(kernel_velocity(before, now, duration, direction_only=direction_only))
        return _series(found)

    def _target_alignment(self, kernels: list[KernelMatrix], out: int) -> Tensor:
        y = self.probe.columns(out)
        if y is None:
            return torch.full((len(kernels),), math.nan, dtype=torch.float64)
        return _series([_centred_alignment(kernel, y) for kernel in kernels])


def linearization_error(outputs: Tensor, linearized: Tensor, rounding: float) -> Tensor:
    """(T,) |linearized - f| / |f - f_0| over examples and outputs; 0 where nothing moved."""
    missed = (linearized - outputs).flatten(1).norm(dim=1)
    moved = (outputs - outputs[0]).flatten(1).norm(dim=1)
    still = moved <= ROUNDING * rounding * outputs.flatten(1).norm(dim=1)
    return torch.where(still, 0.0, missed / torch.where(still, 1.0, moved))


def _centred_alignment(kernel: KernelMatrix, y: Tensor) -> float:
    """NaN where kernel or targets are the same for all examples, or zero."""
    try:
        return target_alignment(kernel, y, centered=True)
    except InvalidInput:
        return math.nan


def _drift(first: KernelMatrix, now: KernelMatrix) -> float:
    return kernel_drift(first, now) if bool(first.matrix.any()) else 0.0


def _alignment(first: KernelMatrix, second: KernelMatrix) -> float:
    """A kernel that is zero (dead units) has no direction left, and is aligned with nothing."""
    if bool(first.matrix.any()) and bool(second.matrix.any()):
        return alignment(first, second)
    return 0.0


def _series(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
