"""A data set made ready for training: scaled, centred and split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Dataset", "Task"]

Task: TypeAlias = Literal["classification", "regression"]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """n training and m test examples with `features` inputs and `out` targets, all float32.

    Attributes:
        name: of the data set, or the file's name.
        task: "classification" or "regression".
        x_train, x_test: (n, features) and (m, features); mean 0 and variance 1 over the training
            examples, column by column, or all together where the columns share a unit (pixels).
            Columns that are constant in training are zero.
        y_train, y_test: (n, out) and (m, out). Classes: one-hot less the class shares in training.
            Regression: mean 0 and variance 1 in training.
        labels_train, labels_test: (n,) and (m,) int64 classes; None for regression.
        classes: names of the classes; empty for regression.
        target_scale: (out,), the unit of `y_train` in that of the data; ones for classes.
        available: rows that the data set has in all.
    """

    name: str
    task: Task
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    labels_train: Tensor | None
    labels_test: Tensor | None
    classes: tuple[str, ...]
    target_scale: Tensor
    available: int

    @property
    def features(self) -> int:
        """Inputs of an example."""
        return int(self.x_train.shape[1])

    @property
    def out(self) -> int:
        """Targets of an example."""
        return int(self.y_train.shape[1])

    @property
    def order(self) -> Tensor:
        """(n,) training examples by class, or by (first) target."""
        key = self.y_train[:, 0] if self.labels_train is None else self.labels_train
        return torch.argsort(key, stable=True)

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __repr__(self) -> str:
        kind = f"{len(self.classes)} classes" if self.classes else f"{self.out} real targets"
        return (
            f"Dataset({self.name}: {len(self.x_train)} training and {len(self.x_test)} test "
            f"examples, {self.features} features, {kind})"
        )
