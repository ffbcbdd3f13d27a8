"""How fast given patterns of the targets are learned: frequencies, degrees, classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangency import drawing
from tangency.analysis.numbers import check_fraction
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["PatternLearning", "fourier_patterns", "pattern_learning"]


@dataclass(frozen=True, eq=False, repr=False)
class PatternLearning:
    """The part of the error that lies in each of G patterns, over a training run.

    Attributes:
        names: of the patterns.
        times: (T,) float64, ascending: steps or time.
        errors: (T, G) float64: norm of the projection of outputs - targets on the pattern, over
            that at the first time.
        predicted: the same for each predicted run, by its name.
    """

    names: tuple[str, ...]
    times: Tensor
    errors: Tensor
    predicted: dict[str, Tensor]

    def learning_times(self, fraction: float = 1 / math.e, run: str | None = None) -> Tensor:
        """(G,) first time at which no more than `fraction` of a pattern's error is left.

        Between recorded times the logarithm of the error is interpolated; infinite where the
        fraction is not reached.

        Args:
            fraction: between 0 and 1.
            run: one of `predicted`; None for what happened.

        Raises:
            InvalidInput: a fraction outside (0, 1), or no such run.
        """
        check_fraction(fraction)
        if run is not None and run not in self.predicted:
            raise InvalidInput(f"there is no run {run!r}, only {sorted(self.predicted)}.")
        errors = self.errors if run is None else self.predicted[run]
        crossings = [_crossing(self.times, error, fraction) for error in errors.T]
        return torch.tensor(crossings, dtype=torch.float64)

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def figure(self) -> Figure:
        """The error in each pattern against time: what happened solid, predictions dashed.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure(
            "What is learned when", "step", "error left", x_axis="log", y_axis="log"
        )
        dashes: tuple[drawing.Dash, ...] = ("dash", "dot", "dashdot")
        later = self.times > 0
        for i, name in enumerate(self.names):
            colour = drawing.PALETTE[i % len(drawing.PALETTE)]
            drawing.line(figure, self.times[later], self.errors[later, i], name, colour)
            for j, (run, errors) in enumerate(self.predicted.items()):
                drawing.line(
                    figure,
                    self.times[later],
                    errors[later, i],
                    f"{name}, {run}",
                    colour,
                    dash=dashes[j % len(dashes)],
                    width=1.2,
                )
        return figure

    def __repr__(self) -> str:
        runs = [None, *self.predicted]
        times = [self.learning_times(run=run) for run in runs]
        head = "".join(f"{run or 'measured':>14}" for run in runs)
        lines = [
            f"PatternLearning: time until 1/e of the error is left, of {float(self.times[-1]):g}",
            f"  {'pattern':>12}{head}",
        ]
        for i, name in enumerate(self.names):
            lines.append(f"  {name:>12}" + "".join(f"{float(t[i]):>14.4g}" for t in times))
        return "\n".join(lines)


def pattern_learning(
    times: Tensor | Sequence[float],
    outputs: Tensor,
    targets: Tensor,
    patterns: Mapping[str, Tensor],
    predicted: Mapping[str, Tensor] | None = None,
) -> PatternLearning:
    """Project the error of recorded outputs on patterns, and see when each is learned.

    Args:
        times: (T,), ascending, the first one the start of training.
        outputs: (T, n) or (T, n, out), outputs on n examples at each time.
        targets: (n,) or (n, out).
        patterns: name -> (n,) or (n, r): the span of the columns, which need not be orthonormal,
            is one pattern. For patterns to be told apart they must be orthogonal to each other.
        predicted: name -> outputs of a prediction, shaped as `outputs`.

    Raises:
        InvalidInput: shapes that do not fit, NaN or infinite entries, times that do not ascend,
            patterns whose columns are linearly dependent, or a pattern that has no error at the
            start.
    """
    when = torch.as_tensor(times).detach().cpu().double()
    if when.dim() != 1 or len(when) < 2 or not bool((when.diff() > 0).all()):
        raise InvalidInput("times must be two or more numbers, ascending.")
    if not patterns:
        raise InvalidInput("patterns is empty: name one pattern at least.")
    bases = [_basis(name, pattern, len(targets)) for name, pattern in patterns.items()]
    runs = {"outputs": outputs, **(predicted or {})}
    found = {
        name: _errors(_residual(name, run, targets, len(when)), bases, list(patterns))
        for name, run in runs.items()
    }
    return PatternLearning(
        names=tuple(patterns),
        times=when,
        errors=found.pop("outputs"),
        predicted=found,
    )


def fourier_patterns(angles: Tensor, frequencies: Sequence[int]) -> dict[str, Tensor]:
    """Patterns for `pattern_learning`: sine and cosine of each frequency, by name "frequency k".

    On equally spaced angles those below n / 2 are orthogonal.

    Args:
        angles: (n,), in radians.
        frequencies: zero (the constant) or positive.

    Raises:
        InvalidInput: angles that are not (n,), or negative frequencies.
    """
    if angles.dim() != 1 or any(k < 0 for k in frequencies):
        raise InvalidInput("angles must be (n,) and frequencies not negative.")
    turned = {k: angles.double() * k for k in frequencies}
    return {
        f"frequency {k}": torch.stack([a.cos(), a.sin()], dim=1) if k else a.cos()[:, None]
        for k, a in turned.items()
    }


def _basis(name: str, pattern: Tensor, n: int) -> Tensor:
    columns = pattern.detach().cpu().double()
    columns = columns[:, None] if columns.dim() == 1 else columns
    if columns.dim() != 2 or len(columns) != n or not bool(torch.isfinite(columns).all()):
        raise InvalidInput(
            f"pattern {name!r} has shape {tuple(pattern.shape)}, but must be ({n},) or ({n}, r), "
            "of finite numbers."
        )
    basis, triangle = torch.linalg.qr(columns)
    sizes = triangle.diagonal().abs()
    if columns.shape[1] > n or float(sizes.min()) <= 1e-10 * float(sizes.max()):
        raise InvalidInput(f"the columns of pattern {name!r} are linearly dependent, or zero.")
    found: Tensor = basis
    return found


def _residual(name: str, outputs: Tensor, targets: Tensor, times: int) -> Tensor:
    """(T, n, out) float64."""
    if outputs.shape[1:] != targets.shape or len(outputs) != times or targets.dim() not in (1, 2):
        raise InvalidInput(
            f"{name} has shape {tuple(outputs.shape)}, but with {times} times and targets "
            f"{tuple(targets.shape)} it must be {(times, *targets.shape)}."
        )
    residual = outputs.detach().cpu().double() - targets.detach().cpu().double()
    if not bool(torch.isfinite(residual).all()):
        raise InvalidInput(f"{name} or targets hold NaN or infinite entries.")
    return residual.reshape(times, len(targets), -1)


def _errors(residual: Tensor, bases: list[Tensor], names: list[str]) -> Tensor:
    errors = torch.stack([(basis.mT @ residual).norm(dim=(-2, -1)) for basis in bases], dim=1)
    scale = float(residual[0].norm())
    for name, start in zip(names, errors[0].tolist(), strict=True):
        if start <= 1e-12 * scale:
            raise InvalidInput(f"there is no error in pattern {name!r} at the start.")
    return errors / errors[0]


def _crossing(times: Tensor, error: Tensor, fraction: float) -> float:
    below = (error <= fraction).nonzero()
    if len(below) == 0:
        return math.inf
    last = int(below[0])  # the error starts at one, so that last > 0
    before, after = (math.log(max(float(error[i]), 1e-300)) for i in (last - 1, last))
    share = (before - math.log(fraction)) / (before - after)
    return float(times[last - 1] + share * (times[last] - times[last - 1]))
