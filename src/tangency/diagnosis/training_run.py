"""A real training run: full-batch gradient descent, with records along the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tangency import examples, tiles
from tangency.analysis import alignment, kernel_drift, parameter_movement
from tangency.empirical import EmpiricalKernel
from tangency.empirical.function import evaluate, trainable
from tangency.errors import InvalidInput
from tangency.examples import Examples

__all__ = ["LearningRateTooLarge", "Schedule", "TrainingRun", "mean_loss", "schedule", "train"]

KERNEL_RECORDS = 8
"""Records at which the kernel is computed again."""

PROBE = 64
"""Training examples, spread evenly over the set, whose kernel is followed."""

EXPLOSION = 1e6
"""Growth of the loss that counts as divergence at once, before anything overflows."""


class LearningRateTooLarge(InvalidInput):
    """Training diverged or lost its gradient."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """What is recorded when.

    Attributes:
        steps: (T,) int64, ascending from 0 to the last step.
        kernel_steps: (K,) int64, those of `steps` at which the kernel is computed.
        probe: (p,) int64, the training examples that it is computed on.
    """

    steps: Tensor
    kernel_steps: Tensor
    probe: Tensor


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """What was recorded; shapes as in `TrainingCheck`.

    `first_kernel` and `last_kernel` are those of the probe, (p, p).
    """

    outputs: Tensor
    test_outputs: Tensor | None
    movement: Tensor
    movement_by_parameter: dict[str, float]
    kernel_drift: Tensor
    kernel_alignment: Tensor
    first_kernel: Tensor
    last_kernel: Tensor


def schedule(steps: int, records: int, n: int) -> Schedule:
    """At most `records` steps, 0, 1 and the last among them, even in the logarithm of the step."""
    later = np.geomspace(1, steps, records - 1) if records > 2 else np.array([steps])
    grid = np.unique(np.append(0, later.round())).astype(np.int64)
    chosen = np.unique(np.linspace(0, len(grid) - 1, KERNEL_RECORDS).round()).astype(np.int64)
    probe = np.linspace(0, n - 1, min(n, PROBE)).round().astype(np.int64)
    return Schedule(torch.from_numpy(grid), torch.from_numpy(grid[chosen]), torch.from_numpy(probe))


def mean_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """1/(2n) sum_i |f(x_i) - y_i|^2 of outputs (..., n, out) for targets (n, out)."""
    return (outputs - y).square().sum(dim=(-2, -1)) / (2 * y.shape[0])


def train(
    model: nn.Module,
    x: Examples,
    y: Tensor,
    x_test: Examples | None,
    learning_rate: float,
    plan: Schedule,
    advice: str,
) -> TrainingRun:
    """Train `model` in place by `torch.optim.SGD`, on the whole set at every step.

    Buffers stay at their values, as they do in the kernel.

    Args:
        model: its trainable parameters move; gradients are cleared at the end.
        x, y: n examples and targets (n, out) in the dtype of the outputs.
        x_test: m examples whose outputs are recorded.
        learning_rate: positive.
        plan: what is recorded when.
        advice: what to do about divergence, the end of the message.

    Raises:
        LearningRateTooLarge: training diverges (the loss is not finite, grows a millionfold, or
            ends above where it began), or arrives where the network has no gradient left.
    """
    return _Training(model, x, y, x_test, learning_rate, advice).run(plan)


class _Training:
    """A module on its way, and the records so far."""

    def __init__(
        self,
        model: nn.Module,
        x: Examples,
        y: Tensor,
        x_test: Examples | None,
        learning_rate: float,
        advice: str,
    ) -> None:
        self.model, self.x, self.y, self.x_test = model, x, y, x_test
        self.parameters = trainable(dict(model.named_parameters()))
        self.start = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.SGD(self.parameters.values(), lr=learning_rate)
        self.verb = f"training with learning_rate {learning_rate:.6g}"
        self.advice = advice
        self.step = 0
        self.losses: list[float] = []
        self.outputs: list[Tensor] = []
        self.test_outputs: list[Tensor] = []
        self.movement: list[float] = []
        # A loss of this size is ordinary however small the first one was.
        self.scale = float(mean_loss(torch.zeros_like(y), y))

    def run(self, plan: Schedule) -> TrainingRun:
        kernel = EmpiricalKernel(self.model)
        probe = examples.take(self.x, plan.probe.to(self.y.device))
        kernels = []
        self._record()
        # A bar for each stretch between kernels: they show bars of their own.
        for stop in plan.kernel_steps.tolist():
            stretch = plan.steps[(plan.steps > self.step) & (plan.steps <= stop)].tolist()
            with tiles.progress(f"training to step {stop}", stop - self.step) as advance:
                for record in stretch:
                    while self.step < record:
                        self._descend()
                        advance()
                    self._record()
            kernels.append(kernel.ntk(probe))
            self._refuse_dead(kernels[-1])
        self._refuse_growth()
        self.optimizer.zero_grad(set_to_none=True)
        return TrainingRun(
            outputs=torch.stack(self.outputs),
            test_outputs=torch.stack(self.test_outputs) if self.test_outputs else None,
            movement=torch.tensor(self.movement, dtype=torch.float64),
            movement_by_parameter={name: self._moved([name]) for name in self.parameters},
            kernel_drift=_series(kernel_drift(kernels[0], k) for k in kernels),
            kernel_alignment=_series(alignment(kernels[0], k) for k in kernels),
            first_kernel=kernels[0],
            last_kernel=kernels[-1],
        )

    def _descend(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = mean_loss(evaluate(self.model, self.x), self.y)
        loss.backward()
        self.optimizer.step()
        self.step += 1

    def _record(self) -> None:
        with torch.no_grad():
            self.outputs.append(evaluate(self.model, self.x))
            if self.x_test is not None:
                self.test_outputs.append(evaluate(self.model, self.x_test))
        self.losses.append(float(mean_loss(self.outputs[-1].double(), self.y.double())))
        self.movement.append(self._moved(self.parameters))
        if not self.losses[-1] <= EXPLOSION * max(self.losses[0], self.scale):
            raise self._diverged()

    def _moved(self, names: Iterable[str]) -> float:
        """|theta - theta_0| / |theta_0| of the parameters `names`."""
        return parameter_movement({name: self.start[name] for name in names}, self.parameters)

    def _diverged(self) -> LearningRateTooLarge:
        return LearningRateTooLarge(
            f"{self.verb} diverged: the loss went from {self.losses[0]:.3g} to "
            f"{self.losses[-1]:.3g} by step {self.step}. {self.advice}"
        )

    def _refuse_growth(self) -> None:
        rounding = torch.finfo(self.y.dtype).eps * self.scale
        if self.losses[-1] > self.losses[0] + rounding:
            raise self._diverged()

    def _refuse_dead(self, kernel: Tensor) -> None:
        if not bool(kernel.any()):
            raise LearningRateTooLarge(
                f"{self.verb} left no gradient: at step {self.step} the empirical NTK is zero on "
                f"{kernel.shape[0]} training examples (dead units?). {self.advice}"
            )


def _series(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
