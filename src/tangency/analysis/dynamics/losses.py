"""Losses by name, as means over examples, and their gradients in the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tangency.analysis.matrix import ArrayLike, KernelMatrix
from tangency.analysis.matrix import targets as real_targets
from tangency.errors import InvalidInput

__all__ = ["LossFunction", "LossName", "Objective", "objective"]

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""f(outputs, targets) -> the loss, a scalar: the mean over examples."""

LossName: TypeAlias = Literal["squared", "cross-entropy", "logistic", "huber"]


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """1/(2n) sum_i |f(x_i) - y_i|^2."""
    return (outputs - targets).square().sum() / (2 * len(targets))


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of the softmax of the outputs; classes, or a probability for each of them."""
    return F.cross_entropy(outputs, targets)


def logistic(outputs: Tensor, targets: Tensor) -> Tensor:
    """1/n sum_i log(1 + exp(-y_i f(x_i))), y = -1 or 1, summed over outputs."""
    return F.softplus(-targets * outputs).sum() / len(targets)


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """1/n sum_i h(f(x_i) - y_i), h(r) = r^2 / 2 for |r| < 1 and |r| - 1/2 beyond."""
    return F.huber_loss(outputs, targets, reduction="sum") / len(targets)


_NAMED: dict[str, LossFunction] = {
    "squared": squared,
    "cross-entropy": cross_entropy,
    "logistic": logistic,
    "huber": huber,
}


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss and its targets.

    Attributes:
        function: loss of outputs and targets.
        name: for people.
        targets: (n,) or (n, out) in float64, or classes (n,) in int64.
        out: number of outputs.
        is_vector: whether outputs are (n,).
    """

    function: LossFunction
    name: str
    targets: Tensor
    out: int
    is_vector: bool

    def value(self, outputs: Tensor) -> Tensor:
        """The loss, (), at outputs (n, out)."""
        with torch.no_grad():
            return self._call(outputs)

    def gradient(self, outputs: Tensor) -> Tensor:
        """Its gradient in the outputs, (n, out)."""
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            loss = self._call(leaf)
            if not loss.requires_grad:
                raise InvalidInput(
                    f"the loss {self.name} does not depend on the outputs by operations that "
                    "autograd can follow (a detach, NumPy, or a count?)."
                )
            (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient

    def check(self, outputs: Tensor) -> None:
        """Refuse a loss that is not a finite scalar at the initial outputs, or has no gradient."""
        loss = self._call(outputs)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise InvalidInput(
                f"the loss {self.name} gave {shape}, but must give one number: the mean over "
                "examples."
            )
        if not bool(torch.isfinite(loss)) or not bool(torch.isfinite(self.gradient(outputs)).all()):
            raise InvalidInput(
                f"the loss {self.name}, or its gradient, is not finite at the initial outputs."
            )

    def _call(self, outputs: Tensor) -> Tensor:
        return self.function(outputs[:, 0] if self.is_vector else outputs, self.targets)


def objective(
    loss: LossName | LossFunction, given: ArrayLike, kernel: KernelMatrix, outputs: int | None
) -> Objective:
    """The loss `loss` on the targets `given`.

    Raises:
        InvalidInput: an unknown name, targets that do not fit the kernel or the loss.
    """
    if isinstance(loss, str) and loss not in _NAMED:
        raise InvalidInput(f"loss is {loss!r}; there are {', '.join(_NAMED)}, or a function.")
    function = _NAMED[loss] if isinstance(loss, str) else loss
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    tensor = torch.from_numpy(np.array(given)) if isinstance(given, np.ndarray) else given
    whole = isinstance(tensor, Tensor) and not (tensor.is_floating_point() or tensor.is_complex())
    if whole and (not isinstance(loss, str) or loss == "cross-entropy"):
        return _classes(function, name, tensor, kernel, outputs)
    labels = real_targets(given, kernel, "y_train")
    _check_values(name, labels.values, labels.is_vector)
    out = labels.values.shape[1]
    if outputs is not None and outputs != out:
        raise InvalidInput(f"outputs={outputs}, but y_train has {out} for each example.")
    values = labels.values[:, 0] if labels.is_vector else labels.values
    return Objective(function, name, values, out, labels.is_vector)


def _classes(
    function: LossFunction, name: str, given: Tensor, kernel: KernelMatrix, outputs: int | None
) -> Objective:
    classes = given.detach().to(kernel.matrix.device).long()
    if tuple(classes.shape) != (kernel.examples,):
        raise InvalidInput(
            f"y_train has shape {tuple(given.shape)}, but classes of {kernel.examples} examples "
            f"are ({kernel.examples},)."
        )
    if int(classes.min()) < 0:
        raise InvalidInput(f"y_train holds the class {int(classes.min())}; classes start at 0.")
    out = kernel.outputs or outputs or int(classes.max()) + 1
    if outputs is not None and outputs != out:
        raise InvalidInput(f"outputs={outputs}, but the kernel has {out}.")
    if int(classes.max()) >= out:
        raise InvalidInput(f"y_train holds the class {int(classes.max())} of only {out} outputs.")
    return Objective(function, name, classes, out, is_vector=False)


def _check_values(name: str, values: Tensor, is_vector: bool) -> None:
    if name == "logistic" and not bool((values.abs() == 1).all()):
        raise InvalidInput("y_train of the logistic loss holds -1. and 1., and nothing else.")
    if name == "cross-entropy":
        if is_vector:
            raise InvalidInput(
                "y_train of the cross-entropy holds classes (n,) as integers, or probabilities "
                "(n, classes)."
            )
        sums = values.sum(dim=1)
        if bool((values < 0).any()) or bool(((sums - 1).abs() > 1e-4).any()):
            raise InvalidInput(
                "y_train of the cross-entropy must be probabilities: at least 0, and 1 together "
                "for each example."
            )
