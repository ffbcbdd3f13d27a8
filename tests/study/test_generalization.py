"""Generalisation in a study: the kernels, targets and test sets that it is about."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from tangency.datasets import load
from tangency.diagnosis import training_check
from tangency.study import Generalization, perceptrons
from tangency.study.generalization import generalize


@pytest.mark.parametrize("name", ["wine", "diabetes"])
def test_errors_are_those_of_kernel_ridge_regression(name: str) -> None:
    data = load(name, examples=60)
    model = perceptrons(data.features, data.out, width=32, depth=1).network(0)
    check = training_check(
        model, data.x_train, data.y_train, x_test=data.x_test, y_test=data.y_test, steps=2
    )
    found = generalize(check, data)
    assert found.kernel == "infinite NTK"
    assert check.ntk_infinite is not None
    assert check.ntk_infinite_test_train is not None
    K, y = check.ntk_infinite.double().numpy(), data.y_train.double().numpy()
    for ridge, error, held_out in zip(
        found.held_out.ridge, found.test_error, found.held_out.error, strict=True
    ):
        regression = KernelRidge(alpha=float(ridge), kernel="precomputed").fit(K, y)
        outputs = regression.predict(check.ntk_infinite_test_train.double().numpy())
        missed = ((outputs - data.y_test.double().numpy()) ** 2).sum(axis=1).mean()
        assert float(error) == pytest.approx(missed, rel=1e-4)
        assert float(held_out) == pytest.approx(_refitted(K, y, float(ridge)), rel=1e-3)
    assert float(found.measured.test_error[-1]) == pytest.approx(
        float(found.test_error[found.best]), rel=1e-4
    )
    _check_accuracy(found, has_classes=bool(data.classes))


def _refitted(K: np.ndarray, y: np.ndarray, ridge: float) -> float:
    """Leave-one-out by fitting n times."""
    missed = []
    for i in range(len(K)):
        rest = np.delete(np.arange(len(K)), i)
        weights = np.linalg.solve(K[np.ix_(rest, rest)] + ridge * np.eye(len(rest)), y[rest])
        missed.append(((K[i, rest] @ weights - y[i]) ** 2).sum())
    return float(np.mean(missed))


def _check_accuracy(found: Generalization, has_classes: bool) -> None:
    assert (found.accuracy is not None) == has_classes
    assert (found.test_accuracy is not None) == has_classes
