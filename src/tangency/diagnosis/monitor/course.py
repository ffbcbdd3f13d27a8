"""`Course`: what a training run did to its network, record by record."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangency.analysis.regime import (
    Catapult,
    Edge,
    Evidence,
    Thresholds,
    Verdict,
    bootstrap,
    catapults,
    edge_of_stability,
    failure_time,
    verdict,
)
from tangency.diagnosis.monitor import words
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Course"]


@dataclass(frozen=True, eq=False, repr=False)
class Course:
    """A training run as its kernel saw it: T records on p probe examples.

    Series are float64 on the CPU. NaN stands where something was not measured. The network is
    measured in evaluation mode, whatever mode it is trained in.

    Attributes:
        steps: (T,) int64, optimizer steps taken; the first record is the beginning.
        loss: (T,) on the probe.
        training_loss: (T,) as given to `record`; a first one given by step 1 stands for the start.
        training_loss_peak: (T,) the largest one given since the record before.
        kernels: (T, p, p) empirical NTK, mean over outputs.
        outputs, linearized: (T, p, out) of the network, and of its linearisation about the start
            at the same parameters, f(theta_0) + J(theta_0) (theta - theta_0).
        drift: (T,) relative change of the kernel since the start, |K_t - K_0| / |K_0|.
        velocity: (T,) relative change of the kernel per step since the record before,
            |K_t - K_s| / ((t - s) |K_s|).
        turning: (T,) the same of its direction, (1 - cos(K_s, K_t)) / (t - s), the kernel velocity
            of Fort et al. (2020).
        alignment_initial, alignment_final: (T,) cosine of the angle to the first and to the last
            kernel.
        target_alignment: (T,) alignment with the targets, centred (Cortes et al. 2012).
        effective_rank: (T,) of the kernel (Roy & Vetterli 2007).
        kernel_curvature: (T,) largest eigenvalue of the kernel of all outputs, over p: the
            curvature of the squared loss in the linearised network (of another loss it is not).
        sharpness: (T,) largest eigenvalue of the Hessian of the loss on the probe.
        stability_limit: (T,) curvature at which descent with the present learning rate is stable,
            2 / learning_rate without momentum; known for plain SGD.
        learning_rate: (T,).
        movement: (T,) |theta_t - theta_0| / |theta_0| over all trainable parameters.
        movement_by_layer: the same for the parameters of each module, (T,).
        linearization_error: (T,) |linearized - f| / |f - f_0| over the probe; 0 at the start, and
            where the outputs have not moved by more than rounding.
        probe: (p,) int64, which of the examples given are followed.
        overflowed: step at which parameters, outputs or kernel were no longer finite, None if they
            stayed so; nothing is recorded from there on.
        seconds: of training, of records, and of setting up with the first record.
        skipped: calls at which a record was due by its step, but not by the budget of time.
        squared: whether the loss is the squared loss.
    """

    steps: Tensor
    loss: Tensor
    training_loss: Tensor
    training_loss_peak: Tensor
    kernels: Tensor
    outputs: Tensor
    linearized: Tensor
    drift: Tensor
    velocity: Tensor
    turning: Tensor
    alignment_initial: Tensor
    alignment_final: Tensor
    target_alignment: Tensor
    effective_rank: Tensor
    kernel_curvature: Tensor
    sharpness: Tensor
    stability_limit: Tensor
    learning_rate: Tensor
    movement: Tensor
    movement_by_layer: dict[str, Tensor]
    linearization_error: Tensor
    probe: Tensor
    overflowed: int | None
    seconds: dict[str, float]
    skipped: int
    squared: bool

    def verdict(
        self, thresholds: Thresholds | None = None, *, resamples: int = 1000, seed: int = 0
    ) -> Verdict:
        """The regime at the last record, with an uncertainty from resampled probe examples.

        The prediction error is the last `linearization_error`. (That of `training_check` compares
        with what the initial kernel predicts of the whole run, which needs full-batch descent.)

        Raises:
            InvalidInput: there is only the first record and nothing overflowed.
        """
        if len(self.steps) < 2 and self.overflowed is None:
            raise InvalidInput(
                "there is only the record of the start: train, call record(step), and finish()."
            )
        growth = self.loss_growth
        evidence = Evidence(
            kernel_drift=float(self.drift[-1]),
            kernel_alignment=float(self.alignment_initial[-1]),
            parameter_movement=float(self.movement[-1]),
            prediction_error=float(self.linearization_error[-1]),
            loss_growth=None if math.isnan(growth) else growth,
        )
        missed, moved = self._squares(-1)
        if len(self.steps) < 2 or resamples == 0 or not bool(moved.any()):
            return verdict(evidence, thresholds)
        found = bootstrap(
            self.kernels[0], self.kernels[-1], [(missed, moved)], resamples=resamples, seed=seed
        )
        return verdict(evidence, thresholds, found)

    @property
    def loss_growth(self) -> float:
        """Loss at the last record over that at the first, of training where it was given.

        Infinite for a run that overflowed, NaN for one that began at zero.
        """
        if self.overflowed is not None:
            return math.inf
        series = self.training_loss[torch.isfinite(self.training_loss)]
        series = series if len(series) > 1 else self.loss
        first, last = float(series[0]), float(series[-1])
        return last / first if first > 0 and last >= 0 else math.nan

    def failure_time(self, fraction: float = 0.1) -> int | None:
        """First recorded step at which the linearisation error exceeds `fraction`; None if never.

        From there on the network is not its linearisation any more, and what its initial kernel
        predicts fails. The moment lies between this record and the one before.

        Raises:
            InvalidInput: a fraction that is not positive.
        """
        return failure_time(self.steps, self.linearization_error, fraction)

    def edge(self) -> Edge | None:
        """Whether training ran at the edge of stability (Cohen et al. 2021).

        By the sharpness where it was measured, else, for squared loss, by the kernel's curvature;
        None without a stability limit.
        """
        curvature = self._curvature
        known = torch.isfinite(curvature) & torch.isfinite(self.stability_limit)
        if not bool(known.any()):
            return None
        return edge_of_stability(self.steps[known], curvature[known], self.stability_limit[known])

    def catapults(self) -> tuple[Catapult, ...]:
        """Spikes of the loss with a flatter kernel after them (Lewkowycz et al. 2020).

        Squared loss only. Peaks between records are seen where `record` is given the loss.
        """
        known = torch.isfinite(self.stability_limit) & torch.isfinite(self.kernel_curvature)
        if not self.squared or not bool(known.any()):
            return ()
        series = torch.where(torch.isfinite(self.training_loss), self.training_loss, self.loss)
        peaks = torch.where(
            torch.isfinite(self.training_loss_peak), self.training_loss_peak, self.loss
        )
        return catapults(
            self.steps[known],
            series[known],
            self.kernel_curvature[known],
            self.stability_limit[known],
            peaks[known],
        )

    def explain(self) -> str:
        """The verdict and what happened on the way, in plain sentences, one a line."""
        return words.explain(self)

    def figure(self) -> Figure:
        """Eight panels over the steps.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        from tangency.diagnosis.monitor.figure import figure

        return figure(self)

    def to_dict(self) -> dict[str, Any]:
        """All series by name, and the verdict as plain numbers."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        told = len(self.steps) > 1 or self.overflowed is not None
        return {**values, "verdict": self.verdict().to_dict() if told else None}

    def __repr__(self) -> str:
        return words.table(self)

    @property
    def _curvature(self) -> Tensor:
        if bool(torch.isfinite(self.sharpness).any()) or not self.squared:
            return self.sharpness
        return self.kernel_curvature

    def _squares(self, record: int) -> tuple[Tensor, Tensor]:
        """(p,) squared miss of the linearisation and squared way of the outputs."""
        now = self.outputs[record]
        missed = (self.linearized[record] - now).square().sum(dim=1)
        return missed, (now - self.outputs[0]).square().sum(dim=1)
