"""From a table to a data set: the split and the scaling."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tangency.datasets.dataset import Dataset
from tangency.datasets.table import Table
from tangency.errors import InvalidInput

__all__ = ["prepare"]

DEFAULT_TRAIN = 500
DEFAULT_TEST = 300
TEST_SHARE = 0.3
"""Of the rows, where there are few."""


def prepare(table: Table, examples: int | None = None, seed: int = 0) -> Dataset:
    """Split a table at random and scale it by its training part.

    Classes have the same shares in both parts, as nearly as whole examples allow.

    Args:
        table: as read.
        examples: to train on; by default 500, or 70 % of the rows where there are fewer. The test
            set has 300 of the others, or as many as there are.
        seed: of the split.

    Raises:
        InvalidInput: more examples than there are rows to spare, or fewer than the classes.
    """
    train, test = _sizes(table, examples)
    order = _shuffled(table, np.random.default_rng(seed))
    chosen, held_out = order[:train], order[train : train + test]
    x_train, x_test = _scaled_inputs(table, chosen, held_out)
    assemble = partial(
        Dataset, name=table.name, x_train=x_train, x_test=x_test, available=len(order)
    )
    if not table.is_classes:
        y, mean, scale = _standardised_targets(table, chosen)
        return assemble(
            task="regression",
            y_train=y,
            y_test=_tensor((table.targets[held_out] - mean) / scale),
            labels_train=None,
            labels_test=None,
            classes=(),
            target_scale=_tensor(scale),
        )
    classes, labels = np.unique(table.targets, return_inverse=True)
    if len(np.unique(labels[chosen])) < len(classes):
        raise InvalidInput(
            f"{table.name}: {train} training examples leave out some of its {len(classes)} "
            "classes: ask for more examples."
        )
    one_hot = np.eye(len(classes))[labels]
    shares = one_hot[chosen].mean(axis=0)
    return assemble(
        task="classification",
        y_train=_tensor(one_hot[chosen] - shares),
        y_test=_tensor(one_hot[held_out] - shares),
        labels_train=torch.from_numpy(labels[chosen].astype(np.int64)),
        labels_test=torch.from_numpy(labels[held_out].astype(np.int64)),
        classes=tuple(str(c) for c in classes),
        target_scale=torch.ones(len(classes)),
    )


def _sizes(table: Table, examples: int | None) -> tuple[int, int]:
    rows = len(table.inputs)
    most = rows - max(2, round(TEST_SHARE * rows))
    train = min(DEFAULT_TRAIN, most) if examples is None else examples
    if train < 2:
        raise InvalidInput(f"{train} training examples are asked for; at least 2 are needed.")
    if train > most:
        raise InvalidInput(
            f"{table.name}: {train} training examples are asked for, but of its {rows} rows at "
            f"most {most} can train: the others ({TEST_SHARE:.0%}) are kept to test."
        )
    return train, min(DEFAULT_TEST, rows - train)


def _shuffled(table: Table, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """A random order of the rows, any stretch of which has about the class shares of the whole."""
    order = random.permutation(len(table.inputs))
    if not table.is_classes:
        return order
    labels = np.unique(table.targets, return_inverse=True)[1][order]
    place = np.empty(len(order))
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(place, kind="stable")]


def _scaled_inputs(
    table: Table, chosen: npt.NDArray[Any], held_out: npt.NDArray[Any]
) -> tuple[Tensor, Tensor]:
    training = table.inputs[chosen]
    mean = training.mean(axis=0)
    deviation = training - mean
    varies = np.ptp(training, axis=0) > 0
    if not varies.any():
        raise InvalidInput(
            f"{table.name}: the inputs are the same in all {len(chosen)} rows drawn."
        )
    if table.shared_unit:
        scale = np.full_like(mean, np.sqrt(np.square(deviation[:, varies]).mean()))
    else:
        scale = training.std(axis=0)
    scale = np.where(varies, scale, np.inf)
    return tuple(_tensor((part - mean) / scale) for part in (training, table.inputs[held_out]))  # type: ignore[return-value]


def _standardised_targets(
    table: Table, chosen: npt.NDArray[Any]
) -> tuple[Tensor, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    values = table.targets[chosen]
    mean, scale = values.mean(axis=0), values.std(axis=0)
    if (scale == 0).any():
        raise InvalidInput(
            f"{table.name}: the targets of the {len(chosen)} training examples are all the same: "
            "ask for more examples."
        )
    return _tensor((values - mean) / scale), mean, scale


def _tensor(values: npt.NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
