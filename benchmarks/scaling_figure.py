"""The picture of the scaling studies: Plotly's JSON in the report's style, drawn by a browser."""

from __future__ import annotations

import base64
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs
from scaling_studies import Study
from selenium import webdriver

__all__ = ["draw"]

WIDTH, HEIGHT, SCALE = 1200, 520, 2
INK, MUTED, LINE = "#1f2933", "#6b7680", "#e3e6e8"
TIME, MEMORY = "#3a8fc4", "#d9822b"
GAP = 0.055
UPPER, LOWER = (0.56, 0.94), (0.0, 0.38)
"""Vertical places of the two rows of panels."""

Measured = tuple[Study, Sequence[float], Sequence[float]]
"""A study with seconds and megabytes at its sizes."""


def draw(measured: Sequence[Measured], path: Path) -> None:
    """Write the picture to the PNG file ``path``.

    Raises FileNotFoundError where there is no Chromium with its driver.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        raise FileNotFoundError("the picture needs chromium and chromium-driver: install them")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    with tempfile.TemporaryDirectory(prefix="tangency-figure-") as folder:
        page = Path(folder) / "figure.html"
        page.write_text(
            f"<!doctype html><meta charset=utf-8><script>{get_plotlyjs()}</script>",
            encoding="utf-8",
        )
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            browser.get(page.as_uri())
            address: str = browser.execute_async_script(
                "const done = arguments[arguments.length - 1];"
                "Plotly.toImage(JSON.parse(arguments[0]), JSON.parse(arguments[1])).then(done)",
                json.dumps(figure(measured)),
                json.dumps({"format": "png", "width": WIDTH, "height": HEIGHT, "scale": SCALE}),
            )
        finally:
            browser.quit()
    path.write_bytes(base64.b64decode(address.split(",", 1)[1]))


def figure(measured: Sequence[Measured]) -> dict[str, Any]:
    """Time above and memory below, one column a study, all axes logarithmic."""
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "margin": {"l": 60, "r": 16, "t": 8, "b": 56},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
    }
    width = (1 + GAP) / len(measured) - GAP
    # One range for a whole row: heights can be compared across studies.
    ranges = [decades(values) for values in zip(*(m[1:] for m in measured), strict=True)]
    for column, (study, seconds, megabytes) in enumerate(measured):
        left = column * (width + GAP)
        for row, (values, name, colour, place) in enumerate(
            ((seconds, "seconds", TIME, UPPER), (megabytes, "megabytes", MEMORY, LOWER))
        ):
            number = 2 * column + row + 1
            axes = {"xaxis": f"x{number}", "yaxis": f"y{number}", "showlegend": column == 0}
            # A kernel whose growth the system does not see has no place on a logarithmic axis.
            shown = [value if value > 0 else None for value in values]
            traces.append(points(study, shown, name, colour) | axes)
            if row == 0:
                traces.append(guide(study, seconds) | axes)
            layout[f"xaxis{number}"] = axis(
                [left, left + width], f"y{number}", study.size if row else ""
            ) | {"tickvals": study.values, "ticktext": [str(v) for v in study.values]}
            layout[f"yaxis{number}"] = axis(place, f"x{number}", "" if column else name) | {
                "range": ranges[row],
                "dtick": 1,
                "exponentformat": "power",
            }
    return {"data": traces, "layout": layout}


def decades(columns: Sequence[Sequence[float]]) -> list[float]:
    """The logarithmic range that holds all positive values of a row of panels."""
    values = [math.log10(value) for column in columns for value in column if value > 0]
    return [math.floor(min(values)), math.ceil(max(values))]


def points(study: Study, values: Sequence[float | None], name: str, colour: str) -> dict[str, Any]:
    """The measured points, joined."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": study.values,
        "y": values,
        "name": name,
        "line": {"color": colour, "width": 2},
        "marker": {"size": 6},
    }


def guide(study: Study, seconds: Sequence[float]) -> dict[str, Any]:
    """The law through the largest point, dotted."""
    last = study.values[-1]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": study.values,
        "y": [seconds[-1] * (value / last) ** study.law for value in study.values],
        "name": "law",
        "line": {"color": MUTED, "width": 1.5, "dash": "dot"},
    }


def axis(domain: Sequence[float], anchor: str, title: str) -> dict[str, Any]:
    """A logarithmic axis of one panel."""
    return {
        "type": "log",
        "domain": list(domain),
        "anchor": anchor,
        "gridcolor": LINE,
        "linecolor": LINE,
        "zeroline": False,
        "tickfont": {"size": 11, "color": MUTED},
        "title": {"text": title, "standoff": 8},
    }
