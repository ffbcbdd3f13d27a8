"""Rows that the data arrange, and values of a whole batch, which three examples need not show."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from empirical.cases import Lambda, linear, real, reference
from empirical.displacement import assert_equal
from tangency.empirical import EmpiricalKernel
from tangency.errors import InvalidInput


def by_index(h: Tensor, order: Tensor) -> Tensor:
    return h[order.argsort()]


def by_index_select(h: Tensor, order: Tensor) -> Tensor:
    return h.index_select(0, order.argsort())


def by_gather(h: Tensor, order: Tensor) -> Tensor:
    return h.gather(0, order.argsort()[:, None].expand(-1, 4))


def by_assignment(h: Tensor, order: Tensor) -> Tensor:
    back = torch.zeros_like(h)
    back[order] = h
    return back


def by_index_add(h: Tensor, order: Tensor) -> Tensor:
    return torch.zeros_like(h).index_add(0, order, h)


def by_scatter(h: Tensor, order: Tensor) -> Tensor:
    return torch.zeros_like(h).scatter(0, order[:, None].expand(-1, 4), h)


BACK = [
    by_index,
    by_index_select,
    by_gather,
    by_assignment,
    by_index_add,
    by_scatter,
]


def sorted_by_group(back: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """Examples are sorted by their largest entry while one layer is applied, as experts do it."""

    def forward(m: Lambda, x: Tensor) -> Tensor:
        order = x.argmax(-1).argsort(stable=True)
        return m.c(back(m.b(m.a(x)[order]).tanh(), order))

    torch.manual_seed(0)
    return Lambda(forward, a=linear(3, 4), b=linear(4, 4), c=linear(4, 2)).double()


@pytest.mark.parametrize("back", BACK)
def test_rows_in_order_by_chance(back: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = sorted_by_group(back)
    x = torch.eye(3, dtype=torch.float64)[[0, 2, 1, 0, 2]] + 0.1 * real(3)(5)
    assert x[[0, 2, 4]].argmax(-1).tolist() == [0, 1, 2]  # on which paths are confirmed
    kernel = EmpiricalKernel(model, output="full")
    assert_equal(kernel.ntk(x), reference(model, x, x)[1])
    paths = {p.name: p.path for p in kernel.plan(x).parameters}
    assert "Jacobian" in paths["b.weight"]
    assert "Jacobian" not in paths["a.weight"] + paths["c.weight"]


def test_rows_of_a_number_that_depends_on_the_data() -> None:
    def forward(m: Lambda, x: Tensor) -> Tensor:
        kept = x[..., 0] > 0
        total = torch.zeros_like(x)
        total[kept] = m.a(x[kept]).tanh()
        return m.b(total.sum(1))

    model = Lambda(forward, a=linear(3, 3), b=linear(3, 2)).double()
    x = real(4, 3)(6)
    x[..., 0] = x[..., 0].abs()
    x[1, 0, 0], x[3, :, 0] = -1, -1  # not among the three
    kernel = EmpiricalKernel(model, output="full")
    assert_equal(kernel.ntk(x), reference(model, x, x)[1])


def largest(x: Tensor) -> Tensor:
    """A scale that one example sets for the whole batch."""
    return x / x.abs().max().clamp_min(10)


def largest_number(x: Tensor) -> Tensor:
    return x / max(x.abs().max().item(), 10.0)


def switched(x: Tensor) -> Tensor:
    return torch.where(x.mean() > 0, x, -3 * x)


@pytest.mark.parametrize("shared", [largest, largest_number, switched])
def test_values_of_a_whole_batch(shared: Callable[[Tensor], Tensor]) -> None:
    """The function of an example is that of the example alone, whoever is in the batch."""
    model = Lambda(lambda m, x: m.b(m.a(shared(x)).tanh()), a=linear(3, 3), b=linear(3, 2)).double()
    x = real(3)(6).abs()
    x[1], x[2] = 50 * x[1], -9 * x[2].abs()  # not among the three
    kernel = EmpiricalKernel(model, output="full")
    assert_equal(kernel.ntk(x), reference(model, x, x)[1])
    v = real(2)(12)
    expected = kernel.ntk(x).transpose(1, 2).reshape(12, 12) @ v
    assert_equal(kernel.operator(x) @ v, expected)
    if shared is not largest_number:  # a recorded module that is seen to couple them is refused
        with pytest.raises(InvalidInput, match="couples the examples"):
            EmpiricalKernel(model).ntk(x[:3])


def test_rows_within_an_example_stay_its_own() -> None:
    """Positions may be taken by the data, and a number put where the data say."""

    def forward(m: Lambda, x: Tensor) -> Tensor:
        order = x[..., 0].argsort(1)[..., None]
        taken = m.a(x.gather(1, order.expand(-1, -1, 3))).tanh()
        marked = taken.scatter(1, order, 1.0).gather(2, order.expand(-1, -1, 2) % 3)
        return m.b(marked.flatten(1))

    model = Lambda(forward, a=linear(3, 3), b=linear(8, 2)).double()
    x = real(4, 3)(5)
    kernel = EmpiricalKernel(model, output="full")
    assert_equal(kernel.ntk(x), reference(model, x, x)[1])
    assert not any("Jacobian" in p.path for p in kernel.plan(x).parameters)


def test_a_number_put_where_the_data_say() -> None:
    def forward(m: Lambda, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.b(h.scatter(0, x[:, :1].argsort(0), 1.0).detach() * 0 + h)

    model = Lambda(forward, a=linear(3, 3), b=linear(3, 2)).double()
    x = real(3)(5)
    kernel = EmpiricalKernel(model, output="full")
    assert_equal(kernel.ntk(x), reference(model, x, x)[1])


def test_constants_couple_nothing() -> None:
    """What depends on sizes alone, and values that nothing depends on."""

    def forward(m: Lambda, x: Tensor) -> Tensor:
        x.abs().max()
        start = x.new_ones(1, 4) + torch.zeros_like(x)[..., :1] + torch.full_like(x, 2.0).mean()
        return m.b((m.a(x) + start).tanh()) * x.shape[0] / x.shape[0]

    model = Lambda(forward, a=linear(3, 4), b=linear(4, 2)).double()
    plan = EmpiricalKernel(model).plan(real(3)(6))
    assert not any("Jacobian" in p.path for p in plan.parameters)
