"""The generated dual of functions of two Gaussians against the rule evaluated eagerly."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tangency.infinite.duals.two_gaussians import dual_of_two
from tangency.infinite.duals.two_gaussians_piecewise import PiecewiseLinearOfTwo
from tangency.infinite.fused import compiler
from tangency.infinite.fused.compiler import CompilerMissing
from tangency.infinite.fused.functions import Functions, Piece
from tangency.infinite.fused.loops import PRELUDE
from tangency.infinite.fused.memory import integer
from tangency.infinite.fused.two_gaussians import OfTwo, text_of_two

try:
    compiler.find_compiler()
except CompilerMissing:
    pytest.skip("no C compiler", allow_module_level=True)

FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "basic block": lambda a, b: F.relu(b + F.relu(a)),
    "leaky": lambda a, b: F.leaky_relu(b + F.leaky_relu(a, 0.2), 0.1),
    "absolute value": lambda a, b: (2 * b - F.relu(-a)).abs(),
    "maximum": torch.maximum,
}

COUNT = 400


def rule_of(name: str) -> PiecewiseLinearOfTwo:
    rule = dual_of_two(FUNCTIONS[name])
    assert isinstance(rule, PiecewiseLinearOfTwo)
    return rule


def generated(
    rule: PiecewiseLinearOfTwo, sides: list[Tensor], versines: list[Tensor], nodes: int
) -> list[Tensor]:
    """What generated code makes of versines and of the numbers of both sides."""
    kind = "double" if versines[0].dtype == torch.float64 else "float"
    inputs = [*versines, *(row.contiguous() for side in sides for row in side)]
    kinds = [f"const {kind} *restrict"] * 2 + ["const double *restrict"] * (len(inputs) - 2)
    outputs = [torch.empty_like(versines[0]) for _ in range(3)]
    text = "\n".join(text_of_two(OfTwo(rule.cones, nodes, 0), [0, 1, 2]))
    names = [f"table[{k}]" for k in range(len(inputs) + 3)]
    functions = Functions()
    parameters = ("long", "long", *kinds, *[f"{kind} *restrict"] * 3)
    call = functions.add(Piece(parameters, text, ("0", "count", *names)))
    source = "\n".join(
        [PRELUDE, functions.text(), f"void pairs(void *const *table, long count) {{ {call} }}"]
    )
    pointers = [t.data_ptr() for t in (*inputs, *outputs)]
    library = compiler.compiled(source)
    library.pairs((ctypes.c_void_p * len(pointers))(*pointers), integer(len(versines[0])))
    return outputs


def drawn(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Standard deviations `(2, COUNT)` of both sides, and versines from nothing to two."""
    generator = torch.Generator().manual_seed(7)
    sds = [torch.randn(2, COUNT, generator=generator).double().exp() for _ in range(2)]
    sds[1][:, ::3] = 1.7 * sds[0][:, ::3]  # the same ratio
    sds[1][:, 1::7] = sds[0][:, 1::7] * (1 + 1e-5)
    sds[0][0, ::11] = 0
    versines = [2 * torch.rand(COUNT, generator=generator).double() for _ in range(2)]
    for k, versine in enumerate(versines):
        versine[k::5] *= 1e-6
        versine[2 + k :: 13] = 0
        versine[3 + k :: 17] = 2
        versine[4::19] = 1
    return sds, [versine.to(dtype) for versine in versines]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_computes_what_the_rule_says(name: str, dtype: torch.dtype) -> None:
    rule = rule_of(name)
    sds, versines = drawn(dtype)
    left, right = (rule.moments(*sd) for sd in sds)
    numbers = [rule.numbers(side) for side in (left, right)]
    found = generated(rule, numbers, versines, rule.nodes_for(dtype))
    expected = rule.pair(left, right, *versines)
    tight = dtype == torch.float64
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12 if tight else 1e-7, atol=4e-15)
    for moment, other, number in zip(found[1:], expected[1:], (1, 2), strict=True):
        scale = (left[f"slope_energy_{number}"] * right[f"slope_energy_{number}"]).sqrt()
        error = ((moment - other).abs() / scale).max()
        assert float(error) < (1e-13 if tight else 1e-7)


def test_float64_takes_as_many_nodes_as_the_rule() -> None:
    rule = rule_of("basic block")
    assert rule.nodes_for(torch.float64) > rule.nodes_for(torch.float32)
    assert PiecewiseLinearOfTwo(rule.cones, nodes=12).nodes_for(torch.float32) == 12
