"""The scales of parameters at initialisation: measured on the module, or prescribed."""

from __future__ import annotations

import fnmatch
import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tangency.errors import InvalidInput

__all__ = ["Init", "NotIidWarning", "measured_moment"]

_PACKAGE = str(Path(__file__).parents[1])

Moment: TypeAlias = "float | Tensor | Callable[[int, int], float | Tensor]"
"""A second moment, or a function of (fan_in, fan_out) that gives it."""


class NotIidWarning(UserWarning):
    """A parameter is plainly not a zero-mean i.i.d. sample: the limit does not describe it."""


@dataclass(frozen=True)
class Init:
    """Second moments of weights and biases at initialisation.

    Attributes:
        weight: second moment of the weights times fan-in, w2 = fan_in E[W_ij^2] (2.0 for He), or a
            function of (fan_in, fan_out). A scalar tensor that requires gradients makes the kernel
            differentiable with respect to it; so for the others.
        bias: second moment of the biases, b2 = E[b_i^2], or a function of (fan_in, fan_out).
        overrides: qualified-name pattern (as in `fnmatch`) -> the moment of the parameters it
            matches, weights or biases; the last match counts.

    Raises:
        InvalidInput: a negative or non-finite moment.
    """

    weight: Moment
    bias: Moment = 0.0
    overrides: Mapping[str, Moment] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, moment in {"weight": self.weight, "bias": self.bias, **self.overrides}.items():
            number = moment.detach() if isinstance(moment, Tensor) else moment
            if not callable(number) and not (math.isfinite(number) and number >= 0):
                raise InvalidInput(f"Init: {name} is {moment}; a second moment is at least 0.")

    @classmethod
    def he(cls, bias: Moment = 0.0) -> Init:
        """He et al. (2015), fan-in: w2 = 2."""
        return cls(weight=2.0, bias=bias)

    @classmethod
    def lecun(cls, bias: Moment = 0.0) -> Init:
        """LeCun et al. (1998): w2 = 1."""
        return cls(weight=1.0, bias=bias)

    @classmethod
    def xavier(cls, gain: float = 1.0, bias: Moment = 0.0) -> Init:
        """Glorot and Bengio (2010): variance gain^2 * 2 / (fan_in + fan_out)."""
        return cls(lambda fan_in, fan_out: gain**2 * 2 * fan_in / (fan_in + fan_out), bias)

    @classmethod
    def pytorch_default(cls) -> Init:
        """`nn.Linear.reset_parameters`: uniform with bound 1 / sqrt(fan_in), so w2 = 1/3."""
        return cls(weight=1 / 3, bias=lambda fan_in, fan_out: 1 / (3 * fan_in))

    def moment(self, name: str, role: str, fan_in: int, fan_out: int) -> float | Tensor:
        """w2 or b2 of the parameter `name`; `role` is "weight" or "bias"."""
        moment = self.weight if role == "weight" else self.bias
        for pattern, override in self.overrides.items():
            if fnmatch.fnmatchcase(name, pattern):
                moment = override
        value = moment(fan_in, fan_out) if callable(moment) else moment
        return value if isinstance(value, Tensor) else float(value)

    def check_overrides(self, model: nn.Module) -> None:
        """Refuse a pattern that names no parameter of the module: it would silently do nothing."""
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        for pattern in self.overrides:
            if not fnmatch.filter(names, pattern):
                raise InvalidInput(
                    f"Init: the pattern {pattern!r} matches no parameter; there are {names}."
                )


_DECOMPOSED = 512
"""Rows or columns of the largest matrices that are decomposed for the check of singular values."""

_STEPS = 16
"""Of the bidiagonalisation of larger ones."""


def measured_moment(name: str, parameter: Tensor, role: str, fan_in: int) -> float:
    """w2 or b2 of a module's own parameter, with a warning if it is plainly not i.i.d."""
    values = parameter.detach().double()
    if not bool(torch.isfinite(values).all()):
        raise InvalidInput(f"the parameter {name} holds NaN or infinite values.")
    _warn_if_not_iid(name, values, role)
    moment = float(values.square().mean())
    return moment * fan_in if role == "weight" else moment


def _warn_if_not_iid(name: str, values: Tensor, role: str) -> None:
    problem = _mean_problem(values)
    if problem is None and role == "weight" and values.dim() == 2:
        problem = _rank_problem(values)
    if problem is not None:
        inside = itertools.takewhile(lambda f: f.filename.startswith(_PACKAGE), inspect.stack(0))
        warnings.warn(
            f"the parameter {name} does not look like a fresh zero-mean i.i.d. sample ({problem}): "
            "the infinite-width limit describes random initialisations with the same second "
            "moment, not this network. Pass init=Init(...) to choose the moments yourself.",
            NotIidWarning,
            # The caller's line, however deep in the package the parameter was met.
            stacklevel=1 + len(list(inside)),
        )


def _mean_problem(values: Tensor) -> str | None:
    count, mean, rms = values.numel(), float(values.mean()), float(values.square().mean().sqrt())
    if rms > 0 and count > 1 and abs(mean) > 5 * rms / math.sqrt(count) and abs(mean) > 0.05 * rms:
        return f"mean {mean:.3g} with root mean square {rms:.3g} over {count} entries"
    return None


def _rank_problem(values: Tensor) -> str | None:
    """The norm of an i.i.d. Gaussian matrix exceeds (sqrt(rows) + sqrt(columns) + t) rms with
    probability at most exp(-t^2 / 2) (Davidson and Szarek 2001, theorem II.13); here t = 4.
    """
    rows, columns = values.shape
    if min(rows, columns) < 4:
        return None
    rms = float(values.square().mean().sqrt())
    edge = rms * (math.sqrt(rows) + math.sqrt(columns) + 4)
    largest = _largest_singular_value(values)
    if largest > edge:
        return f"largest singular value {largest:.3g}, where i.i.d. entries stay below {edge:.3g}"
    return None


def _largest_singular_value(matrix: Tensor) -> float:
    """Exact of a small matrix. Of a large one, whose decomposition would take minutes, a lower
    bound that is close: by Golub-Kahan bidiagonalisation (Golub and Van Loan 2013, section 10.4).
    """
    if min(matrix.shape) <= _DECOMPOSED:
        return float(torch.linalg.matrix_norm(matrix, 2))
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], generator=generator, dtype=matrix.dtype)
    right = (start / start.norm()).to(matrix.device)
    left, below = matrix.new_zeros(matrix.shape[0]), matrix.new_zeros(())
    diagonal, beside = [], []
    for _ in range(_STEPS):
        left = matrix @ right - below * left
        diagonal.append(left.norm())
        left = left / diagonal[-1]
        following = matrix.T @ left - diagonal[-1] * right
        below = following.norm()
        beside.append(below)
        right = following / below
    bands = torch.diag(torch.stack(diagonal)) + torch.diag(torch.stack(beside[:-1]), 1)
    return float(torch.linalg.matrix_norm(bands, 2))
