"""The empirical kernel against plain autograd, one example and one output at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from empirical.cases import CASES, Case, case_of, kernel_of, real, reference
from tangency.empirical import EmpiricalKernel

TOLERANCE = 1e-10


def assert_equal(value: Tensor, expected: Tensor) -> None:
    assert value.shape == expected.shape
    scale = float(expected.abs().max())
    assert scale > 0
    assert float((value - expected).abs().max()) <= TOLERANCE * scale


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_against_autograd(case: Case) -> None:
    x1, x2 = case.data(4), case.data(3)
    kernel = kernel_of(case.name, output="full")
    nngp, ntk = kernel.pair(x1, x2)
    expected_nngp, expected_ntk = reference(kernel.model, x1, x2)
    assert_equal(ntk, expected_ntk)
    assert_equal(nngp, expected_nngp)


@pytest.mark.parametrize(
    "name",
    ["mlp", "linear over tokens", "tied embedding", "branch on data"],
)
def test_layouts_and_diagonal(name: str) -> None:
    x = case_of(name).data(3)
    nngp, ntk = reference(kernel_of(name).model, x, x)
    here = torch.arange(3)
    each = torch.arange(ntk.shape[-1])
    expected = {
        "full": lambda k: k,
        "trace": lambda k: k[..., each, each].mean(-1),
        "diagonal": lambda k: k[..., each, each],
        1: lambda k: k[..., 1, 1],
        -1: lambda k: k[..., -1, -1],
    }
    for output, chosen in expected.items():
        kernel = kernel_of(name, output=output)
        assert_equal(kernel.ntk(x), chosen(ntk))
        assert_equal(kernel.nngp(x), chosen(nngp))
        diagonal = kernel.diagonal(x)
        assert_equal(diagonal.ntk, chosen(ntk)[here, here])
        assert_equal(diagonal.nngp, chosen(nngp)[here, here])


class Reused(nn.Module):
    """A random program over a few layers, each used any number of times.

    Step (layer, source, other, kind): a new value from earlier ones.
    """

    def __init__(self, steps: list[tuple[int, int, int, str]], tied: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        if tied:
            self.layers[1].weight = self.layers[0].weight
            self.layers[2].bias = self.layers[0].bias
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for layer, source, other, kind in self.steps:
            a, b = values[source % len(values)], values[other % len(values)]
            applied = self.layers[layer](a)
            values.append(
                {
                    "tanh": lambda y, b: y.tanh(),
                    "residual": lambda y, b: y + b,
                    "gate": lambda y, b: y * b.sigmoid(),
                    "mix positions": lambda y, b: y + b.mean(1, keepdim=True),
                    "transpose": lambda y, b: y.transpose(1, 2) + b,
                    "weight": lambda y, b, w=self.layers[layer].weight: y @ w,
                }[kind](applied, b)
            )
        return sum(values[1:], values[0])[:, 0, :2]


STEP = st.tuples(
    st.integers(0, 2),
    st.integers(0, 5),
    st.integers(0, 5),
    st.sampled_from(["tanh", "residual", "gate", "mix positions", "transpose", "weight"]),
)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(steps=st.lists(STEP, min_size=1, max_size=5), tied=st.booleans())
def test_random_graphs_of_reused_layers(steps: list[tuple[int, int, int, str]], tied: bool) -> None:
    torch.manual_seed(0)
    model = Reused(steps, tied).double()
    x1, x2 = real(3, 3)(3), real(3, 3)(2)
    ntk = EmpiricalKernel(model, output="full").ntk(x1, x2)
    assert_equal(ntk, reference(model, x1, x2)[1])
