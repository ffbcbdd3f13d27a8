"""What the report says: sentences with the numbers of the study filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tangency.report.generalization import generalization_text, held_out_text
from tangency.report.trainability import trainability_text
from tangency.study import Score, Study

__all__ = ["everything", "headline", "number"]


@dataclass(frozen=True)
class Tile:
    """A key number."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Measure:
    """One line of evidence for the verdict."""

    name: str
    value: str
    meaning: str


def everything(study: Study) -> dict[str, Any]:
    """All sentences and numbers of the page by the names that the template knows."""
    found = study.generalization
    return {
        "title": f"How a network learns {study.data.name}",
        "headline": headline(study),
        "subject": _subject(study),
        "tiles": _tiles(study),
        "network_text": _network(study),
        "kernel_text": _kernels(study),
        "convergence_text": _convergence(study),
        "spectrum_text": _spectrum(study),
        "power_text": _power(study),
        "training_text": _training(study),
        "outputs_text": _OUTPUTS,
        "scores_text": _scores(study),
        "generalization_text": _generalization(study),
        "trainability_text": _trainability(study),
        "held_out_text": "" if found is None else held_out_text(found),
        "measures": _measures(study),
        "unit": "accuracy" if study.data.classes else "R²",
        "score_rows": [(s, _shown(s), 100 * min(1.0, max(0.0, s.value))) for s in study.scores],
        "number": number,
    }


def number(value: float) -> str:
    """Three digits, without an exponent where it can be avoided."""
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.2e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def headline(study: Study) -> str:
    """The verdict in two sentences."""
    evidence = study.check.evidence
    error, drift = f"{evidence.prediction_error:.1%}", f"{evidence.kernel_drift:.1%}"
    if study.check.regime == "lazy":
        return (
            f"Training barely changed how this network works: its kernel moved by {drift}. The "
            f"kernel of the untrained network foretold the run; it typically missed by {error} of "
            "the way that the outputs went."
        )
    if study.check.regime == "between":
        return (
            f"The kernel of the untrained network describes training roughly: it typically missed "
            f"by {error} of the way that the outputs went, while the kernel moved by {drift}."
        )
    return (
        f"Training changed the network itself: its kernel moved by {drift}, and what the untrained "
        f"network's kernel foretold typically missed by {error} of the way that the outputs went."
    )


def _subject(study: Study) -> str:
    data = study.data
    kind = f"{len(data.classes)} classes" if data.classes else "real-valued targets"
    return (
        f"A {study.network} with {study.parameters:,} parameters, trained on {len(data.x_train)} "
        f"and tested on {len(data.x_test)} of the {data.available:,} examples of {data.name} "
        f"({data.features} inputs, {kind})."
    )


def _shown(score: Score) -> str:
    if score.accuracy is not None:
        return f"{score.accuracy:.1%}"
    return f"{score.r2:.3f}"


def _tiles(study: Study) -> list[Tile]:
    check, evidence = study.check, study.check.evidence
    unit = "of test examples right" if study.data.classes else "R² on test examples"
    best = max(study.scores[2:], key=lambda s: s.value)
    tiles = [
        Tile("Trained network", _shown(study.scores[0]), unit),
        Tile("Best kernel", _shown(best), best.name),
        Tile(
            "Final training loss",
            number(float(check.loss[-1])),
            f"predicted {number(float(check.loss_empirical[-1]))}",
        ),
        Tile("Kernel change", f"{evidence.kernel_drift:.1%}", "from first to last step"),
    ]
    if study.convergence is not None:
        width = int(study.convergence.widths[-1])
        mean = float(study.convergence.mean[-1])
        tiles.append(Tile("From infinite width", f"{mean:.0%}", f"distance at width {width}"))
    return tiles


def _network(study: Study) -> str:
    return (
        "What the network computes, read from the module itself. Under axes, n counts examples, "
        "p marks positions (inputs, outputs) and w the widths that become infinite in the limit. "
        + study.network_note
    ).strip()


def _kernels(study: Study) -> str:
    order = "by class" if study.data.classes else "by target, smallest first"
    text = (
        "The kernel says how much a step of training on one example moves the answer on another: "
        f"dark pairs learn together. Examples are sorted {order}"
    )
    text += ", so blocks along the diagonal are classes. " if study.data.classes else ". "
    limit = study.check.ntk_infinite
    if limit is None:
        reason = (study.check.infinite_reason or "").rstrip(".")
        return text + f"There is no infinite-width kernel beside it: {reason}."
    return (
        text + f"On all {len(limit)} training examples the network's own kernel is "
        f"{_distance(study.check.ntk, limit):.0%} away from its infinite-width limit (relative "
        "distance). Values are relative to the mean diagonal of the limit."
    )


def _distance(found: Tensor, limit: Tensor) -> float:
    return float(torch.linalg.norm(found - limit) / torch.linalg.norm(limit))


def _convergence(study: Study) -> str:
    found = study.convergence
    if found is None:
        reason = (study.convergence_reason or "").rstrip(".")
        return f"Convergence with width was not measured: {reason}."
    first, last = (float(found.mean[i]) for i in (0, -1))
    return (
        f"Each point is a freshly drawn, untrained network. From width {int(found.widths[0])} to "
        f"{int(found.widths[-1])} the mean distance to the infinite-width kernel falls from "
        f"{first:.0%} to {last:.0%}, like width to the power {found.slope:.2f}; theory says −0.5, "
        "the dotted line."
    ).replace("power -", "power −")


def _spectrum(study: Study) -> str:
    modes, check = study.spectrum, study.check
    steps = int(check.steps[-1])
    times = modes.learning_times(check.learning_rate)
    return (
        "The kernel takes the data apart into modes, patterns over the examples that are learned "
        "independently of each other; a mode with a larger eigenvalue is learned faster. The "
        f"fastest takes {number(float(times[0]))} steps to lose all but 37% of its error; "
        f"{_learned(study)} of {len(times)} modes come that far in the {steps:,} steps of this run."
    )


def _power(study: Study) -> str:
    cumulative = study.spectrum.cumulative_power
    assert cumulative is not None
    half, most = (min(int((cumulative < s).sum()) + 1, len(cumulative)) for s in (0.5, 0.9))
    learned = _learned(study)
    share = float(cumulative[learned - 1]) if learned else 0.0
    return (
        "How much of the targets each mode carries: a task is easy for a network if its fast modes "
        f"carry most of it. Half lies in the first {half} of {len(cumulative)} modes and 90% in "
        f"the first {most}; the {learned} modes learned in this run carry {share:.0%}."
    )


def _learned(study: Study) -> int:
    """Modes whose error falls by a factor e within the run."""
    times = study.spectrum.learning_times(study.check.learning_rate)
    return int((times <= int(study.check.steps[-1])).sum())


def _training(study: Study) -> str:
    check = study.check
    steps = int(check.steps[-1])
    text = (
        f"Full-batch gradient descent with learning rate {number(check.learning_rate)} "
        f"({check.learning_rate / check.max_learning_rate:.0%} of the largest stable one). In "
        f"{steps:,} steps the training loss went from {number(float(check.loss[0]))} to "
        f"{number(float(check.loss[-1]))}; the kernel of the untrained network, without taking a "
        f"step, predicted {number(float(check.loss_empirical[-1]))}"
    )
    if check.loss_infinite is not None:
        text += f", that of the infinitely wide one {number(float(check.loss_infinite[-1]))}"
    return text + ". The loss is half the squared error, summed over outputs."


_OUTPUTS = (
    "Each point is an output on a test example: across, what the untrained network's kernel "
    "predicted; up, what the network answered. On the dotted line the prediction is right. Slide "
    "through the steps to see when and where the two part."
)


def _scores(study: Study) -> str:
    best = max(study.scores, key=lambda s: s.value)
    network = study.scores[0]
    if study.data.classes:
        base = f"Always answering with the commonest class is right {study.chance:.1%} of the time."
        what = "the share of test examples answered rightly"
    else:
        base = "Always answering with the mean gives about 0, a perfect answer gives 1."
        what = "R², the share of the targets' variance that is explained"
    end = "Kernel regression is where training without end would arrive"
    if network.value > max(s.value for s in study.scores[2:]):
        end += "; here it fits the noise too, and stopping early helped the network"
    return (
        f"On {len(study.data.x_test)} examples that training never saw, by {what}: "
        f"{_shown(network)} for the trained network, {_shown(best)} for the best "
        f"({best.name}). {base} {end}."
    )


def _generalization(study: Study) -> str:
    if study.generalization is not None:
        return generalization_text(study.generalization)
    reason = (study.generalization_reason or "").rstrip(".")
    return f"How kernel regression generalises was not worked out: {reason}."


def _trainability(study: Study) -> str:
    if study.trainability is not None:
        return trainability_text(study.trainability)
    reason = (study.trainability_reason or "").rstrip(".")
    return f"Whether the network can be trained was not worked out: {reason}."


def _measures(study: Study) -> list[Measure]:
    evidence, marks = study.check.evidence, study.check.verdict.thresholds
    return [
        Measure(
            "Kernel change",
            f"{evidence.kernel_drift:.1%}",
            f"How far training moved the kernel, relative to its size. Lazy up to "
            f"{marks.lazy_drift:.0%}, feature learning from {marks.feature_drift:.0%}.",
        ),
        Measure(
            "Kernel alignment",
            f"{evidence.kernel_alignment:.3f}",
            f"1 means that the kernel kept its direction. Lazy from {marks.lazy_alignment:g}, "
            f"feature learning below {marks.feature_alignment:g}.",
        ),
        Measure(
            "Prediction error",
            f"{evidence.prediction_error:.1%}",
            "The typical miss of the prediction along the run, on training or test examples "
            "(whichever is larger), relative to the way that the outputs went. Lazy "
            f"up to {marks.lazy_error:.0%}, feature learning from {marks.feature_error:.0%}.",
        ),
        Measure(
            "Parameter movement",
            f"{evidence.parameter_movement:.2%}",
            "How far the parameters moved, relative to their size. Told for interest; it does not "
            "count in the verdict.",
        ),
    ]
