"""`compare`: several architectures on the same data, by their kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tangency import drawing, examples
from tangency.analysis import (
    CrossValidation,
    GradientDescent,
    KernelMatrix,
    LearningCurve,
    Spectrum,
    estimated_learning_curve,
    kernel_matrix,
    leave_one_out,
    spectrum,
    target_alignment,
)
from tangency.analysis.numbers import check_ridge
from tangency.empirical import EmpiricalKernel
from tangency.errors import InvalidInput, TangencyError
from tangency.examples import Examples
from tangency.infinite import InfiniteKernel, Init

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Architecture", "Comparison", "compare"]

Which: TypeAlias = Literal["auto", "infinite", "empirical"]

DASHES: tuple[drawing.Dash, ...] = ("solid", "dash", "dot")
"""Of lines, by how often the palette has been used up."""

CURVE_POINTS = 12
"""Numbers of examples on a predicted learning curve, even in the logarithm from n/16 to n."""


@dataclass(frozen=True, eq=False, repr=False)
class Architecture:
    """One architecture on n examples, by its NTK.

    Attributes:
        name: as given, or the type of the module and its place.
        kernel: (n, n), mean over outputs, with its eigendecomposition.
        kind: which NTK it is, "infinite" or "empirical".
        reason: why it is the empirical one, if the infinite one was wanted; else None.
        parameters: number of trainable parameters.
        spectrum: of the kernel and the targets.
        alignment: centred kernel alignment with the targets, see `target_alignment`.
        max_learning_rate: largest stable step of gradient descent, 2 n / lambda_max.
        ridge: what is added to the kernel in the next two: `ridge` of `compare` times the mean
            of its diagonal.
        held_out: leave-one-out predictions of kernel ridge regression.
        accuracy: fraction of examples whose largest leave-one-out output is that of the largest
            target; NaN for a single output.
        curve: predicted test error of n/16 to n examples, `estimated_learning_curve`.
    """

    name: str
    kernel: KernelMatrix
    kind: Literal["infinite", "empirical"]
    reason: str | None
    parameters: int
    spectrum: Spectrum
    alignment: float
    max_learning_rate: float
    ridge: float
    held_out: CrossValidation
    accuracy: float
    curve: LearningCurve

    def to_dict(self) -> dict[str, Any]:
        """Numbers by name, the predicted learning curve as tensors."""
        return {
            "name": self.name,
            "kind": self.kind,
            "reason": self.reason,
            "parameters": self.parameters,
            "condition_number": self.spectrum.condition_number,
            "effective_rank": self.spectrum.effective_rank,
            "alignment": self.alignment,
            "max_learning_rate": self.max_learning_rate,
            "ridge": self.ridge,
            "leave_one_out": float(self.held_out.error),
            "accuracy": self.accuracy,
            "sizes": self.curve.sizes,
            "test_error": self.curve.test_error,
        }

    def __repr__(self) -> str:
        return (
            f"Architecture({self.name}: {self.kind} NTK, leave-one-out error "
            f"{float(self.held_out.error):.4g})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Architectures on the same examples and targets.

    Attributes:
        rows: in the order given.
        examples: n.
        constant: leave-one-out error of the mean of the other targets, which any use of the
            inputs should beat.
    """

    rows: tuple[Architecture, ...]
    examples: int
    constant: float

    def __getitem__(self, name: str) -> Architecture:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r}; there are {[row.name for row in self.rows]}")

    @property
    def best(self) -> Architecture:
        """Of least leave-one-out error."""
        return min(self.rows, key=lambda row: float(row.held_out.error))

    def to_dict(self) -> dict[str, Any]:
        """By name of architecture; and the numbers that all share."""
        return {
            "architectures": {row.name: row.to_dict() for row in self.rows},
            "examples": self.examples,
            "constant": self.constant,
        }

    def __repr__(self) -> str:
        wide = max(len("architecture"), *(len(row.name) for row in self.rows))
        heads = ("kernel", "condition", "eff. rank", "alignment", "stable step", "loo error")
        lines = [
            f"Comparison({len(self.rows)} architectures on {self.examples} examples; "
            f"error of a constant: {self.constant:.4g})",
            f"  {'architecture':<{wide}}" + "".join(f"{h:>12}" for h in (*heads, "accuracy")),
        ]
        for row in self.rows:
            numbers = (
                row.spectrum.condition_number,
                row.spectrum.effective_rank,
                row.alignment,
                row.max_learning_rate,
                float(row.held_out.error),
                row.accuracy,
            )
            shown = "".join(f"{'' if math.isnan(v) else format(v, '.4g'):>12}" for v in numbers)
            lines.append(f"  {row.name:<{wide}}{row.kind:>12}{shown}")
        lines += [
            f"  {r.name}: no infinite NTK ({_first(r.reason)})" for r in self.rows if r.reason
        ]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Spectra, predicted learning curves, alignment and leave-one-out error."""
        titles = ["eigenvalue over the mean", "predicted test error", "alignment with the targets"]
        figure = drawing.panels("Architectures by their kernels", [*titles, "leave-one-out error"])
        for k, row in enumerate(self.rows):
            colour = drawing.PALETTE[k % len(drawing.PALETTE)]
            values = row.spectrum.eigenvalues.double()
            ranks = torch.arange(1, len(values) + 1)
            shown = values > row.spectrum.tolerance
            relative = values / values.mean()
            name, dash = row.name, DASHES[k // len(drawing.PALETTE) % len(DASHES)]
            place: dict[str, Any] = {"row": 1, "col": 1, "dash": dash}
            drawing.line(figure, ranks[shown], relative[shown], name, colour, **place)
            x, y = row.curve.sizes, row.curve.test_error
            place |= {"col": 2, "legend": False}
            drawing.line(figure, x, y, name, colour, **place)
            for col, number in ((1, row.alignment), (2, float(row.held_out.error))):
                figure.add_bar(
                    x=[name],
                    y=drawing.numbers([number]),
                    marker_color=colour,
                    name=name,
                    legendgroup=name,
                    showlegend=False,
                    row=2,
                    col=col,
                )
        for col, title in ((1, "rank"), (2, "training examples")):
            figure.update_xaxes(type="log", dtick=1, title_text=title, row=1, col=col)
            figure.update_yaxes(type="log", dtick=1, exponentformat="power", row=1, col=col)
            figure.update_xaxes(type="category", row=2, col=col)
        drawing.horizontal(figure, self.constant, "constant", row=2, col=2)
        return figure


def compare(
    models: Mapping[str, nn.Module] | Sequence[nn.Module],
    x: Examples,
    y: Tensor,
    *,
    kernel: Which = "auto",
    ridge: float = 1e-3,
    init: Init | str = "module",
) -> Comparison:
    """What architectures make of the same data, before any training, by their NTK.

    Kernel regression with the NTK is what infinitely wide networks do when they are trained to the
    end (Jacot et al. 2018), from outputs of zero on average. Where a module has an infinite-width
    limit, its kernel is taken, so that chance in the initial weights plays no part; else the
    empirical one of the module as it stands, and the result says why.

    Args:
        models: name -> module, or modules, which are then named by type and place.
        x: n examples, at least 4, for all of them.
        y: (n,) or (n, out), real: one-hot encode classes, and subtract the mean.
        kernel: "infinite" insists on the infinite NTK, "empirical" takes that of every module as
            it stands.
        ridge: of leave-one-out and learning curve, in units of the mean diagonal of each kernel,
            so that kernels of different size stand alike.
        init: of infinite kernels, as for `InfiniteKernel`.

    Raises:
        InvalidInput: no models, equal names, bad data or targets, a negative ridge; a module that
            neither kernel can be computed of.
        UnsupportedOperation: with kernel="infinite", a module without one.
    """
    named = _named(models)
    examples.check(x, "x")
    n = examples.count(x)
    if n < 4:
        raise InvalidInput(f"x holds {n} examples, but a comparison needs at least 4.")
    check_ridge(ridge)
    if kernel not in ("auto", "infinite", "empirical"):
        raise InvalidInput(f'kernel is {kernel!r}; use "auto", "infinite" or "empirical".')
    kernels = [(name, model, *_ntk(model, x, kernel, init)) for name, model in named.items()]
    rows = [
        _judged(name, model, ntk, y, ridge, reason, kind)
        for name, model, ntk, kind, reason in kernels
    ]
    labels = y.detach().double().reshape(n, -1)
    spread = float((labels - labels.mean(dim=0)).square().sum(dim=1).mean())
    return Comparison(tuple(rows), n, spread * (n / (n - 1)) ** 2)


def _named(models: Mapping[str, nn.Module] | Sequence[nn.Module]) -> dict[str, nn.Module]:
    if isinstance(models, Mapping):
        named = dict(models)
    elif isinstance(models, nn.Module):
        raise InvalidInput("models is one module: pass a list, or a dictionary by name.")
    else:
        named = {f"{type(m).__name__} {k}": m for k, m in enumerate(models)}
    if not named:
        raise InvalidInput("models is empty: pass at least one.")
    for name, model in named.items():
        if not isinstance(model, nn.Module):
            raise InvalidInput(f"model {name!r} is a {type(model).__name__}, not an nn.Module.")
    return named


def _ntk(
    model: nn.Module, x: Examples, wanted: Which, init: Init | str
) -> tuple[Tensor, Literal["infinite", "empirical"], str | None]:
    """(n, n) NTK, which one it is, and why not the infinite one."""
    reason = None
    if wanted != "empirical":
        try:
            limit = InfiniteKernel(model, x, init=init).ntk(x)
            if limit.dim() == 2:
                return limit, "infinite", None
            reason = f"the outputs have positions (kernels of shape {tuple(limit.shape)})"
            if wanted == "infinite":
                raise InvalidInput(f"{type(model).__name__}: {reason}.")
        except TangencyError as error:
            if wanted == "infinite":
                raise
            reason = str(error)
    return EmpiricalKernel(model, output="trace").ntk(x), "empirical", reason


def _judged(
    name: str,
    model: nn.Module,
    ntk: Tensor,
    y: Tensor,
    ridge: float,
    reason: str | None,
    kind: Literal["infinite", "empirical"],
) -> Architecture:
    matrix = kernel_matrix(ntk, f"the NTK of {name}")
    n = matrix.examples
    absolute = ridge * float(matrix.matrix.diagonal().mean())
    held_out = leave_one_out(matrix, y, absolute)
    sizes = torch.logspace(
        math.log2(max(n / 16, 2)), math.log2(n), CURVE_POINTS, base=2.0, dtype=torch.float64
    ).clamp(max=n)
    return Architecture(
        name=name,
        kernel=matrix,
        kind=kind,
        reason=reason,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        spectrum=spectrum(matrix, y),
        alignment=target_alignment(matrix, y, centered=True),
        max_learning_rate=GradientDescent(matrix, y).max_learning_rate,
        ridge=absolute,
        held_out=held_out,
        accuracy=_accuracy(held_out.predictions, y),
        curve=estimated_learning_curve(matrix, y, sizes, absolute),
    )


def _accuracy(predictions: Tensor, y: Tensor) -> float:
    if y.dim() < 2 or y.shape[1] < 2:
        return math.nan
    hits = predictions.argmax(dim=1) == y.to(predictions.device).argmax(dim=1)
    return float(hits.double().mean())


def _first(reason: str | None) -> str:
    return (reason or "").split(":")[0].split("\n")[0]
