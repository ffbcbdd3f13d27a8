"""Files are read as documented, and malformed ones refused with the place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tangency.datasets import load
from tangency.errors import InvalidInput

X = np.random.default_rng(0).normal(size=(20, 3))
LABELS = np.arange(20) % 2


def csv_file(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(target: Callable[[int], object]) -> list[str]:
    return ["a,b,c,y", *(f"{x[0]},{x[1]},{x[2]},{target(i)}" for i, x in enumerate(X))]


@pytest.mark.parametrize(
    ("target", "task"),
    [
        (lambda i: i % 2, "classification"),
        (lambda i: "yes" if i % 3 else "no", "classification"),
        (lambda i: f"{i / 3:.3f}", "regression"),
    ],
)
def test_csv_targets(tmp_path: Path, target: Callable[[int], object], task: str) -> None:
    data = load(csv_file(tmp_path / "t.csv", rows(target)))
    assert data.task == task
    assert data.features == 3


def test_csv_and_npz_give_the_same_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=X, y=LABELS)
    first = load(csv_file(tmp_path / "t.csv", rows(lambda i: LABELS[i])))
    second = load(tmp_path / "t.npz")
    assert torch.allclose(first.x_train, second.x_train)
    assert torch.equal(first.y_test, second.y_test)


def test_csv_target_column_by_name(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "t.csv", ["y,a,b", *(f"{i % 2},{i},{i * i}" for i in range(20))])
    data = load(path, target="y")
    assert data.classes == ("0", "1")
    assert data.features == 2


def test_task_overrides_whole_numbers(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "t.csv", rows(lambda i: i))
    assert load(path, task="regression").task == "regression"
    with pytest.raises(InvalidInput, match="single example"):
        load(path)


def test_images_are_flattened(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.random.default_rng(1).normal(size=(20, 4, 5)), y=LABELS)
    assert load(tmp_path / "t.npz").features == 20


def _replaced(line: int, text: str) -> list[str]:
    lines = rows(lambda i: i % 2)
    lines[line - 1] = text
    return lines


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (_replaced(5, "1,n/a,2,0"), r"line 5, column 'b': 'n/a' is not a number"),
        (_replaced(7, "1,2,nan,0"), r"line 7, column 'c': nan is not finite"),
        (_replaced(3, "1,,2,0"), r"line 3, column 'b': the cell is empty"),
        (_replaced(4, "1,2,3"), r"line 4: 3 cells, where the header names 4"),
        (_replaced(6, "1,2,3,"), r"line 6, column 'y': the target is empty"),
        (_replaced(6, "1,2,3,x"), r"line 6, column 'y': 'x' is not a number"),
        (_replaced(1, "a,b,a,y"), r"two columns are called 'a'"),
        (_replaced(1, "1,2,3,4"), r"line 1: a line of numbers"),
        (_replaced(1, "a,,c,y"), r"column 2 has no name"),
        (["a;b;y", "1;2;3"], r"Separate columns by commas"),
        ([""], r"empty"),
        (rows(lambda i: i % 2)[:5], r"4 rows; at least 10"),
        (rows(lambda i: 1), r"one class only"),
        (rows(lambda i: 0.5), r"the same in all rows"),
    ],
)
def test_malformed_csv(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load(csv_file(tmp_path / "t.csv", lines))


def test_unknown_target_column(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no column 'z'; there are: a, b, c, y"):
        load(csv_file(tmp_path / "t.csv", rows(lambda i: i % 2)), target="z")


def test_csv_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b\n\xff\xfe")
    with pytest.raises(InvalidInput, match="not text in UTF-8"):
        load(tmp_path / "t.csv")


def _with_nan() -> np.ndarray:
    x = X.copy()
    x[4, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, r"array 'y' is missing \(there are: x\)"),
        ({"inputs": X, "y": LABELS}, r"array 'x' is missing"),
        ({"x": X, "y": LABELS[:-1]}, r"20 rows of inputs but 19 targets"),
        ({"x": _with_nan(), "y": LABELS}, r"nan at row 4, column 1"),
        ({"x": X[:, 0], "y": LABELS}, r"shape \(20,\)"),
        ({"x": X.astype(str), "y": LABELS}, r"must be real numbers"),
        ({"x": X.astype(complex), "y": LABELS}, r"must be real numbers"),
        ({"x": X, "y": np.array(list(LABELS), dtype=object)}, r"Python objects"),
        ({"x": X, "y": np.zeros(20, dtype=int)}, r"one class only"),
        ({"x": X, "y": np.full(20, np.inf)}, r"targets hold inf at row 0"),
        ({"x": X[:, :0], "y": LABELS}, r"no inputs"),
        ({"x": np.ones_like(X), "y": LABELS}, r"inputs are the same"),
        ({"x": X, "y": np.stack([LABELS, LABELS], 1)}, r"one label a row"),
    ],
)
def test_malformed_npz(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(InvalidInput, match=message):
        load(tmp_path / "t.npz")


def test_npz_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_bytes(b"PK not really")
    with pytest.raises(InvalidInput, match="not a readable"):
        load(tmp_path / "t.npz")
