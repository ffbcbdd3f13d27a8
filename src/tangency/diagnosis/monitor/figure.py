"""A course in six panels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.drawing import (
    ACTUAL,
    EMPIRICAL,
    INFINITE,
    PALETTE,
    Axis,
    horizontal,
    line,
    panels,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from tangency.diagnosis.monitor.course import Course

__all__ = ["figure"]

LAYERS = 6
"""Layers that are drawn: those that moved furthest."""


def figure(course: Course, *, x_axis: Axis = "log") -> Figure:
    """Loss, kernel change, directions, parameters, linearisation error and curvature."""
    titles = [
        "Loss",
        "Kernel drift",
        "Alignment of the kernel",
        "Movement of parameters",
        "Linearisation error",
        "Curvature",
    ]
    drawn = panels("What training did to the network", titles, columns=2)
    steps = course.steps

    def add(row: int, col: int, values: Tensor, name: str, colour: str, **how: str) -> None:
        if bool(torch.isfinite(values).any()):
            line(drawn, steps, values, name, colour, row=row, col=col, **how)  # type: ignore[arg-type]

    add(1, 1, course.loss, "loss on the probe", EMPIRICAL)
    add(1, 1, course.training_loss, "training loss", ACTUAL, dash="dot")
    add(1, 2, course.drift, "drift", EMPIRICAL)
    add(2, 1, course.alignment_initial, "with the initial kernel", EMPIRICAL)
    add(2, 1, course.alignment_final, "with the final kernel", INFINITE)
    add(2, 1, course.target_alignment, "with the targets", PALETTE[2])
    moved = sorted(course.movement_by_layer.items(), key=lambda item: -float(item[1][-1]))
    for i, (name, series) in enumerate(moved[:LAYERS]):
        add(2, 2, series, name or "(model)", PALETTE[i % len(PALETTE)])
    add(3, 1, course.linearization_error, "linearisation error", EMPIRICAL)
    horizontal(drawn, 0.1, "10 %", row=3, col=1)
    add(3, 2, course.sharpness, "sharpness", EMPIRICAL)
    add(3, 2, course.kernel_curvature, "kernel", INFINITE)
    add(3, 2, course.stability_limit, "stability limit", ACTUAL, dash="dash")
    drawn.update_xaxes(title_text="step", type=x_axis)
    drawn.update_yaxes(type="log", row=1, col=1)
    drawn.update_yaxes(rangemode="tozero", row=3, col=1)
    return drawn
