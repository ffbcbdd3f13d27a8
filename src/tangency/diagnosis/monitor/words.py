"""A course in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tangency.analysis import Verdict
    from tangency.diagnosis.monitor.course import Course

__all__ = ["explain", "table"]

ROWS = 8
"""Records that the readable form shows."""

FRACTION = 0.1
"""Linearisation error at which the kernel prediction counts as failed in words."""


def explain(course: Course) -> str:
    """The verdict and what happened on the way, one sentence a line."""
    lines = [course.verdict().explain(), _failure(course), *_stability(course), *_catapults(course)]
    if course.overflowed is not None:
        lines.append(
            f"At step {course.overflowed} numbers were not finite any more; measures are those of "
            f"step {int(course.steps[-1])}."
        )
    training, records = course.seconds["training"], course.seconds["records"]
    if training > 0:
        lines.append(
            f"{len(course.steps)} records took {records:.2g} s beside {training:.3g} s of training "
            f"({records / training:.1%}), setting up {course.seconds['setup']:.2g} s."
        )
    return "\n".join(lines)


def table(course: Course) -> str:
    """A few records, and the verdict."""
    columns = {
        "loss": course.loss,
        "drift": course.drift,
        "velocity": course.velocity,
        "alignment": course.alignment_initial,
        "to target": course.target_alignment,
        "eff. rank": course.effective_rank,
        "moved": course.movement,
        "lin. error": course.linearization_error,
        "sharpness": course.sharpness,
    }
    shown = {k: v for k, v in columns.items() if bool(torch.isfinite(v).any())}
    rows = torch.linspace(0, len(course.steps) - 1, ROWS).round().long().unique().tolist()
    head = f"Course of {len(course.steps)} records on {len(course.probe)} examples"
    lines = [head, "  " + f"{'step':>7}" + "".join(f"{name:>11}" for name in shown)]
    for i in rows:
        values = "".join(f"{float(series[i]):>11.3g}" for series in shown.values())
        lines.append(f"  {int(course.steps[i]):>7}" + values.replace("nan", "  -"))
    if len(course.steps) > 1 or course.overflowed is not None:
        verdict: Verdict = course.verdict()
        lines.append(f"  {verdict}")
    return "\n".join(lines)


def _failure(course: Course) -> str:
    step = course.failure_time(FRACTION)
    if step is None:
        return (
            f"Up to the last record the network stayed its linearisation to within {FRACTION:.0%} "
            "of the way of its outputs."
        )
    return (
        f"The kernel prediction fails at step {step}: there the linearised network is off by more "
        f"than {FRACTION:.0%} of the way of the outputs for the first time."
    )


def _stability(course: Course) -> list[str]:
    edge = course.edge()
    if edge is None:
        return []
    what = "sharpness" if bool(torch.isfinite(course.sharpness).any()) else "kernel's curvature"
    if edge.state == "stable":
        return [
            f"The {what} went from {edge.first:.2f} to {edge.last:.2f} times what the learning "
            "rate allows (2 / learning_rate without momentum), and never reached it."
        ]
    at = f"reached what the learning rate allows at step {edge.reached}"
    if edge.state == "edge of stability":
        return [
            f"Training ran at the edge of stability: the {what} {at} and stayed about it "
            f"(typically {edge.typical:.2f} times, at the end {edge.last:.2f})."
        ]
    return [f"The {what} {at}, and was {edge.last:.2f} times that at the end."]


def _catapults(course: Course) -> list[str]:
    return [
        f"A catapult: from step {c.start} the loss rose {c.growth:.3g} times until step {c.peak} "
        f"and was back by step {c.end}, while the kernel's largest eigenvalue fell from "
        f"{c.before:.2f} to {c.after:.2f} times what the learning rate allows."
        for c in course.catapults()[:3]
    ]
