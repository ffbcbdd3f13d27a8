"""The spacing of records, with a clock that the test turns."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.diagnosis.models import network, normal, target

from tangency.diagnosis.monitor import Monitor
from tangency.diagnosis.monitor.budget import Budget
from tangency.errors import InvalidInput


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(budget: Budget, clock: Clock, steps: int, step_time: float, costs) -> list[int]:
    """Steps at which `budget` lets records be made, of a training loop."""
    made = []
    for step in range(1, steps + 1):
        clock.now += step_time
        if budget.is_due(step):
            with budget.recording(step):
                clock.now += costs(len(made))
            made.append(step)
    return made


@settings(max_examples=60, deadline=None)
@given(
    overhead=st.floats(0.01, 1.0),
    step_time=st.floats(1e-3, 10.0),
    costs=st.lists(st.floats(1e-3, 100.0), min_size=1, max_size=20),
)
def test_records_take_their_share_of_the_time_at_most(overhead, step_time, costs):
    clock = Clock()
    budget = Budget(overhead, 12, clock)
    began = clock.now
    budget.start(costs[0])
    run(budget, clock, 400, step_time, lambda i: costs[(i + 1) % len(costs)])
    elapsed = clock.now - began
    training = elapsed - budget.spent
    assert training == pytest.approx(400 * step_time)
    # Beyond the share by no more than a record takes longer than the one before.
    assert budget.spent <= overhead * training + max(costs) - min(costs) + 1e-6


def test_cheap_records_are_even_in_the_logarithm():
    clock = Clock()
    budget = Budget(0.05, 10, clock)
    budget.start(0.0)
    made = run(budget, clock, 100_000, 1.0, lambda i: 0.0)
    assert made[:4] == [1, 2, 3, 4]
    late = [b / a for a, b in itertools.pairwise(made) if a > 100]
    assert all(ratio == pytest.approx(10**0.1, abs=0.01) for ratio in late)
    assert budget.skipped == 0
    assert len(made) < 50


def test_dear_records_wait_until_they_can_be_afforded():
    """A record of 10 s at 5 %: the first after 200 s of training, and 200 s between."""
    clock = Clock()
    budget = Budget(0.05, 100, clock)
    budget.start(10.0)
    made = run(budget, clock, 1000, 1.0, lambda i: 10.0)
    assert made == [200, 400, 600, 800, 1000]
    assert budget.spent == 50
    assert budget.training == 1000
    assert budget.skipped > 500


def test_without_a_bound():
    clock = Clock()
    budget = Budget(None, 12, clock)
    budget.start(1e9)
    assert run(budget, clock, 3, 1e-9, lambda i: 1e9) == [1, 2, 3]


@pytest.mark.parametrize("overhead", [0.0, -1.0, math.inf, math.nan])
def test_bad_budgets(overhead):
    with pytest.raises(InvalidInput, match="overhead"):
        Budget(overhead, 12, Clock())
    for bad in (0, 1.5, True):
        with pytest.raises(InvalidInput, match="per_decade"):
            Budget(0.1, bad, Clock())


def test_a_monitor_keeps_to_its_budget(monkeypatch):
    """Records that take 2 s by the clock, in a loop whose steps take 1 s."""
    clock, x = Clock(), normal(8, 4, seed=1)
    model = network(6)
    monitor = Monitor(model, x, target(x), overhead=0.1, per_decade=50, clock=clock)
    observe = monitor._observer.observe

    def slow():
        clock.now += 2.0
        return observe()

    monkeypatch.setattr(monitor._observer, "observe", slow)
    monitor._budget.start(2.0)
    made = []
    for step in range(1, 101):
        clock.now += 1.0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 0.99
        if monitor(step):
            made.append(step)
    assert made == [20, 40, 60, 80, 100]
    course = monitor.finish()
    assert course.steps.tolist() == [0, *made]
    assert course.seconds["records"] == pytest.approx(10)
    assert course.seconds["training"] == pytest.approx(100)
    assert course.skipped > 0
    # The end is recorded whatever the budget says, and is not counted as training.
    clock.now += 1.0
    assert not monitor.record(101)
    course = monitor.finish()
    assert course.steps.tolist()[-1] == 101
    assert course.seconds["training"] == pytest.approx(101)
