"""Times at which predictions are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor

from tangency.analysis.numbers import as_numbers
from tangency.errors import InvalidInput

__all__ = ["Moments", "Times", "check_whole", "moments"]

Times: TypeAlias = float | Sequence[float] | Tensor | npt.NDArray[Any]
"""One time, or many in one dimension; infinity is the limit."""


@dataclass(frozen=True, eq=False)
class Moments:
    """The times asked for: `values` (T,) in float64; `is_scalar` if one was given by itself."""

    values: Tensor
    is_scalar: bool

    @property
    def given(self) -> Tensor:
        """() or (T,), as they were given."""
        return self.pick(self.values)

    def pick(self, values: Tensor) -> Tensor:
        """`values` (T, ...), without T if one time was given."""
        return values[0] if self.is_scalar else values


def moments(times: Times, device: torch.device) -> Moments:
    """The checked times.

    Raises:
        InvalidInput: not real numbers in at most one dimension, none at all, negative or NaN.
    """
    values, is_scalar = as_numbers(times, "times")
    values = values.to(device)
    bad = ~(values >= 0)
    if bool(bad.any()):
        raise InvalidInput(f"times must not be negative or NaN, got {float(values[bad][0])}.")
    return Moments(values, is_scalar)


def check_whole(times: Tensor, what: str) -> None:
    """Refuse times between two steps; infinity passes.

    Raises:
        InvalidInput: names the first fraction.
    """
    steps = times[torch.isfinite(times)]
    if bool((steps != steps.round()).any()):
        fraction = float(steps[steps != steps.round()][0])
        raise InvalidInput(
            f"{what} takes whole steps, got {fraction:g}: round them, or use GradientFlow, which "
            "takes any time."
        )
