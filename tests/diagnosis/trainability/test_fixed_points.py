"""Fixed points of maps whose fixed points are known."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangency.diagnosis.trainability.fixed_points import (
    correlation_fixed_points,
    length_fixed_points,
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=3), st.booleans())
def test_all_fixed_points_of_a_length_map(logs, rising):
    """ln Q(q)/q = +- product of (ln q - a): fixed points e^a, all of them."""
    logs = sorted(logs)
    if any(b - a < 0.6 for a, b in itertools.pairwise(logs)):
        return
    sign = 1 if rising else -1

    def lengths(q):
        product = math.prod(torch.tanh(q.log() - a) for a in logs)
        return q * (0.3 * sign * product).exp()

    found = length_fixed_points(lengths)
    assert found.values == pytest.approx([math.exp(a) for a in logs], rel=1e-12)
    assert found.to_infinity == rising
    start = math.exp(logs[-1] + 1)
    limit = found.attracting(start, rising)
    assert limit == (math.inf if rising else pytest.approx(math.exp(logs[-1]), rel=1e-12))


def test_lengths_without_a_fixed_point():
    shrinking = length_fixed_points(lambda q: q / 2)
    assert (shrinking.values, shrinking.from_zero, shrinking.to_infinity) == ((), False, False)
    assert shrinking.attracting(1.0, longer=False) == 0
    growing = length_fixed_points(lambda q: q + 1)
    assert growing.attracting(1.0, longer=True) == math.inf
    kept = length_fixed_points(lambda q: q)
    assert kept.all
    assert kept.attracting(3.0, longer=False) == 3.0


def test_correlations():
    """C = (1 - a) c + a c^2 has fixed points 0 and 1; the affine map 0.2 + 0.8 c has 1 only."""
    a = 0.3
    found = correlation_fixed_points(lambda c: ((1 - a) * c + a * c**2, 1 - a + 2 * a * c))
    assert found.values == (0.0, 1.0)
    assert found.slopes == pytest.approx((0.7, 1.3))
    assert found.attracting(0.6, closer=False) == (0.0, pytest.approx(0.7))
    affine = correlation_fixed_points(lambda c: (0.2 + 0.8 * c, 0.8 + 0 * c))
    assert affine.values == (1.0,)
    assert affine.attracting(0.1, closer=True) == (1.0, pytest.approx(0.8))
    kept = correlation_fixed_points(lambda c: (c, 1 + 0 * c))
    assert kept.attracting(0.4, closer=False) == (0.4, 1.0)


def test_a_correlation_near_one_is_found():
    """C = c + (1 - c)(b - c) / 2 has fixed points 1 and b, for b next to one too."""
    for b in (0.3, 0.99, 0.9999, 1 - 3e-6):
        found = correlation_fixed_points(
            lambda c, b=b: (c + (1 - c) * (b - c) / 2, 1 - (1 + b) / 2 + c)
        )
        assert found.values[-1] == 1
        assert found.values[-2] == pytest.approx(b, abs=1e-10)
