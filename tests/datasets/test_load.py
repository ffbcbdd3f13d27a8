"""Data sets are scaled, centred and split as they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine

from tangency.datasets import BUNDLED, Table, load, prepare
from tangency.errors import InvalidInput


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_are_standardised(name: str) -> None:
    data = load(name, seed=3)
    assert len(data.x_train) == len(data.y_train)
    assert len(data.x_test) == len(data.y_test)
    assert torch.allclose(data.x_train.mean(dim=0), torch.zeros(data.features), atol=1e-5)
    assert torch.allclose(data.y_train.mean(dim=0), torch.zeros(data.out), atol=1e-5)
    assert data.task == ("regression" if name == "diabetes" else "classification")


def test_columns_are_standardised_by_the_training_part() -> None:
    data = load("wine", seed=1)
    raw, _ = load_wine(return_X_y=True)
    # Every row that was drawn is found again among the raw ones, scaled alike in both parts.
    both = torch.cat([data.x_train, data.x_test]).double().numpy()
    assert np.allclose(data.x_train.double().std(dim=0, unbiased=False), 1, atol=1e-5)
    slopes = [np.polyfit(np.sort(raw[:, j]), np.sort(both[:, j]), 1) for j in range(13)]
    for j, (slope, offset) in enumerate(slopes):
        assert np.allclose(np.sort(both[:, j]), slope * np.sort(raw[:, j]) + offset, atol=1e-4)
    assert data.labels_train is not None
    assert data.labels_test is not None
    assert not {tuple(r) for r in data.x_train.tolist()} & {tuple(r) for r in data.x_test.tolist()}


def test_pixels_share_one_scale() -> None:
    data = load("digits", examples=200)
    spread = data.x_train.std(dim=0)
    varying = spread[spread > 0]
    assert varying.max() / varying.min() > 5
    total = data.x_train[:, spread > 0].square().mean()
    assert float(total) == pytest.approx(1, abs=1e-5)


def test_one_hot_targets_less_the_class_shares() -> None:
    data = load("wine")
    assert data.labels_train is not None
    one_hot = torch.nn.functional.one_hot(data.labels_train, 3).float()
    assert torch.allclose(data.y_train, one_hot - one_hot.mean(dim=0), atol=1e-6)
    assert torch.equal(data.y_train.argmax(dim=1), data.labels_train)


def test_target_scale_takes_targets_back_to_their_unit() -> None:
    x = np.random.default_rng(0).normal(size=(40, 2))
    y = (100 * x[:, :1] + 7).astype(float)
    data = prepare(Table("line", x, y, is_classes=False), examples=20)
    # y is linear in the first input: slopes in scaled units are the ratio of the two spreads.
    both = torch.cat([data.y_train, data.y_test]).ravel().double() * float(data.target_scale)
    assert float(both.max() - both.min()) == pytest.approx(np.ptp(y), rel=1e-5)


def test_splits_keep_class_shares_and_follow_the_seed() -> None:
    first, again, other = (
        load("breast_cancer"),
        load("breast_cancer"),
        load("breast_cancer", seed=1),
    )
    assert torch.equal(first.x_train, again.x_train)
    assert not torch.equal(first.x_train, other.x_train)
    assert first.labels_train is not None
    assert first.labels_test is not None
    shares = [t.double().mean().item() for t in (first.labels_train, first.labels_test)]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)


def test_loading_leaves_the_random_state() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load("wine")
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_columns_constant_in_training_are_zero() -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    x[:, 1] = 5
    data = prepare(Table("t", x, np.arange(30) % 2, is_classes=True))
    assert not data.x_train[:, 1].any()
    assert not data.x_test[:, 1].any()


def test_examples_sorted_by_class() -> None:
    data = load("wine")
    assert data.labels_train is not None
    assert bool((data.labels_train[data.order].diff() >= 0).all())


@pytest.mark.parametrize(
    ("examples", "message"), [(1, "at least 2"), (170, "at most 125"), (2, "leave out")]
)
def test_impossible_numbers_of_examples(examples: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load("wine", examples=examples)


@pytest.mark.parametrize(
    ("name", "message"), [("irises", "unknown data set 'irises'"), ("none.csv", "no file")]
)
def test_unknown_sources(name: str, message: str, tmp_path: Path) -> None:
    source = name if "." not in name else tmp_path / name
    with pytest.raises(InvalidInput, match=message):
        load(source)
