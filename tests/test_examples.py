"""Batches of examples: counted, selected, joined, converted, and refused when they are unusable."""

from __future__ import annotations

import pytest
import torch

from tangency import examples
from tangency.errors import InvalidInput

X = torch.arange(12.0).reshape(4, 3)
Y = torch.arange(4)
TREE = {"a": X, "b": (Y, [X * 2])}


def test_count_and_tensors() -> None:
    assert examples.count(TREE) == 4
    assert [t is leaf for t, leaf in zip(examples.tensors(TREE), (X, Y), strict=False)] == [
        True
    ] * 2
    assert len(examples.tensors(TREE)) == 3
    assert examples.tensors("nothing") == []


def test_take_by_slice_and_by_index() -> None:
    for index in (slice(1, 3), torch.tensor([3, 0]), torch.tensor([True, False, True, False])):
        part = examples.take(TREE, index)
        assert list(part) == ["a", "b"]
        assert isinstance(part["b"], tuple)
        assert torch.equal(part["a"], X[index])
        assert torch.equal(part["b"][0], Y[index])
        assert torch.equal(part["b"][1][0], X[index] * 2)


def test_concatenate() -> None:
    joined = examples.concatenate(TREE, examples.take(TREE, slice(0, 1)))
    assert torch.equal(joined["a"], torch.cat([X, X[:1]]))
    assert torch.equal(joined["b"][0], torch.tensor([0, 1, 2, 3, 0]))


def test_cast_leaves_integers_alone() -> None:
    double = examples.cast(TREE, torch.float64)
    assert double["a"].dtype is torch.float64
    assert double["b"][0].dtype is torch.int64
    assert TREE["a"].dtype is torch.float32


def test_arguments() -> None:
    assert examples.arguments(X) == ((X,), {})
    assert examples.arguments((X, Y)) == ((X, Y), {})
    assert examples.arguments([X, Y]) == ((X, Y), {})
    assert examples.arguments({"x": X}) == ((), {"x": X})


def test_arrange_follows_the_order_of_the_example() -> None:
    like = {"second": (Y, {"p": X, "q": Y}), "first": X}
    given = {"first": X, "second": (Y, {"q": Y, "p": X})}
    arranged = examples.arrange(given, like)
    assert list(arranged) == ["second", "first"]
    assert list(arranged["second"][1]) == ["p", "q"]
    assert arranged["second"][1]["p"] is X
    assert list(given) == ["first", "second"]
    assert examples.arrange({"other": X}, like) == {"other": X}


BAD: dict[str, tuple[object, str]] = {
    "not a tensor": ([[1.0, 2.0]], r"x holds no torch\.Tensor \(got list\)"),
    "nothing": ((), r"no torch\.Tensor"),
    "scalar": (torch.tensor(3.0), "scalar"),
    "one scalar among others": ((X, torch.tensor(3.0)), "scalar"),
    "empty": (torch.zeros(0, 3), "empty"),
    "unequal": ((X, Y[:3]), r"differ in their leading size: \[3, 4\]"),
    "nan": (torch.where(X == 7, torch.nan, X), "NaN or infinite values, first in example 2"),
    "infinite": ({"a": Y, "b": torch.where(X >= 9, torch.inf, X)}, "first in example 3"),
    "both infinities": (torch.tensor([[1.0], [torch.inf], [-torch.inf]]), "first in example 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    x, message = BAD[name]
    with pytest.raises(InvalidInput, match=message) as caught:
        examples.check(x)
    assert isinstance(caught.value, ValueError)


def test_the_callers_name_is_used() -> None:
    with pytest.raises(InvalidInput, match="x_train is empty"):
        examples.check(torch.zeros(0, 2), "x_train")


def test_large_finite_values_pass() -> None:
    """Their sum overflows, they do not."""
    examples.check(torch.full((4, 2), 3e38))
    examples.check(torch.tensor([1, 2]))
    examples.check(TREE)
    examples.check(torch.zeros(2, 0))


UNLIKE: dict[str, tuple[object, str]] = {
    "structure": (X, "structured as"),
    "keys": ({"a": X, "c": (Y, [X])}, "structured as"),
    "shape": ({"a": X[:, :2], "b": (Y, [X])}, r"examples of shape \(2,\), .* has \(3,\)"),
    "rank": ({"a": X[:, None], "b": (Y, [X])}, r"shape \(1, 3\)"),
    "integers": ({"a": X.long(), "b": (Y, [X])}, r"dtype torch\.int64, .* x\.float\(\)"),
    "reals": ({"a": X, "b": (Y.float(), [X])}, r"dtype torch\.float32, .* torch\.int64"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_unlike_the_example(name: str) -> None:
    x, message = UNLIKE[name]
    with pytest.raises(InvalidInput, match=message):
        examples.check(x, like=TREE)


def test_like_the_example() -> None:
    """The number of examples, the precision and the order of a dictionary are free."""
    x = {"b": (Y[:1], [X[:1].double()]), "a": X[:1]}
    examples.check(x, like=TREE)


def test_the_largest_example_is_that_of_all_floating_point_tensors() -> None:
    x = (torch.tensor([1.0, 2.0, 0.0]), {"y": torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 2.0]])})
    assert examples.largest(x) == 0
    assert examples.largest((x[0], torch.tensor([9, 9, 99]))) == 1
    assert examples.largest(torch.tensor([4, 5])) == 0
