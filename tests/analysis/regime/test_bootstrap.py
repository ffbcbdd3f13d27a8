"""Intervals of the verdict: do they hold what they promise?"""

import json
import math

import numpy as np
import pytest
import torch

from tangency.analysis.regime import Evidence, Thresholds, bootstrap, verdict
from tangency.errors import InvalidInput


def population(size: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Features before and after, and errors and ways of every example."""
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(size, 6))
    after = before + 0.6 * rng.normal(size=(6, 6))[0] * np.tanh(before[:, :1])
    moved = before[:, 0] ** 2 + 0.3
    missed = moved * rng.gamma(1.0, 0.1, size=size)
    return before, after, missed, moved


def drift_and_cosine(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    K0, K1 = before @ before.T, after @ after.T
    drift = np.linalg.norm(K1 - K0) / np.linalg.norm(K0)
    return drift, (K0 * K1).sum() / np.linalg.norm(K0) / np.linalg.norm(K1)


def test_one_resample_by_loops():
    """The weights of pairs, against sums over the examples drawn."""
    before, after, missed, moved = population(6)
    K0, K1 = before @ before.T, after @ after.T
    errors = [(torch.from_numpy(missed), torch.from_numpy(moved))]
    found = bootstrap(K0, K1, errors, resamples=1, seed=3)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(6, (1, 6), generator=generator)[0].tolist()
    change = own = 0.0
    for a, i in enumerate(drawn):
        for b, j in enumerate(drawn):
            if i != j or a == b:
                change += (K1[i, j] - K0[i, j]) ** 2
                own += K0[i, j] ** 2
    assert float(found.kernel_drift[0]) == pytest.approx(math.sqrt(change / own), rel=1e-12)
    again = torch.randint(6, (1, 6), generator=generator)[0]
    error = math.sqrt(missed[again].sum() / moved[again].sum())
    assert float(found.prediction_error[0]) == pytest.approx(error, rel=1e-12)


def test_intervals_cover_what_other_examples_give():
    """90 % intervals of 40 examples hold the mean value of other 40 in some 90 % of draws."""
    before, after, missed, moved = population(1500)
    rng, draws = np.random.default_rng(1), 200
    others = [rng.choice(len(before), 40, replace=False) for _ in range(500)]
    drift, cosine = np.mean([drift_and_cosine(before[i], after[i]) for i in others], axis=0)
    error = np.mean([math.sqrt(missed[i].sum() / moved[i].sum()) for i in others])
    hits = np.zeros(3)
    for draw in range(draws):
        i = rng.choice(len(before), 40, replace=False)
        K0, K1 = before[i] @ before[i].T, after[i] @ after[i].T
        errors = [(torch.from_numpy(missed[i]), torch.from_numpy(moved[i]))]
        found = bootstrap(K0, K1, errors, resamples=200, seed=draw)
        measures = Evidence(drift, cosine, 0.0, error)
        u = verdict(measures, resamples=found).uncertainty
        ranges = (u.kernel_drift, u.kernel_alignment, u.prediction_error)
        truth = (drift, cosine, error)
        hits += [low <= t <= high for (low, high), t in zip(ranges, truth, strict=True)]
    assert (hits / draws > 0.8).all(), hits / draws
    assert (hits / draws < 0.98).all(), hits / draws


def test_kernels_of_several_outputs_are_resampled_by_example():
    J0, J1 = (np.random.default_rng(seed).normal(size=(5, 2, 9)) for seed in (0, 1))
    K0, K1 = (np.einsum("iap,jbp->ijab", J, J) for J in (J0, J1))
    ones = torch.ones(5)
    whole = bootstrap(K0, K1, [(ones, ones)], resamples=50)
    per_pair = [np.sqrt((K**2).sum(axis=(2, 3))) for K in (K1 - K0, K0)]
    drift = bootstrap(per_pair[1], per_pair[1] + per_pair[0], [(ones, ones)], resamples=50)
    torch.testing.assert_close(whole.kernel_drift, drift.kernel_drift)


def test_a_second_set_counts_where_it_is_worse():
    K = np.eye(4)
    missed, moved = torch.full((4,), 0.01), torch.ones(4)
    still = torch.full((3,), 0.04), torch.full((3,), 0.01)
    found = bootstrap(K, 2 * K, [(missed, moved), still], resamples=20)
    # The second set hardly moved, and is measured by the way of the first.
    torch.testing.assert_close(found.prediction_error, torch.full((20,), 0.2).double())
    far = torch.full((3,), 4.0), torch.full((3,), 4.0)
    found = bootstrap(K, 2 * K, [(missed, moved), far], resamples=20)
    torch.testing.assert_close(found.prediction_error, torch.ones(20).double())
    torch.testing.assert_close(found.kernel_drift, torch.ones(20).double())


def test_overflow_is_no_nan():
    infinite = torch.tensor([0.1, math.inf, 0.1]), torch.ones(3)
    found = bootstrap(np.eye(3), np.eye(3), [infinite], resamples=100)
    assert not bool(torch.isnan(found.prediction_error).any())
    assert float(found.prediction_error.max()) > 1e100
    assert float(found.prediction_error.min()) < 1


def test_verdict_with_confidence():
    before, after, missed, moved = population(40)
    K0, K1 = before @ before.T, after @ after.T
    errors = [(torch.from_numpy(missed), torch.from_numpy(moved))]
    found = bootstrap(K0, K1, errors, resamples=400)
    middle = float(found.kernel_drift.median())
    measures = Evidence(middle, 1.0, 0.0, 0.9)
    # Feature learning needs the drift, whose mark stands in the middle of the resamples.
    marks = Thresholds(lazy_drift=0.01, feature_drift=middle, feature_alignment=-1.0)
    marks = Thresholds(
        lazy_drift=0.01, feature_drift=middle, feature_alignment=-1, feature_error=0.11
    )
    result = verdict(measures, marks, found)
    assert result.regime == "feature learning"
    assert 0.3 < result.confidence < 0.7
    assert sum(result.uncertainty.support.values()) == pytest.approx(1)
    assert f"{result.confidence:.0%}" in result.explain()
    entries = json.loads(json.dumps(result.to_dict()))
    assert entries["confidence"] == result.confidence
    assert entries["uncertainty"]["kernel_drift"][0] < middle
    assert verdict(measures, marks).confidence is None


@pytest.mark.parametrize(
    ("growth", "expected"),
    [(None, "lazy"), (0.1, "lazy"), (2.0, "lazy"), (2.1, "unstable"), (math.inf, "unstable")],
)
def test_runs_whose_loss_grew(growth, expected):
    measures = Evidence(0.0, 1.0, 0.0, 0.0, growth)
    result = verdict(measures)
    assert result.regime == expected
    assert ("unstable" in result.explain()) == (expected == "unstable")
    assert verdict(measures, Thresholds(unstable_growth=1e300)).regime in ("lazy", "unstable")
    with pytest.raises(InvalidInput, match="unstable_growth"):
        Thresholds(unstable_growth=0.5)


def test_bad_resampling():
    ones = torch.ones(2)
    with pytest.raises(InvalidInput, match="K0 has shape"):
        bootstrap(np.eye(2), np.eye(3), [(ones, ones)])
    with pytest.raises(InvalidInput, match="resamples"):
        bootstrap(np.eye(2), np.eye(2), [(ones, ones)], resamples=0)
    with pytest.raises(InvalidInput, match="errors"):
        bootstrap(np.eye(2), np.eye(2), [])


def test_figure_places_measures_between_their_marks():
    marks = Thresholds()
    ends = (
        (marks.lazy_drift, marks.lazy_alignment, marks.lazy_error, 0.0),
        (marks.feature_drift, marks.feature_alignment, marks.feature_error, 1.0),
    )
    for drift, cosine, error, place in ends:
        figure = verdict(Evidence(drift, cosine, 0.1, error), marks).figure()
        dots = [trace for trace in figure.data if trace.mode == "markers"]
        assert [dot.x[0] for dot in dots] == pytest.approx([place] * 3)
