"""The few examples on which a network is followed, and their targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tangency import examples
from tangency.empirical.function import differentiable_copy
from tangency.errors import InvalidInput
from tangency.examples import Examples

__all__ = ["Loss", "Probe", "squared_loss"]

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A loss of outputs and targets, the mean over examples."""


def squared_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """1/(2n) sum_i |f(x_i) - y_i|^2: mean over examples, sum over outputs, one half."""
    return (outputs.reshape(len(y), -1) - y.reshape(len(y), -1)).square().sum() / (2 * len(y))


@dataclass(frozen=True, eq=False)
class Probe:
    """Checked examples.

    Attributes:
        x: p examples.
        y: (p, ...) their targets as the loss takes them.
        index: (p,) int64, which of the examples given they are.
        loss: of outputs and targets.
        is_squared: whether it is the squared loss.
    """

    x: Examples
    y: Tensor
    index: Tensor
    loss: Loss
    is_squared: bool

    @classmethod
    def of(cls, x: Examples, y: Tensor, loss: Loss | None, size: int, seed: int) -> Probe:
        """At most `size` of the examples, drawn at random without replacement.

        Raises:
            InvalidInput: data that are empty or not finite, targets of another length, integers as
                targets of the squared loss, or a size that is no positive integer.
        """
        examples.check(x, "x_probe")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidInput(f"probe is {size!r}, but must be a positive integer.")
        n = examples.count(x)
        _check_targets(y, n, squared=loss is None)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        index = order[:size].sort().values if n > size else torch.arange(n)
        taken = differentiable_copy(examples.take(x, index.to(examples.tensors(x)[0].device)))
        kept = y.detach()[index.to(y.device)].clone().to(examples.tensors(x)[0].device)
        return cls(taken, kept, index, squared_loss if loss is None else loss, loss is None)

    def columns(self, out: int) -> Tensor | None:
        """Targets (p, out) in float64, class labels one-hot; None where they are neither."""
        y, p = self.y.cpu(), len(self.y)
        if y.is_floating_point():
            return y.double().reshape(p, -1) if y.numel() == p * out else None
        if y.dim() == 1 and bool((y >= 0).all()) and bool((y < out).all()):
            return torch.nn.functional.one_hot(y.long(), out).double()
        return None


def _check_targets(y: Tensor, n: int, *, squared: bool) -> None:
    if not isinstance(y, Tensor):
        raise InvalidInput(f"y_probe must be a torch.Tensor, not {type(y).__name__}.")
    if y.dim() == 0 or len(y) != n:
        raise InvalidInput(
            f"y_probe has shape {tuple(y.shape)}, but x_probe has {n} examples: one row for each."
        )
    if squared and not y.is_floating_point():
        raise InvalidInput(
            f"y_probe has dtype {y.dtype}, but targets of the squared loss are real. Pass "
            "loss=torch.nn.functional.cross_entropy for class labels, or one-hot encode them."
        )
    if y.is_floating_point() and not bool(torch.isfinite(y).all()):
        row = int((~torch.isfinite(y)).nonzero()[0, 0])
        raise InvalidInput(f"y_probe holds NaN or infinite values, first in example {row}.")
