"""The figures of the report, as Plotly's own JSON: see `tangency.report.style`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tangency.analysis import Spectrum
from tangency.drawing import EMPIRICAL, INFINITE
from tangency.report.generalization import generalization_figures
from tangency.report.slider import outputs_in_time
from tangency.report.style import (
    ACTUAL,
    Figure,
    horizontal,
    layout,
    line,
    logarithmic,
    note,
    numbers,
    points,
    small,
)
from tangency.report.trainability import trainability_figure
from tangency.study import Study

__all__ = ["all_figures"]

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
        "outputs": outputs_in_time(study),
    }
    if study.generalization is not None:
        found |= generalization_figures(study.generalization)
    if study.trainability is not None:
        found["trainability"] = trainability_figure(study.trainability)
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
        "colorbar": {"thickness": 8, "outlinewidth": 0, "len": 1, "x": 1.02, "tickfont": small()},
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
    drawn = layout("", "", margin={"l": 30, "r": 40, "t": 8, "b": 28})
    drawn |= {"xaxis": axis, "yaxis": axis | {"autorange": "reversed", "scaleanchor": "x"}}
    return {"data": [trace], "layout": drawn}


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
        "tickfont": small(),
    }


def _convergence(study: Study) -> Figure | None:
    found = study.convergence
    if found is None:
        return None
    widths = found.widths.tolist()
    repeated = [w for w in widths for _ in range(found.errors.shape[1])]
    traces = [
        points(repeated, numbers(found.errors.flatten()), "one network", EMPIRICAL),
        line(widths, numbers(found.mean), "mean", EMPIRICAL),
        line(widths, numbers(found.guide), "1 / √width", "@muted", dash="dot"),
    ]
    drawn = layout("width of the hidden layers", "relative distance to the limit")
    drawn["xaxis"] |= {"type": "log", "tickvals": widths, "ticktext": [str(w) for w in widths]}
    drawn["yaxis"] |= logarithmic(found.errors.flatten().tolist())
    return {"data": traces, "layout": drawn}


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
        drawn = line(list(range(1, len(values) + 1)), numbers(values), name, colour)
        drawn["customdata"] = numbers(n / (rate * values))
        drawn["hovertemplate"] = (
            "mode %{x}<br>eigenvalue %{y:.3g}<br>learned in %{customdata:.3g} steps"
        )
        traces.append(drawn)
    low, high = math.log10(min(seen)) - 0.2, math.log10(max(seen)) + 0.2
    ends = n / (rate * int(study.check.steps[-1]))
    shift = math.log10(n / rate)
    drawn = layout("mode, from the fastest to the slowest", "eigenvalue")
    drawn["margin"]["r"] = 56
    drawn["xaxis"] |= {"type": "log", "dtick": 1}
    drawn["yaxis"] |= {"type": "log", "range": [low, high], "dtick": 1, "exponentformat": "power"}
    drawn["yaxis2"] = drawn["yaxis"] | {
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
        drawn["shapes"] = [horizontal(ends)]
        drawn["annotations"] = [note("training ends here", math.log10(ends))]
    return {"data": traces, "layout": drawn}


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
        "y": numbers(share[:shown]),
        "name": "in one mode",
        "marker": {"color": EMPIRICAL, "size": 5, "opacity": 0.55},
        "hovertemplate": "mode %{x}: %{y:.2%}<extra></extra>",
    }
    traces = [bars, _share_line(modes, shown, "up to a mode, this network", EMPIRICAL)]
    if study.spectrum_infinite is not None:
        name = "up to a mode, infinitely wide"
        traces.append(_share_line(study.spectrum_infinite, shown, name, INFINITE))
    drawn = layout("mode, from the fastest to the slowest", "share of the targets")
    drawn["xaxis"] |= {"type": "log", "dtick": 1}
    drawn["yaxis"] |= {"tickformat": ".0%", "range": [0, 1.02]}
    return {"data": traces, "layout": drawn}


def _share_line(modes: Spectrum, shown: int, name: str, colour: str) -> Figure:
    assert modes.cumulative_power is not None
    values = numbers(modes.cumulative_power[:shown])
    drawn = line(list(range(1, shown + 1)), values, name, colour)
    return drawn | {"hovertemplate": "first %{x} modes: %{y:.1%}<extra></extra>"}


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
            drawn = line(steps, numbers(values[1:]), name, colour, dash=dash)
            drawn["line"]["width"] = width
            drawn["opacity"] = 0.35 if name == "actual" else 1
            drawn["hovertemplate"] = "step %{x}: %{y:.4g}"
            traces.append(drawn)
    if not traces:
        return None
    drawn = layout("step of gradient descent", "loss")
    drawn["xaxis"] |= {"type": "log", "dtick": 1}
    drawn["yaxis"] |= logarithmic([y for trace in traces for y in trace["y"] if y])
    return {"data": traces, "layout": drawn}


def _drift(study: Study) -> Figure:
    check = study.check
    steps = check.kernel_steps.tolist()[1:]
    marks = check.verdict.thresholds
    drift = line(steps, numbers(check.kernel_drift[1:]), "change of the kernel", EMPIRICAL)
    error = line(
        check.steps.tolist()[1:], numbers(check.prediction_error[1:]), "miss on training", INFINITE
    )
    traces = [drift, error]
    if check.test_prediction_error is not None:
        values = numbers(check.test_prediction_error[1:])
        traces.append(line(check.steps.tolist()[1:], values, "miss on test", INFINITE, dash="dot"))
    for trace in traces:
        trace["hovertemplate"] = "step %{x}: %{y:.2%}"
    drawn = layout("step of gradient descent", "relative size")
    drawn["xaxis"] |= {"type": "log", "dtick": 1}
    drawn["yaxis"] |= {"type": "log", "dtick": 1, "tickformat": "~%"}
    # Both pairs of marks are the same numbers unless they were chosen otherwise.
    drawn["shapes"] = [horizontal(marks.lazy_drift), horizontal(marks.feature_drift)]
    drawn["annotations"] = [
        note("lazy below", math.log10(marks.lazy_drift)),
        note("feature learning above", math.log10(marks.feature_drift)),
    ]
    return {"data": traces, "layout": drawn}
