"""Predicted outputs over time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tangency import drawing
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Prediction"]

DRAWN = 6
"""Modes or outputs that a figure shows."""

DECADES = 1e6
"""A figure shows what lies within this factor of the start."""


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Predicted outputs of the linearised network.

    Attributes:
        times: () or (T,), float64: the times (numbers of steps) asked for.
        train: (n, out), with a leading T for many times; without `out` if the targets were (n,).
        test: the same over the m test examples; None without a test kernel.
        loss: () or (T,), the loss on the training set, without the ridge term.
        mode_errors: (N,), with a leading T for many times: the part of the initial error that is
            left in each eigenmode, negative where descent has overshot; float64, so that decays
            below 1e-38 are kept. None for a loss that mixes the modes.
        eigenvalues: (N,) of the modes, descending; None with `mode_errors`.
    """

    times: Tensor
    train: Tensor
    test: Tensor | None = None
    loss: Tensor | None = None
    mode_errors: Tensor | None = None
    eigenvalues: Tensor | None = None

    def to_dict(self) -> dict[str, Tensor | None]:
        """The attributes by name."""
        return {
            "times": self.times,
            "train": self.train,
            "test": self.test,
            "loss": self.loss,
            "mode_errors": self.mode_errors,
            "eigenvalues": self.eigenvalues,
        }

    def figure(self) -> Figure:
        """The loss over time, beside the decay of some modes (or the course of some outputs).

        Raises:
            InvalidInput: the prediction is for one time only.
            MissingDependency: Plotly is not installed.
        """
        if self.times.dim() == 0 or self.loss is None:
            raise InvalidInput("a figure over time needs several times: predict at more than one.")
        by_mode = self.mode_errors is not None
        right = "error left in each mode" if by_mode else "outputs on training examples"
        figure = drawing.panels("Predicted training", ["loss on the training set", right])
        drawing.line(figure, self.times, self.loss, "loss", drawing.ACTUAL, row=1, col=1)
        self._draw_modes(figure) if by_mode else self._draw_outputs(figure)
        axis: drawing.Axis = "log" if _spans_decades(self.times) else "linear"
        figure.update_xaxes(title_text="time (steps)", type=axis)
        loss = self.loss.double()
        _logarithmic(figure, loss / loss[0].clamp(min=1e-300), float(loss[0]), col=1)
        return figure

    def _draw_modes(self, figure: Figure) -> None:
        assert self.mode_errors is not None
        assert self.eigenvalues is not None
        left = self.mode_errors.abs()
        learned = int((self.eigenvalues > 0).sum())
        chosen = np.unique(np.geomspace(1, max(learned, 1), DRAWN).round().astype(int)) - 1
        for colour, mode in zip(drawing.PALETTE, chosen.tolist(), strict=False):
            name = f"mode {mode + 1} (λ = {float(self.eigenvalues[mode]):.3g})"
            drawing.line(figure, self.times, left[:, mode], name, colour, row=1, col=2)
        _logarithmic(figure, left, 1.0, col=2)

    def _draw_outputs(self, figure: Figure) -> None:
        outputs = self.train.reshape(len(self.times), -1)
        chosen = np.unique(np.linspace(0, outputs.shape[1] - 1, DRAWN).round().astype(int))
        out = outputs.shape[1] // self.train.shape[1]
        for colour, index in zip(drawing.PALETTE, chosen.tolist(), strict=False):
            which = f", output {index % out}" if out > 1 else ""
            name = f"example {index // out}{which}"
            drawing.line(figure, self.times, outputs[:, index], name, colour, row=1, col=2)

    def __repr__(self) -> str:
        when = f"{len(self.times)} times" if self.times.dim() else f"time {float(self.times):g}"
        test = "" if self.test is None else f", test {tuple(self.test.shape)}"
        return f"Prediction(at {when}: train {tuple(self.train.shape)}{test})"


def _logarithmic(figure: Figure, relative: Tensor, unit: float, col: int) -> None:
    """A logarithmic axis of what begins at `unit`, without decades that nobody looks at."""
    seen = relative.double().nan_to_num(posinf=DECADES).clamp(1 / DECADES, DECADES) * (unit or 1.0)
    low, high = math.log10(float(seen.min())), math.log10(float(seen.max()))
    figure.update_yaxes(
        type="log", exponentformat="power", range=[low - 0.1, high + 0.1], row=1, col=col
    )


def _spans_decades(times: Any) -> bool:
    positive = times[(times > 0) & torch.isfinite(times)]
    return len(positive) > 2 and float(positive.max() / positive.min()) > 1000
