"""How a matrix is cut into tiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from empirical.cases import case_of
from tangency import EmpiricalKernel
from tangency.empirical.costs import Term, making
from tangency.empirical.schedule import SHARE, Schedule, Work, schedule

BUDGET = 2**24


def work(out: int = 2) -> Work:
    """A large layer at few places, and a small one at many."""
    large = Term("factors", 4, 300, 200, 1, 60_000, 4800, 3200)
    small = Term("factors", 1024, 27, 16, 1, 432, 110_592, 65_536)
    return Work({"large": [[large]], "small": [[small]]}, 500_000, out, "trace")


def covered(order: Schedule) -> torch.Tensor:
    count = torch.zeros(order.n1, order.n2, dtype=torch.int)
    for tile in order.tiles():
        count[tile.rows, tile.columns] += 1
    return count


@given(n1=st.integers(1, 300), n2=st.integers(1, 300), budget=st.integers(2**20, 2**28))
def test_every_pair_once(n1: int, n2: int, budget: int) -> None:
    assert (covered(schedule(work(), n1, n2, symmetric=False, budget=budget)) == 1).all()
    count = covered(schedule(work(), n1, n1, symmetric=True, budget=budget))
    assert (count.triu() == torch.ones(n1, n1, dtype=torch.int).triu()).all()


@pytest.mark.parametrize("out", [1, 10])
def test_gradients_at_rest_stay_within_their_share(out: int) -> None:
    order = schedule(work(out), 5000, 5000, symmetric=True, budget=BUDGET)
    assert order.rows > 1
    assert order.held_bytes(work(out)) <= SHARE * BUDGET


def test_small_matrices_of_many_places_are_written_out() -> None:
    (written,) = schedule(work(), 5000, 5000, symmetric=True, budget=2**26).written_out
    assert written.entries == 432


def test_every_example_passes_once_where_all_fit() -> None:
    order = schedule(work(), 64, 64, symmetric=True, budget=2**30)
    assert order.passages == 64
    assert order.blocks == 1
    assert not order.written_out  # they are made once, and need not be kept
    small = schedule(work(), 5000, 5000, symmetric=True, budget=BUDGET)
    assert not small.whole
    assert small.passages > 5000


def test_a_tile_on_the_diagonal_makes_its_gradients_once() -> None:
    """All examples in one tile: no others come by, and each gradient is made once."""
    large, small = work().counted
    one = Schedule(64, 64, True, 64, 64, False, 64, frozenset())
    two = Schedule(64, 64, False, 64, 64, False, 64, frozenset())
    assert one.kept == 64
    for t in (large, small):
        assert one.multiplying(t, work()) < two.multiplying(t, work())
    made = making(small, 2)
    assert 64 * made <= one.multiplying(small, work()) < 128 * made


@pytest.mark.parametrize(
    "name", ["mlp", "conv2d", "tied embedding", "layer norm", "embedding bag, weighted sums"]
)
@pytest.mark.parametrize("output", ["full", "trace", "diagonal"])
def test_tiled_equals_untiled(name: str, output: str) -> None:
    model, x = case_of(name).model(), case_of(name).data(7)
    whole = EmpiricalKernel(model, output=output)
    tiled = EmpiricalKernel(model, output=output, memory=1)
    torch.testing.assert_close(tiled.ntk(x), whole.ntk(x), rtol=1e-12, atol=1e-12)
    other = case_of(name).data(5)
    torch.testing.assert_close(tiled.ntk(x, other), whole.ntk(x, other), rtol=1e-12, atol=1e-12)
    for one, two in zip(tiled.diagonal(x), whole.diagonal(x), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "tied embedding", "transformer layer, norm first"])
def test_parts_add_up(name: str) -> None:
    model, x = case_of(name).model(), case_of(name).data(4)
    kernel = EmpiricalKernel(model, output="full")
    whole = kernel.ntk(x)
    parts = kernel.by_parameter(x)
    assert list(parts) == [name for name, _ in model.named_parameters()]
    for named in (parts, kernel.by_layer(x), kernel.by_layer(x, depth=1)):
        torch.testing.assert_close(sum(named.values()), whole, rtol=1e-12, atol=1e-12)
    for parameter, part in parts.items():
        alone = EmpiricalKernel(model, output="full", parameters=parameter).ntk(x)
        torch.testing.assert_close(part, alone, rtol=1e-12, atol=1e-12)
