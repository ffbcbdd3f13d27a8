"""`TrainingCheck`: a real training run beside the predictions of its kernels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tangency import drawing
from tangency.analysis import Evidence, Verdict
from tangency.analysis.regime import Regime, failure_time

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["KernelForm", "TrainingCheck"]

KernelForm: TypeAlias = Literal["full", "trace"]

TABLE_ROWS = 7
"""Records that the readable form shows."""

VISIBLE_RISE = 0.01
"""Relative rise of the loss from one record to the next that is worth a word."""

NOTHING = 1e-20
"""A loss below which rises are rounding."""


@dataclass(frozen=True, eq=False, repr=False)
class TrainingCheck:
    """A real training run, and what its initial kernels predicted of it.

    T records, K of them with a kernel; n training and m test examples; `out` outputs (1 for
    targets given as (n,)). Losses are 1/(2n) sum_i |f(x_i) - y_i|^2. Series over records are
    float64 on the CPU; outputs and kernels stay where the data are. All predictions start from
    the actual initial outputs and take the same finite steps.

    Attributes:
        model: the trained copy (the given module is as it was); not in `to_dict`.
        learning_rate: of the run.
        max_learning_rate: below it gradient descent on the initial linearisation is stable,
            2 n / lambda_max. With `kernel_form` "trace" estimated, see `training_check`.
        kernel_form: of the kernel behind the empirical prediction: "full" is the whole
            (n, n, out, out), "trace" its mean over outputs, acting on every output alike.
        steps: (T,) int64, from 0 to the last.
        loss, loss_empirical: (T,), actual and predicted by the initial empirical NTK.
        loss_infinite: (T,), predicted by the infinite-width NTK; None without one.
        test_loss, test_loss_empirical, test_loss_infinite: (T,); None without test targets.
        outputs, outputs_empirical, outputs_infinite: (T, n, out).
        test_outputs, test_outputs_empirical, test_outputs_infinite: (T, m, out); None without
            test examples.
        prediction_error, test_prediction_error: (T,) distance of the empirical prediction from
            the outputs, over the root mean square over records of the way of the outputs from
            their start.
        parameter_movement: (T,) |theta_t - theta_0| / |theta_0| over all trainable parameters.
        parameter_movement_by_parameter: the same at the end for each of them, by name; infinite
            for one that moved from zero.
        kernel_steps: (K,) int64, records at which the empirical kernel of the probe was computed.
        kernel_drift, kernel_alignment: (K,) change of that kernel since step 0, see
            `tangency.analysis.kernel_drift` and `alignment`.
        probe: (p,) int64, training examples that drift and alignment are measured on.
        evidence, verdict: the regime and what it rests on: drift and alignment at the end, and
            the root mean square of `prediction_error` or `test_prediction_error`, the larger;
            with an uncertainty from resampled examples.
        ntk, ntk_test_train: (n, n) and (m, n), initial empirical NTK, mean over outputs.
        ntk_infinite, nngp_infinite: (n, n); ntk_infinite_test_train, nngp_infinite_test_train:
            (m, n); None without an infinite kernel (or test examples).
        infinite_reason: why there is no infinite kernel; None where there is one.
    """

    model: nn.Module
    learning_rate: float
    max_learning_rate: float
    kernel_form: KernelForm
    steps: Tensor
    loss: Tensor
    loss_empirical: Tensor
    loss_infinite: Tensor | None
    test_loss: Tensor | None
    test_loss_empirical: Tensor | None
    test_loss_infinite: Tensor | None
    outputs: Tensor
    outputs_empirical: Tensor
    outputs_infinite: Tensor | None
    test_outputs: Tensor | None
    test_outputs_empirical: Tensor | None
    test_outputs_infinite: Tensor | None
    prediction_error: Tensor
    test_prediction_error: Tensor | None
    parameter_movement: Tensor
    parameter_movement_by_parameter: dict[str, float]
    kernel_steps: Tensor
    kernel_drift: Tensor
    kernel_alignment: Tensor
    probe: Tensor
    evidence: Evidence
    verdict: Verdict
    ntk: Tensor
    ntk_test_train: Tensor | None
    ntk_infinite: Tensor | None
    ntk_infinite_test_train: Tensor | None
    nngp_infinite: Tensor | None
    nngp_infinite_test_train: Tensor | None
    infinite_reason: str | None

    @property
    def regime(self) -> Regime:
        """ "lazy", "between", "feature learning" or "unstable"."""
        return self.verdict.regime

    def failure_time(self, fraction: float = 0.1) -> int | None:
        """First recorded step at which the prediction is off by more than `fraction`.

        In units of `prediction_error`, on training or test examples; None if it never is. The
        moment lies between this record and the one before.

        Raises:
            InvalidInput: a fraction that is not positive.
        """
        errors = self.prediction_error
        if self.test_prediction_error is not None:
            errors = torch.maximum(errors, self.test_prediction_error)
        return failure_time(self.steps, errors, fraction)

    def explain(self) -> str:
        """The verdict, what it rests on and how the run went, in plain sentences, one a line."""
        form = "" if self.kernel_form == "full" else " (its mean over outputs)"
        lines = [
            self.verdict.explain(),
            f"In {int(self.steps[-1])} steps of gradient descent with learning rate "
            f"{self.learning_rate:.4g} (initially stable below {self.max_learning_rate:.4g}) the "
            f"loss went from {self.loss[0]:.4g} to {self.loss[-1]:.4g}; the initial empirical "
            f"kernel{form} predicted {self.loss_empirical[-1]:.4g}.",
        ]
        if self.loss_infinite is None:
            lines.append(f"There is no infinite-width prediction: {self.infinite_reason}")
        else:
            lines.append(f"The infinite-width kernel predicted {self.loss_infinite[-1]:.4g}.")
        mark = self.verdict.thresholds.lazy_error
        failed = self.failure_time(mark)
        if failed is not None:
            lines.append(
                f"The prediction fails at step {failed}: there it is off by more than {mark:.0%} "
                "of the typical way of the outputs for the first time."
            )
        rise = float((self.loss[1:] / self.loss[:-1].clamp(min=NOTHING)).max())
        if rise > 1 + VISIBLE_RISE:
            lines.append(
                f"On the way the loss rose, between records up to {rise:.2g} times: the kernel "
                "stiffened until the steps were too long for it (edge of stability). "
                "A smaller learning_rate compares better with the kernels."
            )
        if self.test_prediction_error is None:
            lines.append(
                "No test examples were given: on those a network that learns features can leave "
                "its linearisation while it fits the training set as predicted."
            )
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Losses, predicted and actual, and how far kernel and prediction are off, over the steps.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        names = ["loss on the training examples", "kernel drift, prediction error"]
        figure = drawing.panels(f"Training was {self.regime}", names)
        steps = self.steps[1:]
        left: dict[str, Any] = {"row": 1, "col": 1}
        drawing.line(figure, steps, self.loss[1:], "actual", drawing.ACTUAL, width=5.0, **left)
        predicted = self.loss_empirical[1:]
        drawing.line(figure, steps, predicted, "predicted", drawing.EMPIRICAL, **left)
        if self.loss_infinite is not None:
            limit = self.loss_infinite[1:]
            drawing.line(
                figure, steps, limit, "at infinite width", drawing.INFINITE, dash="dash", **left
            )
        right: dict[str, Any] = {"row": 1, "col": 2}
        measures = (
            ("kernel drift", self.kernel_steps, self.kernel_drift),
            ("prediction error", self.steps, self.prediction_error),
            ("on test examples", self.steps, self.test_prediction_error),
        )
        for (name, at, values), colour in zip(measures, drawing.PALETTE[2:], strict=False):
            if values is not None:
                drawing.line(figure, at[1:], values[1:], name, colour, **right)
        marks = self.verdict.thresholds
        figure.update_xaxes(type="log", dtick=1, title_text="step")
        figure.update_yaxes(type="log", exponentformat="power")
        drawing.horizontal(figure, marks.lazy_drift, "lazy below", **right)
        drawing.horizontal(figure, marks.feature_drift, "feature learning above", **right)
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Everything but the trained module by name; evidence and verdict as plain numbers."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "model"}
        values["failure_time"] = self.failure_time()
        return {**values, "evidence": asdict(self.evidence), "verdict": self.verdict.to_dict()}

    def __repr__(self) -> str:
        n, out = self.outputs.shape[1:]
        columns: dict[str, Tensor | None] = {
            "loss": self.loss,
            "empirical": self.loss_empirical,
            "infinite": self.loss_infinite,
            "test loss": self.test_loss,
            "pred. error": self.prediction_error,
            "test error": self.test_prediction_error,
            "moved": self.parameter_movement,
        }
        shown = {name: series for name, series in columns.items() if series is not None}
        rows = torch.linspace(0, len(self.steps) - 1, TABLE_ROWS).round().long().unique()
        lines = [
            f"TrainingCheck({self.regime}: {n} examples, {out} outputs, "
            f"{int(self.steps[-1])} steps, learning_rate={self.learning_rate:.4g}, "
            f"{self.kernel_form} kernel)",
            "  " + f"{'step':>7}" + "".join(f"{name:>12}" for name in shown),
            *(
                "  "
                + f"{int(self.steps[i]):>7}"
                + "".join(f"{s[i]:>12.4g}" for s in shown.values())
                for i in rows.tolist()
            ),
            f"  {self.verdict}",
        ]
        return "\n".join(lines)
