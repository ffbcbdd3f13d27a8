"""Factors of covariances that are singular, or nearly so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangency.errors import TangencyError
from tangency.infinite.sampling import factors
from tangency.infinite.sampling.factors import Factor


def covariance(size: int, rank: int) -> Tensor:
    root = torch.randn(size, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return root @ root.T


def factor(matrix: Tensor) -> Factor:
    return Factor(matrix.clone(), matrix.diagonal().sqrt())


@pytest.mark.parametrize("rank", [1, 7, 40, 200])
def test_as_many_columns_as_the_rank(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "BLOCK", 16)
    matrix = covariance(60, rank)
    found = factor(matrix)
    assert found.matrix.shape == (60, min(60, rank))
    torch.testing.assert_close(found.matrix @ found.matrix.T, matrix, rtol=1e-9, atol=1e-9)


def test_more_examples_begin_with_the_same_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "BLOCK", 16)
    matrix = covariance(60, 25)
    whole, part = factor(matrix), factor(matrix[:20, :20])
    rank = part.matrix.shape[1]
    torch.testing.assert_close(whole.matrix[:20, :rank], part.matrix)
    assert not bool(whole.matrix[:20, rank:].any())


def test_equal_and_vanishing_coordinates() -> None:
    matrix = covariance(6, 6)
    index = torch.tensor([0, 1, 0, 2, 1, 3])
    repeated = matrix[index][:, index]
    repeated[3], repeated[:, 3] = 0, 0
    found = factor(repeated).matrix
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[4], found[1], rtol=0, atol=1e-12)
    assert not bool(found[3].any())
    torch.testing.assert_close(found @ found.T, repeated)


def test_rounding_of_nearly_dependent_coordinates_is_not_taken_for_indefinite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What follows them is known to no better than the rounding of their difference."""
    root = torch.randn(60, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    root[1] = root[0] + 1.2e-5 * root[1]
    matrix = root @ root.T
    found = factor(matrix).matrix
    assert found.shape[1] == 8
    torch.testing.assert_close(found @ found.T, matrix, rtol=0, atol=1e-4 * float(matrix.max()))
    monkeypatch.setattr(factors, "ROUNDING", 0.0)
    with pytest.raises(TangencyError):
        factor(matrix)


def test_division() -> None:
    found = factor(covariance(30, 12))
    block = torch.randn(4, 12, dtype=torch.float64)
    torch.testing.assert_close(found.divide(block @ found.matrix.T), block)


def test_indefinite_matrices_are_refused() -> None:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 1] = matrix[1, 0] = 1.1
    with pytest.raises(TangencyError, match="not positive semi-definite"):
        factor(matrix)
