"""Measures of change against plain loops, and the verdict at its marks."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangency.analysis import (
    Evidence,
    Thresholds,
    Verdict,
    alignment,
    kernel_drift,
    prediction_error,
    target_alignment,
    verdict,
)
from tangency.errors import InvalidInput


def gram(n: int, seed: int = 0) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(n, n + 3))
    return features @ features.T


def test_drift_and_alignment_by_loops():
    K0, K1 = gram(4, 0), gram(4, 1)
    change = zero = one = inner = 0.0
    for i in range(4):
        for j in range(4):
            change += (K1[i, j] - K0[i, j]) ** 2
            zero += K0[i, j] ** 2
            one += K1[i, j] ** 2
            inner += K0[i, j] * K1[i, j]
    assert kernel_drift(K0, K1) == pytest.approx(math.sqrt(change / zero), rel=1e-13)
    assert alignment(K0, K1) == pytest.approx(inner / math.sqrt(zero * one), rel=1e-13)


def test_a_kernel_that_only_grows():
    K = gram(5)
    assert kernel_drift(K, 3 * K) == pytest.approx(2)
    assert alignment(K, 3 * K) == pytest.approx(1)
    assert kernel_drift(K, K) == 0


def test_orthogonal_kernels():
    assert alignment(np.diag([1.0, 0.0]), np.diag([0.0, 1.0])) == 0


@settings(max_examples=25, deadline=None)
@given(a=st.integers(0, 1000), b=st.integers(0, 1000), size=st.floats(0.01, 0.99))
def test_drift_bounds_the_turn(a, b, size):
    """sin(angle) <= drift, which the default marks rest on."""
    K0, step = gram(4, a), gram(4, b + 2000)
    K1 = K0 + size * np.linalg.norm(K0) / np.linalg.norm(step) * step
    assert kernel_drift(K0, K1) == pytest.approx(size)
    assert alignment(K0, K1) >= math.sqrt(1 - size**2) - 1e-12


def test_full_kernels():
    J0, J1 = (np.random.default_rng(seed).normal(size=(3, 2, 9)) for seed in (0, 1))
    K0, K1 = (np.einsum("iap,jbp->ijab", J, J) for J in (J0, J1))
    expected = np.linalg.norm((K1 - K0).ravel()) / np.linalg.norm(K0.ravel())
    assert kernel_drift(torch.from_numpy(K0), K1) == pytest.approx(expected)
    cosine = (K0 * K1).sum() / np.linalg.norm(K0.ravel()) / np.linalg.norm(K1.ravel())
    assert alignment(K0, K1) == pytest.approx(cosine)


@pytest.mark.parametrize("out", [1, 3])
def test_target_alignment(out):
    K, y = gram(6), np.random.default_rng(5).normal(size=(6, out)) + 2
    ideal = y @ y.T
    expected = (K * ideal).sum() / np.linalg.norm(K) / np.linalg.norm(ideal)
    assert target_alignment(K, y) == pytest.approx(expected)
    H = np.eye(6) - 1 / 6
    Kc, ideal_c = H @ K @ H, H @ ideal @ H
    centred = np.trace(Kc @ ideal_c) / np.linalg.norm(Kc) / np.linalg.norm(ideal_c)
    assert target_alignment(K, y, centered=True) == pytest.approx(centred)
    assert centred != pytest.approx(expected, rel=1e-2)
    # Constants do not count after centring.
    assert target_alignment(K + 5, y + 3, centered=True) == pytest.approx(centred)


def test_target_alignment_of_full_kernels():
    n, out = 4, 2
    J, y = np.random.default_rng(0).normal(size=(n, out, 12)), np.random.default_rng(1)
    y = y.normal(size=(n, out))
    K = np.einsum("iap,jbp->ijab", J, J)
    ideal = np.einsum("ia,jb->ijab", y, y)
    expected = (K * ideal).sum() / np.linalg.norm(K.ravel()) / np.linalg.norm(ideal.ravel())
    assert target_alignment(K, y) == pytest.approx(expected)
    J_c, y_c = J - J.mean(axis=0), y - y.mean(axis=0)
    K_c, ideal_c = np.einsum("iap,jbp->ijab", J_c, J_c), np.einsum("ia,jb->ijab", y_c, y_c)
    centred = (K_c * ideal_c).sum() / np.linalg.norm(K_c.ravel()) / np.linalg.norm(ideal_c.ravel())
    assert target_alignment(K, y, centered=True) == pytest.approx(centred)


def test_ideal_kernel_is_aligned():
    y = np.array([1.0, -1.0, 2.0])
    assert target_alignment(np.outer(y, y), y) == pytest.approx(1)


def test_prediction_error():
    actual, predicted = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 5.0]])
    assert prediction_error(predicted, actual, 2.0) == 0.5
    assert prediction_error(predicted, actual, actual - 0) == pytest.approx(1 / 5)
    assert prediction_error(predicted, actual, torch.tensor(4.0)) == 0.25
    assert prediction_error(torch.full((1, 2), math.inf), actual, 1.0) == math.inf


def test_bad_measures_are_refused():
    with pytest.raises(InvalidInput, match="K0 has shape"):
        kernel_drift(gram(3), gram(4))
    with pytest.raises(InvalidInput, match="K0 is zero"):
        kernel_drift(np.zeros((2, 2)), np.eye(2))
    with pytest.raises(InvalidInput, match="K1 is zero"):
        alignment(np.eye(2), np.zeros((2, 2)))
    with pytest.raises(InvalidInput, match="y is zero"):
        target_alignment(np.eye(2), np.zeros(2))
    for shift in (0.0, 0.1):
        with pytest.raises(InvalidInput, match="y is the same for all"):
            target_alignment(np.eye(3), np.ones(3) + shift, centered=True)
    with pytest.raises(InvalidInput, match="K is the same for all"):
        target_alignment(np.full((3, 3), 0.7), np.arange(3.0), centered=True)
    ones = torch.ones(2)
    with pytest.raises(InvalidInput, match="predicted has shape"):
        prediction_error(torch.ones(3), ones, 1.0)
    with pytest.raises(InvalidInput, match="did the outputs move"):
        prediction_error(ones, ones, torch.zeros(2))
    with pytest.raises(InvalidInput, match="scale has shape"):
        prediction_error(ones, ones, torch.ones(3))
    with pytest.raises(InvalidInput, match="NaN"):
        prediction_error(ones * math.nan, ones, 1.0)


def evidence(drift: float, cosine: float, error: float, movement: float = 0.01) -> Evidence:
    return Evidence(drift, cosine, movement, error)


@pytest.mark.parametrize(
    ("measures", "expected"),
    [
        (evidence(0.02, 0.999, 0.03), "lazy"),
        (evidence(0.1, 0.99, 0.1), "lazy"),
        (evidence(0.02, 0.999, 0.03, movement=math.inf), "lazy"),
        (evidence(0.11, 0.999, 0.03), "between"),
        (evidence(0.02, 0.98, 0.03), "between"),
        (evidence(0.02, 0.999, 0.11), "between"),
        (evidence(3.0, 1.0, 0.2), "between"),
        (evidence(0.3, 0.95, 0.8), "between"),
        (evidence(0.5, 0.9, 0.2), "feature learning"),
        (evidence(2.0, 0.95, math.inf), "feature learning"),
        (evidence(0.4, 0.5, 0.6), "feature learning"),
        (evidence(1.5, 0.6, 0.9), "feature learning"),
    ],
)
def test_verdict(measures, expected):
    assert verdict(measures).regime == expected


def test_own_thresholds():
    measures = evidence(0.02, 0.999, 0.03)
    assert verdict(measures, Thresholds(lazy_drift=0.01)).regime == "between"
    for bad in (
        {"lazy_drift": 0.6},
        {"lazy_alignment": 0.8},
        {"feature_error": 0.05},
        {"lazy_error": math.nan},
    ):
        with pytest.raises(InvalidInput, match="lazy mark"):
            Thresholds(**bad)


@pytest.mark.parametrize(
    "values",
    [(-0.1, 1, 0, 0), (math.nan, 1, 0, 0), (0, 1.1, 0, 0), (0, math.nan, 0, 0), (0, 1, -1, 0)],
)
def test_bad_evidence_is_refused(values):
    with pytest.raises(InvalidInput, match="but must be"):
        Evidence(*values)


def test_verdict_says_its_reasons():
    result = verdict(evidence(0.31, 0.95, 0.8, movement=0.07))
    text = result.explain()
    for part in ("between", "31.0%", "0.950", "80.0%", "7.00%", "lazy up to 10%"):
        assert part in text
    assert "80.0% of the way that they went: feature learning" in text
    assert "0.31" in repr(result)
    assert isinstance(result, Verdict)
    entries = json.loads(json.dumps(result.to_dict()))
    assert entries["regime"] == "between"
    assert entries["evidence"]["prediction_error"] == 0.8
    assert entries["thresholds"]["lazy_drift"] == 0.1
