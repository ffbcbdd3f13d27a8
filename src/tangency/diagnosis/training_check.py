"""`training_check`: train a module for real and hold its kernels' predictions against the run."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.analysis import (
    Evidence,
    GradientDescent,
    Thresholds,
    prediction_error,
    verdict,
)
from tangency.analysis.regime import Resamples, bootstrap
from tangency.diagnosis.initial_kernels import empirical_start, infinite_start
from tangency.diagnosis.training_data import TrainingData, check_data
from tangency.diagnosis.training_result import TrainingCheck
from tangency.diagnosis.training_run import (
    LearningRateTooLarge,
    Schedule,
    TrainingRun,
    mean_loss,
    schedule,
    train,
)
from tangency.empirical.function import (
    named,
    refuse_training_effects,
    trainable,
)
from tangency.errors import InvalidInput
from tangency.examples import Examples

__all__ = ["training_check"]

HALVINGS = 4
"""The smallest learning rate that is chosen: the largest stable one, halved so many times."""


def training_check(
    model: nn.Module,
    x: Examples,
    y: Tensor,
    *,
    x_test: Examples | None = None,
    y_test: Tensor | None = None,
    steps: int = 300,
    learning_rate: float | None = None,
    records: int = 60,
    infinite: bool | Literal["auto"] = "auto",
    thresholds: Thresholds | None = None,
) -> TrainingCheck:
    """Train a copy of `model` and lay what its kernels predict beside what happens.

    The copy is trained by full-batch gradient descent, `torch.optim.SGD` without momentum, on the
    loss 1/(2n) sum_i |f(x_i) - y_i|^2. The initial empirical NTK predicts the run of the network's
    linearisation (Lee et al. 2019, eq. 9 with finite steps), the infinite-width NTK that of the
    limit, both from the actual initial outputs. Where training is lazy (Chizat, Oyallon & Bach
    2019) they agree and the kernel stands still.

    Disagreement is measured along the whole run, since two networks that fit the same targets end
    alike on the training set: at each record the distance of the empirical prediction from the
    outputs, over the distance of the outputs from their start, both root mean squares over
    examples, the latter over records too (so that the first steps are not divided by next to
    nothing). The verdict rests on the root mean square over records, on the training or the test
    examples, whichever is larger; a single record in which training jumps does not decide it. Give
    test examples: a network that learns features can still fit its training set as predicted. Its
    uncertainty comes from resampled examples (`tangency.analysis.regime.bootstrap`);
    `failure_time` says at which step the prediction fails.

    As the network trains, the largest eigenvalue of its kernel often grows, at the default learning
    rate up to the edge of stability (Cohen et al. 2021), where the loss jumps and growth ends.
    `explain` says so. A smaller learning rate, with more steps, compares the kernels with training
    away from the edge.

    The kernel (n, n, out, out) is used whole up to `initial_kernels.FULL_SIZE` rows n * out; above
    it, its mean over outputs, as if outputs did not interact. Then `max_learning_rate` is divided
    by how much steeper the whole kernel is on a few examples. Kernel drift and alignment are those
    of the mean over outputs on at most 64 training examples.

    The whole set goes through the module at once. The module stays as it was, and so does the
    global random state. Frozen parameters are not trained; buffers keep their values.

    Args:
        model: any module with one row of real outputs per example, not in the training mode of
            batch normalisation or dropout.
        x: n examples, a pytree of tensors.
        y: (n,) or (n, out), real.
        x_test: m more examples.
        y_test: their targets, if there are any.
        steps: of gradient descent, at least 1.
        learning_rate: positive; None takes half of `max_learning_rate`, and where training diverges
            with that, a quarter, an eighth or a sixteenth.
        records: most steps at which outputs are kept: 0, 1, the last and others between, even in
            the logarithm of the step. At least 2.
        infinite: whether to predict by the infinite-width NTK too; "auto" does so if the module
            has one, and says why not in `infinite_reason`; True raises the reason.
        thresholds: marks of the verdict.

    Raises:
        InvalidInput: bad data, targets that are integers or do not fit the outputs, a module as
            `EmpiricalKernel` refuses it or that cannot be copied, an argument out of range; a
            start without a gradient or without an error; training that diverges (names the
            learning rate and the largest stable one) or loses its gradient.
        UnsupportedOperation: with infinite=True, an operation without a rule.
    """
    _check_arguments(model, steps, learning_rate, records, infinite)
    check_data(x, y, x_test, y_test)
    refuse_training_effects(model)
    trainable(named(model, None))
    with _isolated(model, x):
        network = _copied(model)
        data = TrainingData.of(network, x, y, x_test, y_test)
        empirical = empirical_start(network, data.x, data.x_test, data.y.shape[1])
        limit = infinite_start(network, data.x, data.x_test, infinite)
        descent = GradientDescent(empirical.train, data.y)
        stable = descent.max_learning_rate / empirical.stiffening
        plan = schedule(steps, records, data.y.shape[0])
        trained, rate, run = _trained(network, data, plan, stable, learning_rate)
    # The factorisation, dear for large sets, does not depend on the learning rate.
    descent.learning_rate = rate
    predicted = _predicted(descent, empirical.test_train, data, plan)
    at_limit = None
    if limit.ntk is not None:
        infinite_descent = GradientDescent(limit.ntk, data.y, rate)
        at_limit = _predicted(infinite_descent, limit.ntk_test_train, data, plan)
    actual = _Course.of(run.outputs, run.test_outputs, data)
    errors, test_errors = _prediction_errors(predicted, actual)
    evidence = _evidence(run, errors, test_errors, actual.loss)
    resamples = _resamples(run, predicted, actual)
    return TrainingCheck(
        model=trained,
        learning_rate=rate,
        max_learning_rate=stable,
        kernel_form=empirical.form,
        steps=plan.steps,
        loss=actual.loss,
        loss_empirical=predicted.loss,
        loss_infinite=None if at_limit is None else at_limit.loss,
        test_loss=actual.test_loss,
        test_loss_empirical=predicted.test_loss,
        test_loss_infinite=None if at_limit is None else at_limit.test_loss,
        outputs=actual.outputs,
        outputs_empirical=predicted.outputs,
        outputs_infinite=None if at_limit is None else at_limit.outputs,
        test_outputs=actual.test_outputs,
        test_outputs_empirical=predicted.test_outputs,
        test_outputs_infinite=None if at_limit is None else at_limit.test_outputs,
        prediction_error=errors,
        test_prediction_error=test_errors,
        parameter_movement=run.movement,
        parameter_movement_by_parameter=run.movement_by_parameter,
        kernel_steps=plan.kernel_steps,
        kernel_drift=run.kernel_drift,
        kernel_alignment=run.kernel_alignment,
        probe=plan.probe,
        evidence=evidence,
        verdict=verdict(evidence, thresholds, resamples),
        ntk=empirical.trace,
        ntk_test_train=empirical.trace_test_train,
        ntk_infinite=limit.ntk,
        ntk_infinite_test_train=limit.ntk_test_train,
        nngp_infinite=limit.nngp,
        nngp_infinite_test_train=limit.nngp_test_train,
        infinite_reason=limit.reason,
    )


@dataclass(frozen=True, eq=False)
class _Course:
    """Outputs (T, n, out) and (T, m, out), and their losses, (T,)."""

    outputs: Tensor
    test_outputs: Tensor | None
    loss: Tensor
    test_loss: Tensor | None

    @classmethod
    def of(cls, outputs: Tensor, test_outputs: Tensor | None, data: TrainingData) -> _Course:
        """With the losses on the targets of `data`."""
        test_loss = None
        if test_outputs is not None and data.y_test is not None:
            test_loss = _loss(test_outputs, data.y_test)
        return cls(outputs, test_outputs, _loss(outputs, data.y), test_loss)


def _evidence(
    run: TrainingRun, errors: Tensor, test_errors: Tensor | None, loss: Tensor
) -> Evidence:
    """The state at the end of the run, and the prediction error over all of it."""
    whole = [float(e.square().mean().sqrt()) for e in (errors, test_errors) if e is not None]
    return Evidence(
        kernel_drift=float(run.kernel_drift[-1]),
        kernel_alignment=float(run.kernel_alignment[-1]),
        parameter_movement=float(run.movement[-1]),
        prediction_error=max(whole),
        loss_growth=float(loss[-1] / loss[0]),
    )


def _resamples(run: TrainingRun, predicted: _Course, actual: _Course) -> Resamples:
    pairs = [(predicted.outputs, actual.outputs)]
    if predicted.test_outputs is not None and actual.test_outputs is not None:
        pairs.append((predicted.test_outputs, actual.test_outputs))
    errors = [(_squares(p, a), _squares(a[:1], a)) for p, a in pairs]
    return bootstrap(run.first_kernel, run.last_kernel, errors)


def _squares(first: Tensor, second: Tensor) -> Tensor:
    """(n,) squared distance of outputs (T, n, out), mean over records."""
    return (first.double() - second.double()).square().sum(dim=-1).mean(dim=0)


def _loss(outputs: Tensor, y: Tensor) -> Tensor:
    return mean_loss(outputs.cpu().double(), y.cpu().double())


def _predicted(
    descent: GradientDescent, test_train: Tensor | None, data: TrainingData, plan: Schedule
) -> _Course:
    """The course of the linearised network at the recorded steps."""
    prediction = descent.predict(plan.steps, test_train, data.start, data.start_test)
    return _Course.of(prediction.train, prediction.test, data)


def _prediction_errors(predicted: _Course, actual: _Course) -> tuple[Tensor, Tensor | None]:
    """(T,) on the training and on the test examples.

    Test examples that hardly move (in a part of the input space that training does not reach) are
    measured by the way of the training examples.
    """
    way = _way(actual.outputs)
    errors = _errors(predicted.outputs, actual.outputs, way)
    if predicted.test_outputs is None or actual.test_outputs is None:
        return errors, None
    way = max(way, _way(actual.test_outputs))
    return errors, _errors(predicted.test_outputs, actual.test_outputs, way)


def _way(outputs: Tensor) -> float:
    """Root mean square over records and examples of the distance from the first record."""
    moved = (outputs.double() - outputs[0].double()).square().sum(dim=-1)
    return math.sqrt(float(moved.mean()))


def _errors(predicted: Tensor, actual: Tensor, way: float) -> Tensor:
    whole = way * math.sqrt(actual.shape[1])
    errors = [prediction_error(p, a, whole) for p, a in zip(predicted, actual, strict=True)]
    return torch.tensor(errors, dtype=torch.float64)


def _trained(
    network: nn.Module,
    data: TrainingData,
    plan: Schedule,
    stable: float,
    learning_rate: float | None,
) -> tuple[nn.Module, float, TrainingRun]:
    """A trained copy of `network`, its learning rate and the run.

    `stable` is the largest learning rate for the initial kernel. Half of it is too large for a
    network whose kernel stiffens fast: without a `learning_rate` given, smaller ones are tried.
    """
    advice = (
        "Gradient descent on the initial linearisation is stable below max_learning_rate = "
        f"{stable:.6g}, and the kernel may stiffen on the way: pass a smaller learning_rate."
    )

    def attempt(rate: float) -> tuple[nn.Module, float, TrainingRun]:
        trained = copy.deepcopy(network)
        return trained, rate, train(trained, data.x, data.y, data.x_test, rate, plan, advice)

    if learning_rate is not None:
        return attempt(float(learning_rate))
    for halvings in range(1, HALVINGS):
        with suppress(LearningRateTooLarge):
            return attempt(stable / 2**halvings)
    return attempt(stable / 2**HALVINGS)


@contextmanager
def _isolated(model: nn.Module, x: Examples) -> Iterator[None]:
    """Autograd on, whatever mode the caller is in, and the random state put back after."""
    tensors = (*examples.tensors(x), *model.parameters())
    devices = {t.device for t in tensors if t.device.type == "cuda"}
    with (
        torch.random.fork_rng(devices=sorted(devices, key=str)),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise InvalidInput(
            f"{type(model).__name__} cannot be copied (copy.deepcopy: {error}), and only a copy is "
            "trained: keep tensors that are computed in forward off the module."
        ) from error


def _check_arguments(
    model: nn.Module,
    steps: int,
    learning_rate: float | None,
    records: int,
    infinite: bool | Literal["auto"],
) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model must be a torch.nn.Module, not {type(model).__name__}.")
    for name, value, least in (("steps", steps, 1), ("records", records, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidInput(f"{name} is {value!r}, but must be an integer of at least {least}.")
    if learning_rate is not None and not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InvalidInput(f"learning_rate is {learning_rate}, but must be positive (or None).")
    if infinite not in (True, False, "auto"):
        raise InvalidInput(f"infinite is {infinite!r}; use True, False or 'auto'.")
