"""The style of the report's figures, which are Plotly's own JSON: {"data": traces, "layout": ...}.

Colours that depend on the reader's light or dark scheme are written as names (`@ink`, `@muted`,
`@line`, `@paper`), which the page replaces when it draws.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

from tangency.drawing import numbers

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

__all__ = [
    "ACTUAL",
    "Figure",
    "from_plotly",
    "horizontal",
    "layout",
    "line",
    "logarithmic",
    "note",
    "numbers",
    "points",
    "small",
]

Figure: TypeAlias = dict[str, Any]

ACTUAL = "@ink"


def from_plotly(figure: PlotlyFigure) -> Figure:
    """The figure of a result, dressed for the page: its title stands above it as text."""
    plain: Figure = json.loads(figure.to_json())
    plain["layout"].pop("title", None)
    plain["layout"].pop("template", None)
    font = plain["layout"].get("font", {})
    dressed = layout("", "")
    plain["layout"] |= {key: dressed[key] for key in ("legend", "hoverlabel", "dragmode", "margin")}
    plain["layout"]["font"] = font | {"color": "@ink"}
    return plain


def line(
    x: list[Any], y: list[float | None], name: str, colour: str, *, dash: str = "solid"
) -> Figure:
    """A line through points."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "name": name,
        "line": {"color": colour, "width": 2, "dash": dash},
    }


def points(x: list[Any], y: list[float | None], name: str, colour: str) -> Figure:
    """Points."""
    marker = {"color": colour, "size": 6, "opacity": 0.45}
    return {"type": "scatter", "mode": "markers", "x": x, "y": y, "name": name, "marker": marker}


def logarithmic(values: list[float]) -> Figure:
    """A logarithmic axis with ticks at 1, 2, 5 where the values span enough of them."""
    wide = bool(values) and max(values) > 4 * min(values)
    ticks = {"dtick": "D2"} if wide else {"nticks": 6}
    return {"type": "log", "tickformat": ".2~g", **ticks}


def horizontal(y: float) -> Figure:
    """A dotted line at height `y`."""
    line = {"color": "@muted", "width": 1, "dash": "dot"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}


def note(text: str, log_y: float) -> Figure:
    """A small text at the left end of a line at height 10^log_y."""
    return {
        "text": text,
        "xref": "paper",
        "x": 0.01,
        "xanchor": "left",
        "y": log_y,
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 11, "color": "@muted"},
    }


def small() -> Figure:
    """The font of what stands beside the figure."""
    return {"size": 10, "color": "@muted"}


def layout(x: str, y: str, margin: dict[str, int] | None = None) -> Figure:
    """Axes with names, on no background of their own."""
    axis = {
        "gridcolor": "@line",
        "linecolor": "@line",
        "zeroline": False,
        "tickfont": {"size": 11, "color": "@muted"},
        "automargin": True,
    }
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "@ink"},
        "margin": margin or {"l": 56, "r": 12, "t": 36, "b": 48},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        "hoverlabel": {"bgcolor": "@paper", "bordercolor": "@line", "font": {"color": "@ink"}},
        "hovermode": "closest",
        "dragmode": False,
        "xaxis": axis | {"title": {"text": x, "standoff": 8}},
        "yaxis": axis | {"title": {"text": y, "standoff": 8}},
    }
