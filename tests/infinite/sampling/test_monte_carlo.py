"""Sampled kernels and products against the modules themselves at finite width."""

from __future__ import annotations

import pytest
import torch
from tests.infinite.sampling.networks import EXACT, SAMPLED, Case, reinitialise
from tests.infinite.test_monte_carlo import ntk_by_autograd
from torch import Tensor

from tangency.infinite import InfiniteKernel, Init

WEIGHT, BIAS = 1.7, 0.1
WIDTH = 192
CASES = SAMPLED | EXACT


def drawn_ntks(case: Case, width: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    model = case.factory(width, 1).double().eval()
    draws = []
    for _ in range(count):
        reinitialise(model, WEIGHT, BIAS, generator)
        draws.append(ntk_by_autograd(model, case.inputs()))
    return torch.stack(draws)


def drawn_nngps(case: Case, width: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    model = case.factory(width, 256).double().eval()
    draws = []
    for _ in range(count):
        reinitialise(model, WEIGHT, BIAS, generator)
        outputs = model(case.inputs()).detach()
        draws.append(outputs @ outputs.T / outputs.shape[1])
    return torch.stack(draws)


def kernel(case: Case, weight: float = WEIGHT, **options: object) -> InfiniteKernel:
    model = case.factory(WIDTH, 1).double()
    numerical = None if case.exact else "sample"
    init = Init(weight=weight, bias=BIAS)
    return InfiniteKernel(model, case.inputs(), init=init, numerical=numerical, **options)  # type: ignore[arg-type]


def gap(drawn: Tensor, estimate: Tensor, error: Tensor) -> tuple[float, float]:
    """Relative distance of the means, and three standard errors of it with 2 % for O(1/width)."""
    norm = torch.linalg.matrix_norm(estimate)
    spread = (drawn.var(0) / len(drawn) + error.square()).sum().sqrt()
    apart = torch.linalg.matrix_norm(drawn.mean(0) - estimate) / norm
    return float(apart), 0.02 + 3 * float(spread / norm)


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_the_limits_of_the_means(name: str) -> None:
    case = CASES[name]
    limit = kernel(case)
    assert limit.sampled != case.exact
    exact = limit.estimate(case.inputs())
    ntk, bound = gap(drawn_ntks(case, WIDTH, 40), exact.ntk, exact.ntk_error)
    assert ntk < bound < 0.25
    nngp, bound = gap(drawn_nngps(case, WIDTH, 20), exact.nngp, exact.nngp_error)
    assert nngp < bound < 0.25
