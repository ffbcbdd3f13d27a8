"""Data as they were read: numbers and targets, before anything is scaled or split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tangency.errors import InvalidInput

__all__ = ["Table", "TaskChoice", "checked_table"]

TaskChoice: TypeAlias = Literal["auto", "classification", "regression"]

FEWEST_ROWS = 10


@dataclass(frozen=True, eq=False)
class Table:
    """Examples and targets as read.

    Attributes:
        name: of the data set, or the file's name.
        inputs: (n, features), float64, finite.
        targets: (n,) class labels of any kind, or (n, out) real numbers.
        is_classes: whether the targets are classes.
        shared_unit: whether all inputs are measured in one unit (pixels), so that they are scaled
            together rather than column by column.
    """

    name: str
    inputs: npt.NDArray[np.float64]
    targets: npt.NDArray[Any]
    is_classes: bool
    shared_unit: bool = False


def checked_table(
    name: str,
    inputs: npt.NDArray[np.float64],
    targets: npt.NDArray[Any],
    *,
    task: TaskChoice = "auto",
    shared_unit: bool = False,
) -> Table:
    """A table whose lengths, numbers and targets are in order.

    Targets that are text, truth values or whole numbers are classes, other numbers are regression
    targets, unless `task` says otherwise.

    Raises:
        InvalidInput: unequal lengths, too few rows, no inputs, values that are not finite, a
            single class, a class with a single example, or constant regression targets.
    """
    if len(inputs) != len(targets):
        raise InvalidInput(
            f"{name}: {len(inputs)} rows of inputs but {len(targets)} targets; there must be one "
            "for each row."
        )
    if len(inputs) < FEWEST_ROWS:
        raise InvalidInput(
            f"{name}: {len(inputs)} rows; at least {FEWEST_ROWS} are needed to train and to test."
        )
    if inputs.shape[1] == 0:
        raise InvalidInput(f"{name}: there are no inputs, only targets.")
    _refuse_not_finite(name, "inputs", inputs)
    is_classes = _is_classes(name, targets, task)
    if is_classes:
        if targets.ndim > 1 and targets.shape[1] > 1:
            raise InvalidInput(
                f"{name}: targets have shape {targets.shape}; classes are one label a row."
            )
        targets = targets.reshape(len(targets))
        _check_classes(name, targets)
    else:
        targets = _real_targets(name, targets)
    return Table(name, inputs, targets, is_classes, shared_unit)


def _is_classes(name: str, targets: npt.NDArray[Any], task: TaskChoice) -> bool:
    if targets.dtype.kind not in "biufU":
        raise InvalidInput(
            f"{name}: targets have dtype {targets.dtype}; they must be numbers or text."
        )
    if task == "auto":
        return targets.dtype.kind in "biuU"
    return task == "classification"


def _check_classes(name: str, labels: npt.NDArray[Any]) -> None:
    _refuse_not_finite(name, "targets", labels)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) == 1:
        raise InvalidInput(f"{name}: all targets are {classes[0]}: there is one class only.")
    if counts.min() < 2:
        lone = classes[counts < 2]
        hint = "" if labels.dtype.kind == "U" else " If they are measurements, ask for regression."
        raise InvalidInput(
            f"{name}: of {len(classes)} classes, {len(lone)} have a single example "
            f"(the first is {lone[0]}): each needs one to train and one to test.{hint}"
        )


def _real_targets(name: str, targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    if targets.dtype.kind == "U":
        raise InvalidInput(f"{name}: the targets are text: regression needs numbers.")
    if targets.ndim > 2:
        raise InvalidInput(
            f"{name}: targets have shape {targets.shape}, but must be (n,) or (n, out)."
        )
    values = targets.astype(np.float64).reshape(len(targets), -1)
    _refuse_not_finite(name, "targets", values)
    constant = np.flatnonzero(values.std(axis=0) == 0)
    if values.shape[1] == 0 or len(constant):
        raise InvalidInput(
            f"{name}: the targets are the same in all rows: there is nothing to learn."
        )
    return values


def _refuse_not_finite(name: str, what: str, values: npt.NDArray[Any]) -> None:
    if values.dtype.kind != "f":
        return
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row = int(bad[0, 0])
        column = f", column {int(bad[0, 1])}" if values.ndim > 1 else ""
        raise InvalidInput(
            f"{name}: {what} hold {values[tuple(bad[0])]} at row {row}{column} (counted from 0), "
            f"{len(bad)} such values in all: leave these rows out or fill them in."
        )
