"""The study: everything about one network on one data set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tangency.analysis import GradientFlow, spectrum
from tangency.datasets import Dataset
from tangency.diagnosis import Trainability, TrainingCheck, trainability, training_check
from tangency.errors import TangencyError, UnsupportedOperation
from tangency.program import capture
from tangency.study.convergence import WIDTHS, Convergence, converge
from tangency.study.generalization import Generalization, generalize
from tangency.study.networks import Family
from tangency.study.result import Score, Study, score

__all__ = ["study"]


def study(
    data: Dataset,
    family: Family,
    *,
    steps: int = 300,
    learning_rate: float | None = None,
    seed: int = 0,
    widths: tuple[int, ...] = WIDTHS,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Study:
    """Study a network of `family` on `data`: kernels, spectrum, training and scores.

    Args:
        data: see `tangency.datasets.load`.
        family: the network at its own width is trained; others show the convergence to the limit.
        steps: of gradient descent.
        learning_rate: of gradient descent; by default half of the largest that is stable.
        seed: of the network's random start.
        widths: at which the convergence is measured.
        on_stage: called with a few words when each stage begins.

    Raises:
        InvalidInput: a network that does not run on the data, or that diverges.
    """
    began = time.perf_counter()
    on_stage("reading the network")
    model = family.network_for(data.x_train, data.out, seed)
    program, program_reason = _program(family, seed, data)
    on_stage("trainability")
    trainable, trainable_reason = _trainability(model, data)
    on_stage("kernels, prediction and training")
    check = training_check(
        model,
        data.x_train,
        data.y_train,
        x_test=data.x_test,
        y_test=data.y_test,
        steps=steps,
        learning_rate=learning_rate,
    )
    on_stage("spectrum")
    modes = spectrum(check.ntk, data.y_train)
    modes_infinite = None
    if check.ntk_infinite is not None:
        modes_infinite = spectrum(check.ntk_infinite, data.y_train)
    on_stage("kernel regression")
    scores = _scores(check, data)
    on_stage("learning curve and leave-one-out")
    generalization, generalization_reason = _generalization(check, data, seed)
    convergence, convergence_reason = _convergence(family, data, check, widths, on_stage)
    return Study(
        data=data,
        network=family.name,
        network_note=family.note,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        program=program,
        program_reason=program_reason,
        check=check,
        spectrum=modes,
        spectrum_infinite=modes_infinite,
        convergence=convergence,
        convergence_reason=convergence_reason,
        generalization=generalization,
        generalization_reason=generalization_reason,
        trainability=trainable,
        trainability_reason=trainable_reason,
        scores=scores,
        chance=_chance(data),
        seed=seed,
        seconds=time.perf_counter() - began,
    )


def _program(family: Family, seed: int, data: Dataset) -> tuple[str | None, str | None]:
    try:
        return str(capture(family.network(seed), data.x_train[:2])), None
    except UnsupportedOperation as error:
        return None, str(error)


def _trainability(model: nn.Module, data: Dataset) -> tuple[Trainability | None, str | None]:
    try:
        return trainability(model, data.x_train, data.y_train), None
    except TangencyError as error:
        return None, str(error)


def _generalization(
    check: TrainingCheck, data: Dataset, seed: int
) -> tuple[Generalization | None, str | None]:
    try:
        return generalize(check, data, seed), None
    except TangencyError as error:
        return None, str(error)


def _convergence(
    family: Family,
    data: Dataset,
    check: TrainingCheck,
    widths: tuple[int, ...],
    on_stage: Callable[[str], None],
) -> tuple[Convergence | None, str | None]:
    if family.width is None:
        return None, "the network's factory takes no width"
    if check.infinite_reason is not None:
        return None, check.infinite_reason
    try:
        found = converge(
            family,
            data.x_train,
            widths=widths,
            on_width=lambda width: on_stage(f"convergence, width {width}"),
        )
    except TangencyError as error:
        return None, str(error)
    return found, None


def _scores(check: TrainingCheck, data: Dataset) -> tuple[Score, ...]:
    """The network, its kernel's prediction of it, and where three kernels end."""
    steps = f"{int(check.steps[-1])} steps"
    assert check.test_outputs is not None
    assert check.test_outputs_empirical is not None
    scores = [
        score(
            "trained network",
            f"The real network after {steps} of gradient descent.",
            check.test_outputs[-1],
            data,
        ),
        score(
            "its prediction",
            f"What the kernel of the untrained network says it will answer after {steps}.",
            check.test_outputs_empirical[-1],
            data,
        ),
    ]
    limits = (
        (
            "empirical NTK regression",
            "Kernel regression with the untrained network's own kernel, from a start at zero.",
            check.ntk,
            check.ntk_test_train,
        ),
        (
            "infinite NTK regression",
            "The mean over infinitely wide networks, trained without end.",
            check.ntk_infinite,
            check.ntk_infinite_test_train,
        ),
        (
            "NNGP regression",
            "Infinitely wide networks of which only the last layer is trained.",
            check.nngp_infinite,
            check.nngp_infinite_test_train,
        ),
    )
    for name, gloss, kernel, cross in limits:
        if kernel is not None and cross is not None:
            scores.append(score(name, gloss, _regression(kernel, cross, data.y_train), data))
    return tuple(scores)


def _regression(kernel: Tensor, cross: Tensor, targets: Tensor) -> Tensor:
    """Outputs (m, out) of kernel regression without ridge: training without end from zero."""
    outputs = GradientFlow(kernel, targets).predict(math.inf, K_test_train=cross).test
    assert outputs is not None
    return outputs


def _chance(data: Dataset) -> float:
    """Accuracy of always answering with the commonest training class; R^2 of the training mean."""
    if data.labels_train is None or data.labels_test is None:
        return 0.0
    commonest = torch.mode(data.labels_train).values
    return float((data.labels_test == commonest).double().mean())
