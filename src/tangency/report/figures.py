"""The figures, as Plotly's own JSON: {"data": traces, "layout": layout}.

Colours that depend on the reader's light or dark scheme are written as names (`@ink`, `@muted`,
`@line`, `@paper`), which the page replaces when it draws.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tangency.analysis import Spectrum
from tangency.study import Study

__all__ = ["Figure", "all_figures"]

Figure: TypeAlias = dict[str, Any]

ACTUAL, EMPIRICAL, INFINITE = "@ink", "#3a8fc4", "#d9822b"
HEAT_EXAMPLES = 160
MODES_SHOWN = 400


def all_figures(study: Study) -> dict[str, Figure]:
    """Every figure of the report by name; those without data are left out."""
    found = {
        "heat_empirical": _heat_map(study, study.check.ntk),
        "heat_infinite": _heat_map(study, study.check.ntk_infinite),
        "convergence": _convergence(study),
        "spectrum": _spectrum(study),
        "power": _power(study),
        "training_loss": _losses(study, "train"),
        "test_loss": _losses(study, "test"),
        "drift": _drift(study),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _heat_map(study: Study, kernel: Tensor | None) -> Figure | None:
    """A kernel over training examples in order of class, on one colour scale for both kernels."""
    if kernel is None:
        return None
    data = study.data
    places = torch.linspace(0, len(data.order) - 1, min(HEAT_EXAMPLES, len(data.order)))
    chosen = data.order[places.round().long()]
    reference = study.check.ntk if study.check.ntk_infinite is None else study.check.ntk_infinite
    unit = float(reference.diagonal().mean())
    values = _picked(kernel, chosen) / unit
    scale = _picked(reference, chosen) / unit
    beside = scale[~torch.eye(len(chosen), dtype=torch.bool)]
    low, high = (float(q) for q in torch.quantile(beside, torch.tensor([0.01, 0.99]).double()))
    trace = {
        "type": "heatmap",
        "z": [[round(v, 3) for v in row] for row in values.tolist()],
        "zmin": low,
        "zmax": high,
        "colorscale": [[0, "#f4f1ea"], [0.35, "#b9d0dd"], [0.7, "#4f8db3"], [1, "#12344d"]],
        "colorbar": {"thickness": 8, "outlinewidth": 0, "len": 1, "x": 1.02, "tickfont": _small()},
        "hovertemplate": "%{y} with %{x}<br>kernel %{z:.3f}<extra></extra>",
    }
    if data.labels_train is not None:
        names = [data.classes[i] for i in data.labels_train[chosen].tolist()]
        trace["customdata"] = [[[a, b] for b in names] for a in names]
        trace["hovertemplate"] = (
            "class %{customdata[0]} with class %{customdata[1]}<br>kernel %{z:.3f}<extra></extra>"
        )
    axis = {"showgrid": False, "zeroline": False, "ticks": "", "constrain": "domain"}
    axis |= _class_ticks(study, chosen)
    layout = _layout("", "", margin={"l": 30, "r": 40, "t": 8, "b": 28})
    layout |= {"xaxis": axis, "yaxis": axis | {"autorange": "reversed", "scaleanchor": "x"}}
    return {"data": [trace], "layout": layout}


def _picked(kernel: Tensor, chosen: Tensor) -> Tensor:
    return kernel.detach().cpu().double()[chosen][:, chosen]


def _class_ticks(study: Study, chosen: Tensor) -> Figure:
    """A tick with its name in the middle of each class, while they are few; else none."""
    labels = study.data.labels_train
    if labels is None or len(study.data.classes) > 12:
        return {"showticklabels": False}
    there = labels[chosen]
    groups = [(c, (there == i).nonzero().flatten()) for i, c in enumerate(study.data.classes)]
    shown = [(name, places.double().mean().item()) for name, places in groups if len(places)]
    return {
        "tickvals": [place for _, place in shown],
        "ticktext": [name[:12] for name, _ in shown],
        "tickfont": _small(),
    }


def _convergence(study: Study) -> Figure | None:
    found = study.convergence
    if found is None:
        return None
    widths = found.widths.tolist()
    repeated = [w for w in widths for _ in range(found.errors.shape[1])]
    traces = [
        _points(repeated, _numbers(found.errors.flatten()), "one network", EMPIRICAL),
        _line(widths, _numbers(found.mean), "mean", EMPIRICAL),
        _line(widths, _numbers(found.guide), "1 / √width", "@muted", dash="dot"),
    ]
    layout = _layout("width of the hidden layers", "relative distance to the limit")
    layout["xaxis"] |= {"type": "log", "tickvals": widths, "ticktext": [str(w) for w in widths]}
    layout["yaxis"] |= _logarithmic(found.errors.flatten().tolist())
    return {"data": traces, "layout": layout}


def _spectrum(study: Study) -> Figure:
    """Eigenvalues on the left, the same numbers as learning times on the right."""
    n, rate = study.spectrum.examples, study.check.learning_rate
    spectra = [(study.spectrum, "this network", EMPIRICAL)]
    if study.spectrum_infinite is not None:
        spectra.append((study.spectrum_infinite, "infinitely wide", INFINITE))
    traces, seen = [], []
    for modes, name, colour in spectra:
        values = modes.eigenvalues[: _positive(modes)].double()
        seen += [float(values[0]), float(values[-1])]
        line = _line(list(range(1, len(values) + 1)), _numbers(values), name, colour)
        line["customdata"] = _numbers(n / (rate * values))
        line["hovertemplate"] = (
            "mode %{x}<br>eigenvalue %{y:.3g}<br>learned in %{customdata:.3g} steps"
        )
        traces.append(line)
    low, high = math.log10(min(seen)) - 0.2, math.log10(max(seen)) + 0.2
    ends = n / (rate * int(study.check.steps[-1]))
    shift = math.log10(n / rate)
    layout = _layout("mode, from the fastest to the slowest", "eigenvalue")
    layout["margin"]["r"] = 56
    layout["xaxis"] |= {"type": "log", "dtick": 1}
    layout["yaxis"] |= {"type": "log", "range": [low, high], "dtick": 1, "exponentformat": "power"}
    layout["yaxis2"] = layout["yaxis"] | {
        "title": {"text": "learning time in steps"},
        "overlaying": "y",
        "side": "right",
        "range": [shift - low, shift - high],
        "showgrid": False,
    }
    # An axis without a trace is not drawn.
    traces.append({"x": [1], "y": [n / rate / seen[0]], "yaxis": "y2", "opacity": 0})
    traces[-1] |= {"showlegend": False, "hoverinfo": "skip", "type": "scatter", "mode": "markers"}
    if low < math.log10(ends) < high:
        layout["shapes"] = [_horizontal(ends)]
        layout["annotations"] = [_note("training ends here", math.log10(ends))]
    return {"data": traces, "layout": layout}


def _positive(modes: Spectrum) -> int:
    return max(1, min(MODES_SHOWN, modes.rank))


def _power(study: Study) -> Figure:
    """Share of the targets in each mode (bars), and in all modes up to it (lines)."""
    modes = study.spectrum
    shown = min(MODES_SHOWN, len(modes.eigenvalues))
    count = list(range(1, shown + 1))
    assert modes.power is not None
    assert modes.cumulative_power is not None
    share = modes.power.double() / modes.power.double().sum()
    bars = {
        "type": "scatter",
        "mode": "markers",
        "x": count,
        "y": _numbers(share[:shown]),
        "name": "in one mode",
        "marker": {"color": EMPIRICAL, "size": 5, "opacity": 0.55},
        "hovertemplate": "mode %{x}: %{y:.2%}<extra></extra>",
    }
    traces = [bars, _share_line(modes, shown, "up to a mode, this network", EMPIRICAL)]
    if study.spectrum_infinite is not None:
        name = "up to a mode, infinitely wide"
        traces.append(_share_line(study.spectrum_infinite, shown, name, INFINITE))
    layout = _layout("mode, from the fastest to the slowest", "share of the targets")
    layout["xaxis"] |= {"type": "log", "dtick": 1}
    layout["yaxis"] |= {"tickformat": ".0%", "range": [0, 1.02]}
    return {"data": traces, "layout": layout}


def _share_line(modes: Spectrum, shown: int, name: str, colour: str) -> Figure:
    assert modes.cumulative_power is not None
    values = _numbers(modes.cumulative_power[:shown])
    line = _line(list(range(1, shown + 1)), values, name, colour)
    return line | {"hovertemplate": "first %{x} modes: %{y:.1%}<extra></extra>"}


def _losses(study: Study, part: str) -> Figure | None:
    """Actual and predicted loss over the steps; step 0 has no place on a logarithmic axis."""
    check = study.check
    series = {
        "train": (check.loss, check.loss_empirical, check.loss_infinite),
        "test": (check.test_loss, check.test_loss_empirical, check.test_loss_infinite),
    }[part]
    names = ("actual", "predicted", "predicted, infinite width")
    styles = ((ACTUAL, "solid", 5.0), (EMPIRICAL, "solid", 2.0), (INFINITE, "dash", 2.0))
    steps = check.steps[1:].tolist()
    traces = []
    for values, name, (colour, dash, width) in zip(series, names, styles, strict=True):
        if values is not None:
            line = _line(steps, _numbers(values[1:]), name, colour, dash=dash)
            line["line"]["width"] = width
            line["opacity"] = 0.35 if name == "actual" else 1
            line["hovertemplate"] = "step %{x}: %{y:.4g}"
            traces.append(line)
    if not traces:
        return None
    layout = _layout("step of gradient descent", "loss")
    layout["xaxis"] |= {"type": "log", "dtick": 1}
    layout["yaxis"] |= _logarithmic([y for trace in traces for y in trace["y"] if y])
    return {"data": traces, "layout": layout}


def _drift(study: Study) -> Figure:
    check = study.check
    steps = check.kernel_steps.tolist()[1:]
    marks = check.verdict.thresholds
    drift = _line(steps, _numbers(check.kernel_drift[1:]), "change of the kernel", EMPIRICAL)
    error = _line(
        check.steps.tolist()[1:], _numbers(check.prediction_error[1:]), "miss on training", INFINITE
    )
    traces = [drift, error]
    if check.test_prediction_error is not None:
        values = _numbers(check.test_prediction_error[1:])
        traces.append(_line(check.steps.tolist()[1:], values, "miss on test", INFINITE, dash="dot"))
    for line in traces:
        line["hovertemplate"] = "step %{x}: %{y:.2%}"
    layout = _layout("step of gradient descent", "relative size")
    layout["xaxis"] |= {"type": "log", "dtick": 1}
    layout["yaxis"] |= {"type": "log", "dtick": 1, "tickformat": "~%"}
    # Both pairs of marks are the same numbers unless they were chosen otherwise.
    layout["shapes"] = [_horizontal(marks.lazy_drift), _horizontal(marks.feature_drift)]
    layout["annotations"] = [
        _note("lazy below", math.log10(marks.lazy_drift)),
        _note("feature learning above", math.log10(marks.feature_drift)),
    ]
    return {"data": traces, "layout": layout}


def _line(
    x: list[Any], y: list[float | None], name: str, colour: str, *, dash: str = "solid"
) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "name": name,
        "line": {"color": colour, "width": 2, "dash": dash},
    }


def _points(x: list[Any], y: list[float | None], name: str, colour: str) -> Figure:
    marker = {"color": colour, "size": 6, "opacity": 0.45}
    return {"type": "scatter", "mode": "markers", "x": x, "y": y, "name": name, "marker": marker}


def _numbers(values: Tensor) -> list[float | None]:
    """Five digits are more than a screen shows; what is not finite is left out."""
    found = values.detach().cpu().double().tolist()
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in found]


def _logarithmic(values: list[float]) -> Figure:
    """A logarithmic axis with ticks at 1, 2, 5 where the values span enough of them."""
    wide = bool(values) and max(values) > 4 * min(values)
    ticks = {"dtick": "D2"} if wide else {"nticks": 6}
    return {"type": "log", "tickformat": ".2~g", **ticks}


def _horizontal(y: float) -> Figure:
    line = {"color": "@muted", "width": 1, "dash": "dot"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}


def _note(text: str, log_y: float) -> Figure:
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


def _small() -> Figure:
    return {"size": 10, "color": "@muted"}


def _layout(x: str, y: str, margin: dict[str, int] | None = None) -> Figure:
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
