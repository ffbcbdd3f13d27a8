"""Limits of stability against real descent; edges and catapults of made-up and simulated runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangency.analysis.regime import catapults, edge_of_stability, stability_limit
from tangency.errors import InvalidInput


@settings(max_examples=10, deadline=None)
@given(
    rate=st.floats(0.01, 1.0),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    nesterov=st.booleans(),
)
def test_the_limit_is_where_sgd_on_a_parabola_diverges(rate, momentum, nesterov):
    nesterov = nesterov and momentum > 0
    limit = stability_limit(rate, momentum, nesterov=nesterov)
    ends = []
    for curvature in (0.97 * limit, 1.03 * limit):
        x = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=rate, momentum=momentum, nesterov=nesterov)
        for _ in range(400):
            optimizer.zero_grad()
            (curvature * x.square() / 2).sum().backward()
            optimizer.step()
        ends.append(abs(float(x.detach())))
    assert ends[0] < 0.1
    assert ends[1] > 10


def test_bad_limits():
    for arguments in ((0.0,), (-1.0,), (1.0, 1.0), (1.0, -0.1)):
        with pytest.raises(InvalidInput, match="but must be"):
            stability_limit(*arguments)


def series(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_states_at_the_edge():
    steps = torch.tensor([0, 10, 20, 30, 40])
    edge = edge_of_stability(steps, series(2, 6, 10.2, 9.8, 10.4), 10.0)
    assert (edge.state, edge.reached) == ("edge of stability", 20)
    assert edge.typical == pytest.approx(1.02)
    assert edge.first == pytest.approx(0.2)
    edge = edge_of_stability(steps, series(2, 4, 6, 8, 9), 10.0)
    assert (edge.state, edge.reached, edge.typical) == ("stable", None, None)
    edge = edge_of_stability(steps, series(15, 14, 5, 4, 4), series(10, 10, 10, 10, 10))
    assert (edge.state, edge.reached) == ("above", 0)
    assert edge.last == pytest.approx(0.4)
    # A learning rate that falls raises the limit.
    edge = edge_of_stability(steps, series(9, 9, 9, 9, 9), series(10, 20, 20, 20, 20))
    assert edge.state == "stable"
    with pytest.raises(InvalidInput, match="at least one record"):
        edge_of_stability(steps, series(1), 10.0)


def test_a_catapult():
    steps = torch.tensor([0, 1, 2, 3, 4])
    loss, curvature = series(1, 3, 8, 0.9, 0.1), series(13, 13, 11, 6, 6)
    (found,) = catapults(steps, loss, curvature, 10.0)
    assert (found.start, found.peak, found.end) == (0, 2, 3)
    assert (found.growth, found.before, found.after) == pytest.approx((8, 1.3, 0.6))
    # Descent, a run that does not come back, a bump, a spike below the limit, one that sharpens.
    assert catapults(steps, series(5, 4, 3, 2, 1), curvature, 10.0) == ()
    assert catapults(steps, series(1, 3, 8, 20, 99), curvature, 10.0) == ()
    assert catapults(steps, series(1, 1.2, 1.3, 0.9, 0.1), curvature, 10.0) == ()
    assert catapults(steps, loss, curvature, 20.0) == ()
    assert catapults(steps, loss, series(13, 13, 13, 14, 14), 10.0) == ()


def test_a_catapult_between_two_records():
    steps, peaks = torch.tensor([0, 5, 50]), series(1, 0.5, 7)
    found = catapults(steps, series(1, 0.5, 0.4), series(9, 11, 8), 10.0, peaks)
    assert [(c.start, c.peak, c.end) for c in found] == [(5, 50, 50)]
    assert found[0].growth == pytest.approx(14)
