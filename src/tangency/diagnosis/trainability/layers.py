"""What layers do to signal and gradient at initialisation, measured on the module, by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangency import drawing, examples
from tangency.diagnosis.trainability.recording import Call, Recorder
from tangency.empirical.function import detached, differentiable_copy, outputs, undisturbed
from tangency.errors import InvalidInput, TangencyError
from tangency.examples import Examples

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["LayerLimits", "LayerSignal", "LayerSignals", "Problem", "layer_signals"]


FEW = 8
"""Outputs of which a cosine says little: of a single one it is a sign."""


@dataclass(frozen=True)
class LayerLimits:
    """From where a layer is reported.

    Attributes:
        gradient: a gradient so many times smaller or larger than that of the last layer, as norms
            over all parameters of a layer.
        signal: a mean square of the outputs of so many times less or more than that of the first
            layer with parameters.
        correlation: mean cosine between the outputs of different examples, above which they are
            alike to the layers that follow.
        saturated: fraction of saturated entries of a sigmoid-like activation.
        dead: fraction of units that are flat and the same on every example. It is one half where
            all inputs have become alike, which is another trouble.
    """

    gradient: float = 1e2
    signal: float = 1e6
    correlation: float = 0.999
    saturated: float = 0.75
    dead: float = 0.7


@dataclass(frozen=True)
class LayerSignal:
    """One layer on a batch.

    Attributes:
        name: qualified name of the module; an activation that is called as a function is named by
            it and by the layer that it comes after.
        kind: type of the module, or name of the function.
        second_moment: mean square of the outputs over examples and units.
        correlation: mean cosine between the outputs of different examples; NaN for one example.
        backward: second moment of the gradient of the loss in the outputs, sum over units, mean
            over examples.
        gradient: norm of the gradient in the parameters of the layer; NaN without any.
        saturated: fraction of entries with a slope below `recording.FLAT` of the steepest; NaN for
            layers that are no activation. Half of the entries of a ReLU are.
        dead: fraction of units with such a slope, and the same output, on every example; NaN
            likewise. Units of images are channels.
        units: number of outputs per example.
    """

    name: str
    kind: str
    second_moment: float
    correlation: float
    backward: float
    gradient: float
    saturated: float
    dead: float
    units: int

    @property
    def is_activation(self) -> bool:
        """Whether the layer is a pointwise function."""
        return not math.isnan(self.saturated)


@dataclass(frozen=True)
class Problem:
    """A layer that is out of bounds, with the reason in words."""

    layer: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.reason}"


@dataclass(frozen=True, eq=False, repr=False)
class LayerSignals:
    """Layers in the order of their calls, and those that are out of bounds.

    Attributes:
        layers: one entry per call of a layer with parameters, or of an activation.
        limits: from where a layer is reported.
        count: number of examples.
        loss: what gradients are taken of: "targets" for the squared loss on given targets,
            "random" for random cotangents at the outputs.
    """

    layers: tuple[LayerSignal, ...]
    limits: LayerLimits
    count: int
    loss: str

    @property
    def gradient_range(self) -> float:
        """Largest over smallest norm of the gradient in the parameters of a layer."""
        norms = [layer.gradient for layer in self.layers if not math.isnan(layer.gradient)]
        if not norms:
            return math.nan
        return max(norms) / min(norms) if min(norms) > 0 else math.inf

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Layers out of bounds, in order."""
        return tuple(_problems(self))

    def to_dict(self) -> dict[str, Any]:
        """Layers, limits and problems as plain numbers and words."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "limits": asdict(self.limits),
            "problems": [asdict(problem) for problem in self.problems],
            "count": self.count,
            "loss": self.loss,
            "gradient_range": self.gradient_range,
        }

    def __repr__(self) -> str:
        names = ("signal", "cosine", "backward", "gradient", "saturated", "dead")
        wide = max([len(layer.name) for layer in self.layers] + [5])
        lines = [
            f"LayerSignals({len(self.layers)} layers on {self.count} examples, gradients of "
            f"{self.loss})",
            f"  {'layer':<{wide}}  {'kind':<12}" + "".join(f"{n:>11}" for n in names),
        ]
        for s in self.layers:
            values = (s.second_moment, s.correlation, s.backward, s.gradient, s.saturated, s.dead)
            shown = "".join(f"{'' if math.isnan(v) else format(v, '.3g'):>11}" for v in values)
            lines.append(f"  {s.name:<{wide}}  {s.kind[:12]:<12}{shown}")
        found: dict[str, list[Problem]] = {}
        for problem in self.problems:
            found.setdefault(problem.kind, []).append(problem)
        for kind, several in found.items():
            more = f" (and {len(several) - 1} more)" if len(several) > 1 else ""
            lines.append(f"  ! {kind}: {several[0]}{more}")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Signal, gradients and flat units from the first layer to the last."""
        figure = drawing.panels(
            "Layers at initialisation",
            [
                "mean square of the outputs",
                "squared gradient in the outputs",
                "norm of the gradient in the parameters",
                "flat entries and units",
            ],
        )
        x = torch.arange(len(self.layers), dtype=torch.float64)
        names = [f"{s.name} ({s.kind})" for s in self.layers]
        rows = (
            ("second_moment", 1, 1),
            ("backward", 1, 2),
            ("gradient", 2, 1),
            ("saturated", 2, 2),
        )
        for name, row, col in rows:
            y = [getattr(s, name) for s in self.layers]
            place: dict[str, Any] = {"row": row, "col": col, "legend": name == "saturated"}
            drawing.points(figure, x, y, name, text=names, **place)
            figure.update_yaxes(type="log", exponentformat="power", row=row, col=col)
            figure.update_xaxes(title_text="layer, in order of calls", row=row, col=col)
        dead = [s.dead for s in self.layers]
        drawing.points(figure, x, dead, "dead", drawing.INFINITE, text=names, row=2, col=2)
        figure.update_yaxes(type="linear", range=[-0.05, 1.05], row=2, col=2)
        return figure


def layer_signals(
    model: nn.Module,
    example: Examples,
    targets: Tensor | None = None,
    *,
    limits: LayerLimits | None = None,
    draws: int = 4,
) -> LayerSignals:
    """Signal and gradients of every layer of `model` as it stands, in the mode that it is in.

    Batch normalisation in training mode uses the statistics of the batch, as in training. The
    module stays as it is: modes, buffers, gradients, hooks, and the random state.

    Args:
        model: any module that returns one tensor with one row per example.
        example: n examples; 32 or more tell dead units from units that are dead on a few.
        targets: (n, out) or (n,); then gradients are those of 1/(2n) sum_i |f(x_i) - y_i|^2. If
            None, of random cotangents at the outputs, root mean square over `draws` of them.
        limits: from where a layer is reported.
        draws: random cotangents.

    Raises:
        InvalidInput: bad example data or targets, a module without parameters, outputs that are
            not one real tensor.
    """
    examples.check(example, "example")
    with undisturbed(model, example):
        x = differentiable_copy(example)
        values = {
            name: p.clone().requires_grad_(p.is_floating_point())
            for name, p in detached(dict(model.named_parameters())).items()
        }
        if not values:
            raise InvalidInput(f"{type(model).__name__} has no parameters.")
        recorder = Recorder()
        out = _run(model, x, values, recorder)
        cotangents = _cotangents(out, targets, draws)
        return LayerSignals(
            layers=tuple(_signals(recorder.calls, out, values, cotangents)),
            limits=limits or LayerLimits(),
            count=examples.count(x),
            loss="random cotangents" if targets is None else "the squared loss",
        )


def _run(model: nn.Module, x: Examples, values: dict[str, Tensor], recorder: Recorder) -> Tensor:
    try:
        with recorder.watching(model):
            return outputs(model, x, values)
    except TangencyError:
        raise
    except Exception as error:
        raise InvalidInput(
            f"{type(model).__name__} does not run on example: {type(error).__name__}: {error}"
        ) from error


def _cotangents(out: Tensor, targets: Tensor | None, draws: int) -> list[Tensor]:
    """Gradients of the loss in the outputs, those of one example of a size that n leaves alone."""
    if targets is not None:
        y = targets.to(out)
        if y.numel() != out.numel():
            raise InvalidInput(
                f"targets has shape {tuple(targets.shape)}, but the outputs {tuple(out.shape)}."
            )
        return [(out.detach() - y.reshape(out.shape)) / len(out)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(draws)]
    return [torch.randn(out.shape, generator=g).to(out) / len(out) for g in generators]


def _signals(
    calls: list[Call], out: Tensor, values: dict[str, Tensor], cotangents: list[Tensor]
) -> Iterator[LayerSignal]:
    """The calls with mean squares over cotangents of the gradients."""
    names = list(values)
    tensors = [*values.values(), *(call.output for call in calls)]
    squares = [0.0] * len(tensors)
    for cotangent in cotangents:
        gradients = torch.autograd.grad(
            out, tensors, cotangent, retain_graph=True, allow_unused=True
        )
        for k, g in enumerate(gradients):
            squares[k] += 0.0 if g is None else float(g.double().square().sum()) / len(cotangents)
    per_parameter = dict(zip(names, squares, strict=False))
    for call, square in zip(calls, squares[len(names) :], strict=True):
        norm = math.sqrt(sum(per_parameter.get(name, 0.0) for name in call.parameters))
        yield LayerSignal(
            name=call.name,
            kind=call.kind,
            second_moment=call.second_moment,
            correlation=call.correlation,
            backward=square * len(out),
            gradient=norm if call.parameters else math.nan,
            saturated=call.saturated,
            dead=call.dead,
            units=call.output[0].numel(),
        )


def _problems(signals: LayerSignals) -> Iterator[Problem]:
    limits = signals.limits
    norms = [s.gradient for s in signals.layers if not math.isnan(s.gradient)]
    last = norms[-1] if norms else math.nan
    first = next((s.second_moment for s in signals.layers if not s.is_activation), math.nan)
    for s in signals.layers:
        for kind, reason in _reasons(s, limits, last, first):
            yield Problem(s.name, kind, reason)


def _reasons(
    s: LayerSignal, limits: LayerLimits, last: float, first: float
) -> Iterator[tuple[str, str]]:
    if s.gradient * limits.gradient < last:
        yield (
            "vanishing",
            f"its gradient ({s.gradient:.2g}) is {last / s.gradient:.2g} times smaller than "
            "that of the last layer"
            if s.gradient > 0
            else "its gradient is zero",
        )
    if s.gradient > limits.gradient * last:
        yield (
            "exploding",
            f"its gradient ({s.gradient:.2g}) is {s.gradient / max(last, 1e-300):.2g} times "
            "larger than that of the last layer",
        )
    if s.second_moment * limits.signal < first:
        yield "signal lost", f"its outputs have a mean square of only {s.second_moment:.2g}"
    if s.second_moment > limits.signal * first:
        yield "signal explodes", f"its outputs have a mean square of {s.second_moment:.2g}"
    if s.correlation > limits.correlation and s.units >= FEW:
        yield "inputs alike", f"different examples have outputs of mean cosine {s.correlation:.5g}"
    if s.dead > limits.dead:
        yield "dead", f"{s.dead:.0%} of its units are flat, and the same, on every example"
    elif s.saturated > limits.saturated:
        yield "saturating", f"{s.saturated:.0%} of its entries are where the activation is flat"
