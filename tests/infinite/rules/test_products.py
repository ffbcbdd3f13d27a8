"""Products of values: independent factors exactly, dependent ones by samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.infinite import InfiniteKernel, Init

INIT = Init(weight=1.3, bias=0.2)


def inputs(n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 5, generator=generator, dtype=torch.float64)


class Branches(nn.Module):
    """A function of two layers on the same input, and a readout without bias."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], width: int = 16):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.second = nn.Linear(5, width)
        self.last = nn.Linear(width, 1, bias=False)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x), self.second(x)))


def kernel(function: Callable[[Tensor, Tensor], Tensor], **options: object) -> InfiniteKernel:
    model = Branches(function).double()
    return InfiniteKernel(model, inputs(), init=INIT, parametrization="ntk", **options)  # type: ignore[arg-type]


def test_products_multiply() -> None:
    """K = w2 K1 K2 and T = w2 (K1 K2 + T1 K2 + K1 T2), with K1 = K2 = T1 = T2 for linear layers."""
    x = inputs()
    base = 1.3 * x @ x.T / 5 + 0.2
    nngp, ntk = kernel(lambda a, b: a * b).pair(x)
    torch.testing.assert_close(nngp, 1.3 * base**2)
    torch.testing.assert_close(ntk, 1.3 * 3 * base**2)


def test_factors_with_means() -> None:
    """(1 + a) b against b alone: the factor that has no partner enters with its mean."""
    x = inputs()
    base = 1.3 * x @ x.T / 5 + 0.2
    nngp, _ = kernel(lambda a, b: (1 + a) * b).pair(x)
    torch.testing.assert_close(nngp, 1.3 * (1 + base) * base)
    together, _ = kernel(lambda a, b: (1 + a) * b + b).pair(x)
    torch.testing.assert_close(together, 1.3 * (4 + base) * base)


def test_products_of_one_gaussian_are_functions_of_it() -> None:
    """relu(a) * a = relu(a) ** 2, without samples."""
    x = inputs()
    product = kernel(lambda a, b: torch.relu(a) * a + b).pair(x)
    square = kernel(lambda a, b: torch.relu(a).square() + b).pair(x)
    torch.testing.assert_close(product.ntk, square.ntk, rtol=1e-6, atol=1e-8)


def test_near_duplicates_keep_their_distance() -> None:
    """1 - K / (sd sd') of products is the sum of those of the factors, to its own accuracy."""
    x = inputs(1)
    close = torch.cat([x, x * (1 + 1e-9), x + 1e-7])
    model = kernel(lambda a, b: torch.relu(a) * torch.relu(b))
    ntk = model.ntk(close)
    single = model.diagonal(close).ntk
    torch.testing.assert_close(ntk.diagonal(), single)
    torch.testing.assert_close(ntk[0, 1], ntk[0, 0], rtol=1e-6, atol=0)


MIXED: Callable[[Tensor, Tensor], Tensor] = lambda a, b: a * b + torch.relu(a + b)  # noqa: E731


def test_a_cross_pair_without_closed_form() -> None:
    """Both terms are exact by themselves, E[a b relu(a + b)] is not."""
    x = inputs()
    with pytest.raises(UnsupportedOperation, match='numerical="sample"'):
        kernel(MIXED).pair(x)
    sampled = kernel(MIXED, numerical="sample", samples=65536)
    assert sampled.sampled
    nngp, ntk, error, ntk_error = sampled.estimate(x)
    # a b + relu(a + b) with p = a + b, q = a - b: a b = (p^2 - q^2) / 4 is even in p.
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(1.3 * x @ x.T / 5 + 0.2)
    a, b = (root @ torch.randn(2, 3, 2_000_000, generator=generator, dtype=torch.float64)).unbind()
    values = MIXED(a, b)
    exact = 1.3 * values @ values.T / values.shape[1]
    assert bool(((nngp - exact).abs() < 4 * error + 0.004 * exact.abs().max()).all())
    step = ((a + b) > 0).double()
    slopes = ((b + step) @ (b + step).T + (a + step) @ (a + step).T) / values.shape[1]
    exact_ntk = exact + 1.3 * slopes * (root @ root.T)
    assert bool(((ntk - exact_ntk).abs() < 4 * ntk_error + 0.004 * exact_ntk.abs().max()).all())
