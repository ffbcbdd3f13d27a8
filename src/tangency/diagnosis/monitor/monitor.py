"""`Monitor`: follows the kernel of a network while it trains, in any training loop."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from tangency.analysis import stability_limit
from tangency.diagnosis.monitor.budget import Budget
from tangency.diagnosis.monitor.course import Course
from tangency.diagnosis.monitor.history import Circumstances, History
from tangency.diagnosis.monitor.observer import Observer
from tangency.diagnosis.monitor.probe import Loss, Probe
from tangency.diagnosis.monitor.replica import Replica
from tangency.errors import InvalidInput, TangencyError
from tangency.examples import Examples

__all__ = ["Monitor", "monitor_checkpoints"]

PROBE = 64
"""Examples that are followed."""


class Monitor:
    """Watches a network learn: its kernel, its outputs and its curvature, on a few examples.

        monitor = tg.Monitor(model, x, y, optimizer=optimizer)
        for step in range(1, steps + 1):
            ...                          # any training step
            monitor.record(step, loss)   # or monitor(step, loss), as a callback
        course = monitor.finish()

    The record of step 0 is made here, so make the monitor before training. A call of `record`
    returns at once unless a record is due. Records are spaced evenly in the logarithm of the step,
    and so that they take at most `overhead` times the time that training takes (exceeded at most
    by what a record takes longer than the one before it). Setting up, with the first record, and
    the record that `finish` makes are not counted; `Course.seconds` has all of them.

    Everything is measured on a copy in evaluation mode: dropout is off, and batch normalisation
    uses its running statistics, which are part of what moves. The network in training keeps
    its mode, gradients, buffers, hooks and random state, and knows nothing of the copy; hooks are
    not run on it (but those by which `torch.nn.utils` computes weights). A network with batch
    normalisation is better watched from when its running statistics have settled on the data, after
    a few steps: otherwise most of the change is theirs. The monitor holds some
    five copies of the parameters, on their device, and T kernels (p, p) on the CPU. What cannot be
    measured at some step is a warning, and training goes on.

    Edge of stability and catapults concern full-batch descent and the loss of the *training* set:
    to find them, pass the training set, and a `probe` that takes all of it in, or enough.

    Args:
        model: any module with one row of real outputs per example; what `torch.compile` and
            `DistributedDataParallel` return is looked through.
        x_probe: n examples, a pytree of tensors.
        y_probe: (n,) or (n, out), real; or what `loss` takes.
        loss: of outputs and targets, the mean over examples; None for the squared loss
            1/(2n) sum_i |f(x_i) - y_i|^2.
        probe: most examples that are followed; drawn at random where there are more.
        optimizer: its learning rate is read at each record, and the curvature that it allows.
        learning_rate: of plain gradient descent, where there is no optimizer object.
        curvature: measure the largest eigenvalue of the Hessian too (extra "curvature"); takes
            some tens of passes through the network a record.
        overhead: share of the training time that records may take; None for no bound.
        per_decade: records between step s and step 10 s, at most.
        seed: of the choice of examples, and of the start of eigenvalue iterations.
        clock: seconds; for tests.

    Raises:
        InvalidInput: bad data, targets that do not fit, a module that cannot be copied or as
            `EmpiricalKernel` refuses it, an argument out of range.
        MissingDependency: `curvature` without curvlinops.
        UnsupportedOperation: `curvature` of a network without (right) second derivatives.
    """

    def __init__(
        self,
        model: nn.Module,
        x_probe: Examples,
        y_probe: Tensor,
        *,
        loss: Loss | None = None,
        probe: int = PROBE,
        optimizer: torch.optim.Optimizer | None = None,
        learning_rate: float | None = None,
        curvature: bool = False,
        overhead: float | None = 0.05,
        per_decade: int = 12,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        began = clock()
        self._budget = Budget(overhead, per_decade, clock)
        if optimizer is not None and learning_rate is not None:
            raise InvalidInput("pass an optimizer or a learning_rate, not both.")
        if learning_rate is not None:
            stability_limit(learning_rate)
        self._optimizer, self._rate = optimizer, learning_rate
        data = Probe.of(x_probe, y_probe, loss, probe, seed)
        self._replica = Replica(model)
        self._model = model
        self._observer = Observer(self._replica, data, curvature=curvature, seed=seed)
        self._history = History(data, self._replica.rounding)
        self._step = 0
        self._peak: Tensor | float | None = None
        self._last: Tensor | float | None = None
        self._history.add(0, self._observer.observe(), self._circumstances())
        # The first observation prepares the kernel: a second one knows what one takes.
        before = clock()
        if overhead is not None:
            self._observer.observe()
        self._setup = clock() - began
        self._final = 0.0
        self._budget.start(clock() - before)

    def record(self, step: int | None = None, loss: Tensor | float | None = None) -> bool:
        """Tell the monitor that `step` optimizer steps have been taken; record if it is due.

        Args:
            step: one more than at the last call if None.
            loss: of training, if at hand: its peaks between records are kept.

        Returns:
            Whether a record was made.

        Raises:
            InvalidInput: a step before that of the last call.
        """
        step = self._step + 1 if step is None else step
        if step < self._step:
            raise InvalidInput(f"step is {step}, but step {self._step} has been recorded before.")
        self._step = step
        if loss is not None:
            self._note(loss)
        if step == 0 or self._history.overflowed is not None or not self._budget.is_due(step):
            return False
        records = len(self._history.steps)
        with self._budget.recording(step):
            self._observe()
        return len(self._history.steps) > records

    __call__ = record

    def finish(self) -> Course:
        """Record the present state, whatever the budget says, and return the course.

        Training may go on, and be finished again.
        """
        history = self._history
        if history.overflowed is None and self._step > history.steps[-1]:
            before = self._budget.clock()
            with self._budget.recording(self._step):
                self._observe()
            taken = self._budget.clock() - before
            self._budget.spent -= taken
            self._final += taken
        return self.course

    @property
    def course(self) -> Course:
        """What has been recorded so far."""
        seconds = {
            "training": self._budget.training - self._final,
            "records": self._budget.spent,
            "setup": self._setup,
        }
        return self._history.course(seconds, self._budget.skipped)

    def __repr__(self) -> str:
        name, count = type(self._model).__name__, len(self._history.steps)
        return f"Monitor({name}, {count} records up to step {self._history.steps[-1]})"

    def _observe(self) -> None:
        self._replica.load(self._model)
        try:
            seen = self._observer.observe()
        except TangencyError as error:  # training goes on
            warnings.warn(f"the monitor has no record of step {self._step}: {error}", stacklevel=3)
            return
        self._history.add(self._step, seen, self._circumstances())
        self._peak = None

    def _note(self, loss: Tensor | float) -> None:
        """Without waiting for the device: tensors stay tensors."""
        now = loss.detach().clone() if isinstance(loss, Tensor) else float(loss)
        if self._last is None and self._step <= 1:  # before the first step
            how = self._history.circumstances[0]
            self._history.circumstances[0] = replace(how, training_loss=float(now))
        peak = self._peak
        if isinstance(now, Tensor) and isinstance(peak, Tensor):
            peak = torch.maximum(peak, now)
        elif peak is None or not float(peak) >= float(now):
            peak = now
        self._last, self._peak = now, peak

    def _circumstances(self) -> Circumstances:
        rate, limit = _step_size(self._optimizer, self._rate)
        last, peak = (math.nan if v is None else float(v) for v in (self._last, self._peak))
        return Circumstances(last, peak, rate, limit)


def monitor_checkpoints(
    model: nn.Module,
    checkpoints: Iterable[tuple[int, Mapping[str, Tensor]]],
    x_probe: Examples,
    y_probe: Tensor,
    *,
    loss: Loss | None = None,
    probe: int = PROBE,
    learning_rate: float | None = None,
    curvature: bool = False,
    seed: int = 0,
) -> Course:
    """The course of a training run from its checkpoints; the first one is the beginning.

    Args:
        model: of the same architecture; its own parameters do not count, and it stays as it is.
        checkpoints: pairs (step, state dict), steps ascending; taken one at a time, so that they
            may be read from disk on the way. Names may carry the prefixes of `torch.compile` and
            `DistributedDataParallel`.
        x_probe: inputs, of which `probe` are followed.
        y_probe: their targets.
        loss: as for `Monitor`, and so are the arguments that follow.
        probe: number of examples.
        learning_rate: that the run was trained with.
        curvature: whether to measure the largest eigenvalue of the Hessian.
        seed: of the choice of examples.

    Raises:
        InvalidInput: as `Monitor`; no checkpoints, steps that do not ascend, or a state dict of
            another architecture.
        MissingDependency: `curvature` without curvlinops.
    """
    began = time.perf_counter()
    data = Probe.of(x_probe, y_probe, loss, probe, seed)
    replica = Replica(model)
    rate, limit = _step_size(None, learning_rate)
    how = Circumstances(learning_rate=rate, stability_limit=limit)
    history, observer = History(data, replica.rounding), None
    for step, state in checkpoints:
        if history.steps and step <= history.steps[-1]:
            raise InvalidInput(f"checkpoint {step} comes after {history.steps[-1]}: sort them.")
        if history.overflowed is not None:
            break
        replica.load_state(state)
        if observer is None:
            observer = Observer(replica, data, curvature=curvature, seed=seed)
        history.add(int(step), observer.observe(), how)
    if not history.steps:
        raise InvalidInput("there are no checkpoints: give pairs (step, state dict).")
    seconds = {"training": 0.0, "records": time.perf_counter() - began, "setup": 0.0}
    return history.course(seconds, 0)


def _step_size(
    optimizer: torch.optim.Optimizer | None, learning_rate: float | None
) -> tuple[float, float]:
    """Learning rate, and the curvature at which descent with it is stable; NaN if unknown."""
    if optimizer is None:
        if learning_rate is None:
            return math.nan, math.nan
        return learning_rate, stability_limit(learning_rate)
    groups = optimizer.param_groups
    rates = {float(group["lr"]) for group in groups}
    rate = rates.pop() if len(rates) == 1 else math.nan
    plain = isinstance(optimizer, torch.optim.SGD) and all(
        group["dampening"] == 0 and group["weight_decay"] == 0 for group in groups
    )
    kinds = {(group.get("momentum", 0.0), group.get("nesterov", False)) for group in groups}
    if not (plain and rate > 0 and len(kinds) == 1):
        return rate, math.nan
    momentum, nesterov = kinds.pop()
    return rate, stability_limit(rate, momentum, nesterov=nesterov)
