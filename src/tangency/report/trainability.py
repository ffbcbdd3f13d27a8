"""The report's part on trainability: the verdict before training, and every layer."""

from __future__ import annotations

import math

from tangency.diagnosis import Trainability
from tangency.drawing import EMPIRICAL, INFINITE
from tangency.report.style import Figure, layout, line

__all__ = ["trainability_figure", "trainability_text"]


def trainability_figure(found: Trainability) -> Figure:
    """Signal and gradient through the layers of the module as it was drawn."""
    layers = found.layers.layers
    names = [layer.name for layer in layers]
    series = (
        ("mean square of the outputs", [layer.second_moment for layer in layers], EMPIRICAL),
        ("squared gradient in the outputs", [layer.backward for layer in layers], INFINITE),
    )
    drawn = layout("layer, from the input to the output", "size")
    drawn["yaxis"] |= {"type": "log", "exponentformat": "power"}
    traces = []
    for name, values, colour in series:
        shown = [float(f"{v:.4g}") if v > 0 and math.isfinite(v) else None for v in values]
        trace = line(names, shown, name, colour) | {"mode": "lines+markers"}
        traces.append(trace)
    return {"data": traces, "layout": drawn}


def trainability_text(found: Trainability) -> str:
    """The verdict, the theory behind it where there is one, and what to do."""
    text = f"Before training, the verdict is {found.verdict}: {found.judgement.reason}. "
    if found.own is not None:
        theory = found.own.theory
        text += (
            f"The module repeats a block {theory.block.depth} times; mean-field theory calls it "
            f"{theory.phase}, with squared gradients that change by e in {theory.xi_gradient:.3g} "
            "blocks. "
        )
    else:
        text += "It rests on the layers, measured one by one on the module as it was drawn. "
    if found.condition_of != "none":
        text += (
            f"The {found.condition_of} NTK of a few examples has the condition number "
            f"{found.condition:.3g}. "
        )
    return text + " ".join(found.advice)
