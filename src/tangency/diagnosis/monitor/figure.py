"""A course in eight panels."""

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
    Dash,
    horizontal,
    line,
    panels,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from tangency.diagnosis.monitor.course import Course

__all__ = ["figure"]

_TITLES = (
    "Loss",
    "Kernel drift",
    "Kernel velocity",
    "Alignment of the kernel",
    "Effective rank",
    "Movement of parameters",
    "Linearisation error",
    "Curvature",
)

LAYERS = 6
"""Layers that are drawn: those that moved furthest."""


def figure(course: Course, *, x_axis: Axis = "log") -> Figure:
    """Eight panels: loss, kernel, parameters, linearisation error and curvature."""
    drawn = panels("What training did to the network", list(_TITLES), columns=2)
    places = {title: (i // 2 + 1, i % 2 + 1) for i, title in enumerate(_TITLES)}

    def add(panel: str, values: Tensor, name: str, colour: str, dash: Dash = "solid") -> None:
        row, col = places[panel]
        legend = name.lower() != panel.lower()  # one line needs no other name than its panel's
        if bool(torch.isfinite(values).any()):
            place = {"row": row, "col": col, "legend": legend}
            line(drawn, course.steps, values, name, colour, dash=dash, **place)

    add("Loss", course.loss, "loss on the probe", EMPIRICAL)
    add("Loss", course.training_loss, "training loss", ACTUAL, "dot")
    add("Kernel drift", course.drift, "kernel drift", EMPIRICAL)
    add("Kernel velocity", course.velocity, "change per step", EMPIRICAL)
    add("Kernel velocity", course.turning, "turning per step", INFINITE)
    add("Alignment of the kernel", course.alignment_initial, "with the initial kernel", EMPIRICAL)
    add("Alignment of the kernel", course.alignment_final, "with the final kernel", INFINITE)
    add("Alignment of the kernel", course.target_alignment, "with the targets", PALETTE[2])
    add("Effective rank", course.effective_rank, "effective rank", EMPIRICAL)
    moved = sorted(course.movement_by_layer.items(), key=lambda item: -float(item[1][-1]))
    for i, (name, series) in enumerate(moved[:LAYERS]):
        add("Movement of parameters", series, name or "(model)", PALETTE[i % len(PALETTE)])
    add("Linearisation error", course.linearization_error, "linearisation error", EMPIRICAL)
    row, col = places["Linearisation error"]
    horizontal(drawn, 0.1, "10 %", row=row, col=col)
    drawn.update_yaxes(rangemode="tozero", row=row, col=col)
    add("Curvature", course.sharpness, "sharpness", EMPIRICAL)
    if course.squared:  # of another loss, the kernel alone is no curvature
        add("Curvature", course.kernel_curvature, "kernel", INFINITE)
    add("Curvature", course.stability_limit, "stability limit", ACTUAL, "dash")
    drawn.update_xaxes(title_text="step", type=x_axis)
    for panel in ("Loss", "Kernel velocity"):
        row, col = places[panel]
        drawn.update_yaxes(type="log", exponentformat="power", row=row, col=col)
    return drawn
