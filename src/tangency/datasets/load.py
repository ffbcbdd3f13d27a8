"""Data sets by name or path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tangency.datasets.dataset import Dataset
from tangency.datasets.files import read_csv, read_npz
from tangency.datasets.preparation import prepare
from tangency.datasets.table import Table, TaskChoice, checked_table
from tangency.errors import InvalidInput, MissingDependency

__all__ = ["BUNDLED", "FILE_HELP", "load"]

BUNDLED = ("digits", "wine", "breast_cancer", "diabetes")
"""Data sets that come with scikit-learn."""

FILE_HELP = (
    "A .csv file has a header line; the last column (or --target COLUMN) is the target, all others "
    "are numeric inputs. A .npz file has the arrays x, (n, ...), and y, (n,) or (n, out). Targets "
    "that are text or whole numbers are classes, other numbers are regression targets; --task "
    "overrides this."
)


def load(
    source: str | Path,
    *,
    examples: int | None = None,
    seed: int = 0,
    task: TaskChoice = "auto",
    target: str | None = None,
) -> Dataset:
    """A data set, scaled and split; see `Dataset` for how.

    Args:
        source: one of `BUNDLED`, or a .csv or .npz file. A .csv file has a header line, its last
            column is the target; a .npz file has the arrays x, (n, ...), and y, (n,) or (n, out).
        examples: to train on; see `prepare`.
        seed: of the split into training and test examples.
        task: whether a file's targets are classes; "auto" takes text and whole numbers for classes.
        target: the name of a .csv file's target column.

    Raises:
        InvalidInput: an unknown name, no such file, or a malformed one; says what and where.
        MissingDependency: scikit-learn, which brings the data sets, is not installed.
    """
    return prepare(_table(source, task, target), examples, seed)


def _table(source: str | Path, task: TaskChoice, target: str | None) -> Table:
    if str(source) in BUNDLED:
        return _bundled(str(source))
    path = Path(source)
    if path.suffix.lower() not in (".csv", ".npz"):
        raise InvalidInput(
            f"unknown data set '{source}': choose {', '.join(BUNDLED)}, or a .csv or .npz file."
        )
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}.")
    if path.suffix.lower() == ".csv":
        return read_csv(path, task, target)
    if target is not None:
        raise InvalidInput(f"{path}: a target column can be chosen in .csv files only.")
    return read_npz(path, task)


def _bundled(name: str) -> Table:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependency.for_extra("scikit-learn", "estimators") from error
    loader: Callable[..., tuple[Any, Any]] = getattr(datasets, f"load_{name}")
    x, y = loader(return_X_y=True)
    is_classes = name != "diabetes"
    targets = y.astype(np.int64 if is_classes else np.float64)
    return checked_table(name, x.astype(np.float64), targets, shared_unit=name == "digits")
