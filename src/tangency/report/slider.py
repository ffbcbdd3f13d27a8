"""The outputs on the test examples, predicted and real, at the step that the reader slides to."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tangency.drawing import EMPIRICAL, INFINITE
from tangency.report.style import Figure, layout, numbers
from tangency.study import Study

__all__ = ["outputs_in_time"]

EXAMPLES = 150
STOPS = 16
"""Steps of training that the slider stops at, at most."""


class _Series(NamedTuple):
    """One output of every shown example over time, predicted and actual: (stops, examples)."""

    name: str
    colour: str
    predicted: Tensor
    actual: Tensor


def outputs_in_time(study: Study) -> Figure | None:
    """Real outputs against predicted ones: on the diagonal, the prediction is right.

    Of classes, each example's own class and the highest of the others are shown.
    """
    check = study.check
    if check.test_outputs is None or check.test_outputs_empirical is None:
        return None
    stops = _spread(len(check.steps), STOPS)
    chosen = _spread(check.test_outputs.shape[1], EXAMPLES)
    actual, predicted = (
        outputs[stops][:, chosen].cpu().double()
        for outputs in (check.test_outputs, check.test_outputs_empirical)
    )
    series = _series(study, chosen, predicted, actual)
    steps = [int(step) for step in check.steps[stops]]
    drawn = layout("predicted from the untrained network's kernel", "the network's output")
    span = _span(series)
    for axis in ("xaxis", "yaxis"):
        drawn[axis] |= {"range": span}
    drawn["sliders"] = [_slider(steps)]
    drawn["margin"] = drawn["margin"] | {"b": 110}
    return {
        "data": [_diagonal(span), *(_points(one, 0) for one in series)],
        "layout": drawn,
        "frames": [
            {
                "name": str(step),
                "data": [_points(one, k) for one in series],
                "traces": list(range(1, 1 + len(series))),
            }
            for k, step in enumerate(steps)
        ],
    }


def _series(study: Study, chosen: Tensor, predicted: Tensor, actual: Tensor) -> list[_Series]:
    labels = study.data.labels_test
    if labels is None:
        flat = predicted.flatten(1), actual.flatten(1)
        return [_Series("test examples", EMPIRICAL, *flat)]
    own = torch.nn.functional.one_hot(labels[chosen], actual.shape[-1]).bool()
    # The strongest rival is the network's at the end, so that a point stays one output over time.
    rival = actual[-1].masked_fill(own, -torch.inf).argmax(dim=-1)
    other = torch.nn.functional.one_hot(rival, actual.shape[-1]).bool()
    return [
        _Series(name, colour, predicted[:, mask], actual[:, mask])
        for name, colour, mask in (
            ("of its own class", EMPIRICAL, own),
            ("of the strongest other class", INFINITE, other),
        )
    ]


def _spread(count: int, most: int) -> Tensor:
    """At most `most` of `count` indices, evenly, the first and the last among them."""
    return torch.linspace(0, count - 1, min(most, count)).round().long()


def _span(series: list[_Series]) -> list[float]:
    values = torch.cat([t.flatten() for one in series for t in (one.predicted, one.actual)])
    low, high = float(values.min()), float(values.max())
    edge = 0.05 * (high - low) or 1.0
    return [float(f"{end:.3g}") for end in (low - edge, high + edge)]


def _points(series: _Series, stop: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": numbers(series.predicted[stop]),
        "y": numbers(series.actual[stop]),
        "name": series.name,
        "marker": {"color": series.colour, "size": 6, "opacity": 0.6},
        "hovertemplate": "predicted %{x:.3f}, real %{y:.3f}",
    }


def _diagonal(span: list[float]) -> dict[str, Any]:
    line = {"color": "@muted", "width": 1, "dash": "dot"}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": span,
        "y": span,
        "line": line,
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _slider(steps: list[int]) -> dict[str, Any]:
    instant = {
        "mode": "immediate",
        "transition": {"duration": 0},
        "frame": {"duration": 0, "redraw": False},
    }
    return {
        "currentvalue": {"prefix": "step ", "font": {"size": 13, "color": "@ink"}},
        "font": {"size": 10, "color": "@muted"},
        "pad": {"t": 42},
        "tickcolor": "@muted",
        "bgcolor": "@line",
        "bordercolor": "@line",
        "steps": [
            {"label": f"{step:,}", "method": "animate", "args": [[str(step)], instant]}
            for step in steps
        ],
    }
