"""Kernels of networks in which exact covariances and a sampled one meet."""

from __future__ import annotations

import pytest
import torch
from tests.infinite.sampling.mixed import MIXED
from tests.infinite.sampling.test_monte_carlo import WIDTH, drawn_nngps, drawn_ntks, gap, kernel

from tangency.errors import UnsupportedOperation
from tangency.infinite import InfiniteKernel, Init


@pytest.mark.parametrize("name", MIXED)
def test_gram_matrices_are_positive_semi_definite(name: str) -> None:
    """Of many examples, duplicates and near-duplicates among them, by two samples a group."""
    case = MIXED[name]
    x = case.inputs(24)
    x = torch.cat([x, x[:2] + 1e-7, x[:1]])
    model, init = case.factory(16, 1).double(), Init(weight=1.7, bias=0.0)
    for seed in range(2):
        found = InfiniteKernel(model, x, init=init, numerical="sample", samples=16, seed=seed)
        for matrix in found.pair(x):
            assert torch.equal(matrix, matrix.T)
            assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-6 * float(matrix.diagonal().mean())
        for matrix, diagonal in zip(found.pair(x), found.diagonal(x), strict=True):
            torch.testing.assert_close(matrix.diagonal(), diagonal, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "name", ["gated, added", "rectified, positions", "multiplied, one weight", "gated states"]
)
def test_kernels_are_the_limits_of_the_means(name: str) -> None:
    case = MIXED[name]
    limit = kernel(case).estimate(case.inputs())
    ntk, bound = gap(drawn_ntks(case, WIDTH, 40), limit.ntk, limit.ntk_error)
    assert ntk < bound < 0.3
    nngp, bound = gap(drawn_nngps(case, WIDTH, 50), limit.nngp, limit.nngp_error)
    assert nngp < bound < 0.3


@pytest.mark.parametrize("name", MIXED)
def test_nothing_is_sampled_unasked(name: str) -> None:
    case = MIXED[name]
    model = case.factory(16, 1).double()
    with pytest.raises(UnsupportedOperation, match='numerical="sample"'):
        InfiniteKernel(model, case.inputs()).ntk(case.inputs())
