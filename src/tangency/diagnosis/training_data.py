"""The data of a training run, held against the module that is trained on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.empirical.function import differentiable_copy, evaluate
from tangency.errors import InvalidInput
from tangency.examples import Examples

__all__ = ["TrainingData", "check_data"]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Checked data: targets (n, out) in the dtype of the outputs, and the initial outputs."""

    x: Examples
    y: Tensor
    x_test: Examples | None
    y_test: Tensor | None
    start: Tensor
    start_test: Tensor | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        x: Examples,
        y: Tensor,
        x_test: Examples | None,
        y_test: Tensor | None,
    ) -> TrainingData:
        """Raises InvalidInput where the outputs of `model` do not fit the targets, or are them."""
        x, x_test = differentiable_copy(x), differentiable_copy(x_test)
        start = _initial_outputs(model, x, "x")
        aligned = _targets_like(y, start, "y")
        if bool((aligned == start).all()):
            raise InvalidInput(
                "the outputs on x equal y before training: there is nothing to learn."
            )
        start_test = None if x_test is None else _initial_outputs(model, x_test, "x_test")
        aligned_test = None
        if y_test is not None and start_test is not None:
            aligned_test = _targets_like(y_test, start_test, "y_test")
        return cls(x, aligned, x_test, aligned_test, start, start_test)


def check_data(x: Examples, y: Tensor, x_test: Examples | None, y_test: Tensor | None) -> None:
    """Refuse data that no module could be trained on; targets are held against outputs later.

    Raises:
        InvalidInput: data that `examples.check` refuses, targets that are not finite real numbers,
            or test targets without test examples.
    """
    examples.check(x, "x")
    _check_targets(y, "y")
    if x_test is not None:
        examples.check(x_test, "x_test", like=x)
    if y_test is not None:
        if x_test is None:
            raise InvalidInput("y_test is given without x_test: pass both.")
        _check_targets(y_test, "y_test")


def _check_targets(y: Tensor, name: str) -> None:
    if not isinstance(y, Tensor):
        raise InvalidInput(f"{name} must be a torch.Tensor, not {type(y).__name__}.")
    if not y.is_floating_point():
        raise InvalidInput(
            f"{name} has dtype {y.dtype}, but targets of the squared loss are real. One-hot "
            f"encode class labels: torch.nn.functional.one_hot({name}.long()).float()."
        )
    if not bool(torch.isfinite(y).all()):
        row = int((~torch.isfinite(y)).nonzero()[0, 0]) if y.dim() else 0
        raise InvalidInput(f"{name} holds NaN or infinite values, first in example {row}.")


def _initial_outputs(model: nn.Module, x: Examples, name: str) -> Tensor:
    """(n, out), finite."""
    with torch.no_grad():
        try:
            outputs = evaluate(model, x)
        except InvalidInput:
            raise
        except Exception as error:
            raise InvalidInput(f"{type(model).__name__} does not run on {name}: {error}") from error
    if not bool(torch.isfinite(outputs).all()):
        row = int((~torch.isfinite(outputs)).nonzero()[0, 0])
        raise InvalidInput(
            f"{type(model).__name__} returns NaN or infinity on {name}, first for example {row}."
        )
    return outputs


def _targets_like(y: Tensor, outputs: Tensor, name: str) -> Tensor:
    """`y` as (n, out), with the dtype and device of the outputs."""
    n, out = outputs.shape
    if y.shape not in ((n, out), (n,) if out == 1 else (n, out)):
        wanted = f"({n}, {out})" + (f" or ({n},)" if out == 1 else "")
        raise InvalidInput(
            f"{name} has shape {tuple(y.shape)}, but for {n} examples and {out} outputs of the "
            f"model it must be {wanted}."
        )
    return y.detach().to(outputs).reshape(n, out)
