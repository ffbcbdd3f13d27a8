"""Tables from .csv and .npz files, with errors that point at the place."""

from __future__ import annotations

import csv
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tangency.datasets.table import Table, TaskChoice, checked_table
from tangency.errors import InvalidInput

__all__ = ["read_csv", "read_npz"]


def read_npz(path: Path, task: TaskChoice = "auto") -> Table:
    """A table from the arrays `x`, (n, ...), flattened to (n, features), and `y`, (n,) or (n, out).

    Raises:
        InvalidInput: no such archive, a missing key, arrays of Python objects (they would have to
            be unpickled), or whatever `checked_table` refuses.
    """
    arrays = {key: _array(path, key) for key in ("x", "y")}
    x, y = arrays["x"], arrays["y"]
    if x.ndim < 2:
        raise InvalidInput(
            f"{path}: 'x' has shape {x.shape}, but must be (n, features), a row for each example."
        )
    if x.dtype.kind not in "biuf":
        raise InvalidInput(f"{path}: 'x' has dtype {x.dtype}; the inputs must be real numbers.")
    if y.ndim == 0:
        raise InvalidInput(f"{path}: 'y' is a single value, but must have one for each example.")
    inputs = x.reshape(len(x), int(np.prod(x.shape[1:]))).astype(np.float64)
    return checked_table(path.name, inputs, y, task=task)


def _array(path: Path, key: str) -> npt.NDArray[Any]:
    if not zipfile.is_zipfile(path):
        raise InvalidInput(f"{path}: not a readable .npz archive; save x and y with numpy.savez.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if key not in archive.files:
                found = ", ".join(archive.files) or "none"
                raise InvalidInput(
                    f"{path}: the array '{key}' is missing (there are: {found}); "
                    "x holds the inputs, y the targets."
                )
            return np.asarray(archive[key])
    except InvalidInput:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if "Object arrays" in str(error):
            message = f"the array '{key}' holds Python objects; save numbers or text, not objects."
        else:
            message = f"not a readable .npz archive ({error})."
        raise InvalidInput(f"{path}: {message}") from error


def read_csv(path: Path, task: TaskChoice = "auto", target: str | None = None) -> Table:
    """A table from a comma-separated file with a header line, all numbers but for the target.

    Args:
        path: of a file in UTF-8.
        task: what the targets are; see `checked_table`.
        target: the name of the target's column; by default the last column.

    Raises:
        InvalidInput: a line with too many or too few cells, a cell that is not a number, a header
            without names or with the same name twice, no such target, or whatever `checked_table`
            refuses; line and column are named.
    """
    header, rows = _cells(path)
    if target is not None and target not in header:
        raise InvalidInput(
            f"{path}: there is no column '{target}'; there are: {', '.join(header)}."
        )
    place = len(header) - 1 if target is None else header.index(target)
    columns = [j for j in range(len(header)) if j != place]
    inputs = np.empty((len(rows), len(columns)))
    for i, (line, cells) in enumerate(rows):
        for k, j in enumerate(columns):
            inputs[i, k] = _number(path, line, header[j], cells[j])
    targets = _csv_targets(path, header[place], [(line, cells[place]) for line, cells in rows])
    return checked_table(path.name, inputs, targets, task=task)


def _cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names in the header, and the other lines that are not blank with their line numbers."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [c.strip() for c in cells]) for cells in reader if cells]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: this is not text in UTF-8 (byte {error.start}).") from error
    except (OSError, csv.Error) as error:
        raise InvalidInput(f"{path}: cannot be read ({error}).") from error
    if not lines:
        raise InvalidInput(f"{path}: the file is empty; its first line must name the columns.")
    header = lines[0][1]
    _check_header(path, header)
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise InvalidInput(
                f"{path}, line {line}: {len(cells)} cells, where the header names "
                f"{len(header)} columns."
            )
    return header, lines[1:]


def _check_header(path: Path, header: list[str]) -> None:
    if len(header) < 2:
        hint = " Separate columns by commas." if any(c in header[0] for c in ";\t") else ""
        raise InvalidInput(
            f"{path}: the header names one column only; there must be inputs and a target.{hint}"
        )
    if all(_is_number(name) for name in header):
        raise InvalidInput(f"{path}, line 1: a line of numbers, where the columns must be named.")
    if "" in header:
        raise InvalidInput(f"{path}, line 1: column {header.index('') + 1} has no name.")
    twice = next((name for i, name in enumerate(header) if name in header[:i]), None)
    if twice is not None:
        raise InvalidInput(f"{path}, line 1: two columns are called '{twice}'.")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(path: Path, line: int, column: str, cell: str) -> float:
    where = f"{path}, line {line}, column '{column}'"
    if not cell:
        raise InvalidInput(f"{where}: the cell is empty: fill it in or leave the line out.")
    if not _is_number(cell):
        raise InvalidInput(f"{where}: '{cell}' is not a number.")
    value = float(cell)
    if not np.isfinite(value):
        raise InvalidInput(f"{where}: {cell} is not finite: fill it in or leave the line out.")
    return value


def _csv_targets(path: Path, column: str, cells: list[tuple[int, str]]) -> npt.NDArray[Any]:
    """Whole numbers, real numbers or text, whichever all cells are."""
    for line, cell in cells:
        if not cell:
            raise InvalidInput(f"{path}, line {line}, column '{column}': the target is empty.")
    texts = [cell for _, cell in cells]
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", text) for text in texts):
        return np.array([int(text) for text in texts], dtype=np.int64)
    numeric = [_is_number(text) for text in texts]
    if all(numeric):
        return np.array([_number(path, line, column, cell) for line, cell in cells])
    if any(numeric) and sum(numeric) > len(numeric) // 2:
        line, cell = cells[numeric.index(False)]
        raise InvalidInput(f"{path}, line {line}, column '{column}': '{cell}' is not a number.")
    return np.array(texts, dtype=np.str_)
