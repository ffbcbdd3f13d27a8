"""Plotly figures in one style. Plotly is an optional dependency, imported at first use.

Results of analyses draw themselves with `figure()`; what they share stands here: the palette, axes,
lines, points and bands. Figures carry no fixed background, so that they fit light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tangency.errors import MissingDependency

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "ACTUAL",
    "EMPIRICAL",
    "INFINITE",
    "PALETTE",
    "band",
    "horizontal",
    "line",
    "new_figure",
    "panels",
    "points",
    "vertical",
]

EMPIRICAL, INFINITE, ACTUAL = "#3a8fc4", "#d9822b", "#7a858c"
"""Colours of the kernel at finite width, of its limit, and of what really happened."""

PALETTE = (EMPIRICAL, INFINITE, "#2c9c7a", "#b0508f", "#8f7ad1", "#a3412f", "#7d8b2e", "#4a5a66")
"""Colours of series that are told apart by name only."""

Values: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[float]
Axis: TypeAlias = Literal["linear", "log"]
Dash: TypeAlias = Literal["solid", "dash", "dot", "dashdot"]

_GRID = "rgba(128, 138, 145, 0.25)"


def new_figure(
    title: str, x: str, y: str, *, x_axis: Axis = "linear", y_axis: Axis = "linear"
) -> Figure:
    """An empty figure with named axes.

    Raises:
        MissingDependency: Plotly is not installed.
    """
    figure = _plotly().Figure()
    figure.update_layout(**_layout(title))
    figure.update_xaxes(title_text=x, **_axis(x_axis))
    figure.update_yaxes(title_text=y, **_axis(y_axis))
    return figure


def panels(title: str, titles: Sequence[str], *, columns: int = 2) -> Figure:
    """A figure of several panels, filled row by row: pass `row=` and `col=` to what is drawn.

    Raises:
        MissingDependency: Plotly is not installed.
    """
    _plotly()
    from plotly.subplots import make_subplots

    columns = min(columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=list(titles),
        horizontal_spacing=0.12,
        vertical_spacing=0.35 / rows,
    )
    figure.update_layout(**_layout(title), height=80 + 320 * rows)
    figure.update_xaxes(**_axis("linear"))
    figure.update_yaxes(**_axis("linear"))
    return figure


def line(
    figure: Figure,
    x: Values,
    y: Values,
    name: str,
    colour: str = EMPIRICAL,
    *,
    dash: Dash = "solid",
    width: float = 2.0,
    **place: Any,
) -> None:
    """Add a line; `place` is `row=` and `col=` of a panel, or `legend=False` to keep it out."""
    legend = place.pop("legend", True)
    figure.add_scatter(
        x=numbers(x),
        y=numbers(y),
        name=name,
        mode="lines",
        line={"color": colour, "width": width, "dash": dash},
        showlegend=legend,
        legendgroup=name,
        **place,
    )


def points(
    figure: Figure,
    x: Values,
    y: Values,
    name: str,
    colour: str = EMPIRICAL,
    *,
    size: float = 6.0,
    error: Values | None = None,
    text: Sequence[str] | None = None,
    **place: Any,
) -> None:
    """Add points, with error bars of half-length `error`; `place` as for `line`."""
    legend = place.pop("legend", True)
    figure.add_scatter(
        x=numbers(x),
        y=numbers(y),
        name=name,
        mode="markers",
        marker={"color": colour, "size": size, "opacity": 0.8},
        error_y=None if error is None else {"type": "data", "array": numbers(error)},
        text=None if text is None else list(text),
        showlegend=legend,
        legendgroup=name,
        **place,
    )


def band(
    figure: Figure, x: Values, low: Values, high: Values, name: str, colour: str, **place: Any
) -> None:
    """Add a shaded band between `low` and `high`."""
    legend = place.pop("legend", True)
    xs, lows, highs = numbers(x), numbers(low), numbers(high)
    figure.add_scatter(
        x=[*xs, *xs[::-1]],
        y=[*highs, *lows[::-1]],
        name=name,
        fill="toself",
        fillcolor=_transparent(colour),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=legend,
        legendgroup=name,
        **place,
    )


def horizontal(figure: Figure, y: float, note: str, **place: Any) -> None:
    """Add a dotted line at height `y`, with a note."""
    figure.add_hline(y=y, line=_MARK, annotation_text=note, annotation_font_size=11, **place)
    _place_note(figure, "y", y)


def vertical(figure: Figure, x: float, note: str, **place: Any) -> None:
    """Add a dotted line at `x`, with a note."""
    figure.add_vline(x=x, line=_MARK, annotation_text=note, annotation_font_size=11, **place)
    _place_note(figure, "x", x)


def numbers(values: Values) -> list[float | None]:
    """Plain numbers of five digits, more than a screen shows; None where a value is not finite."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().to(torch.float64).reshape(-1).numpy()
    found = np.asarray(values, dtype=float).reshape(-1)
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in found]


_MARK = {"color": ACTUAL, "width": 1, "dash": "dot"}


def _place_note(figure: Figure, letter: str, position: float) -> None:
    """Move the last note to its line where the axis, set before, is logarithmic.

    Plotly places lines on such an axis by their value, but notes by its logarithm.
    """
    note = figure.layout.annotations[-1]
    axis = figure.layout[note[f"{letter}ref"].replace(letter, f"{letter}axis")]
    if axis.type == "log" and position > 0:
        note[letter] = math.log10(position)


def _plotly() -> Any:
    try:
        import plotly.graph_objects
    except ImportError as error:
        raise MissingDependency.for_extra("plotly", "report") from error
    return plotly.graph_objects


def _layout(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 16}, "x": 0, "xref": "paper"},
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 64, "r": 16, "t": 72, "b": 96},
        "legend": {"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "colorway": list(PALETTE),
        "template": "none",
    }


def _axis(kind: Axis) -> dict[str, Any]:
    decades = {"dtick": 1, "exponentformat": "power"} if kind == "log" else {}
    return {
        "type": kind,
        "gridcolor": _GRID,
        "linecolor": _GRID,
        "zeroline": False,
        "automargin": True,
        **decades,
    }


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.18)"
