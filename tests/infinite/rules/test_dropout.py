"""Dropout in training semantics."""

from __future__ import annotations

import pytest
import torch
from tests.infinite.sampling.networks import reinitialise
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.infinite import InfiniteKernel, Init

WEIGHT, BIAS, WIDTH = 1.7, 0.1, 192
INIT = Init(weight=WEIGHT, bias=BIAS)


def inputs(n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 4, 4, generator=generator, dtype=torch.float64)


class Dropping(nn.Module):
    """Dropout of pixels or channels, a norm's scale on top of it, and dropout after pooling."""

    def __init__(self, width: int, dropout: nn.Module):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.dropout = dropout
        self.second = nn.Conv2d(width, width, 3)
        self.last_dropout = nn.Dropout(0.2)
        self.last = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.first(x)))
        hidden = torch.relu(self.second(hidden)).mean((2, 3))
        return self.last(self.last_dropout(hidden))


def drawn_ntks(model: nn.Module, x: Tensor, count: int) -> Tensor:
    """NTKs of one call on the whole batch: every example has its masks."""
    draws = []
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(count):
            reinitialise(model, WEIGHT, BIAS, generator)
            outputs = model(x)
            rows = [
                torch.autograd.grad(output.sum(), list(model.parameters()), retain_graph=True)
                for output in outputs
            ]
            jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
            draws.append(jacobian @ jacobian.T)
    return torch.stack(draws)


@pytest.mark.parametrize(
    "dropout",
    [nn.Dropout(0.4), nn.Dropout2d(0.3), nn.AlphaDropout(0.4), nn.FeatureAlphaDropout(0.3)],
)
def test_the_kernel_is_the_limit_of_the_mean(dropout: nn.Module) -> None:
    model, x = Dropping(WIDTH, dropout).double(), inputs()
    exact = InfiniteKernel(model, x, init=INIT, dropout=True).ntk(x)
    draws = drawn_ntks(model.train(), x, 60)
    error = torch.linalg.matrix_norm(draws.std(0)) / 60**0.5 / torch.linalg.matrix_norm(exact)
    apart = torch.linalg.matrix_norm(draws.mean(0) - exact) / torch.linalg.matrix_norm(exact)
    bound = 0.02 + 3 * float(error)
    assert float(apart) < bound < 0.15
    without = InfiniteKernel(model, x, init=INIT).ntk(x)
    assert (
        float(torch.linalg.matrix_norm(without - exact) / torch.linalg.matrix_norm(exact)) > bound
    )


def test_the_diagonal_grows_by_one_over_keep() -> None:
    """After the last layer but one, dropout acts on nothing else."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1, bias=False)
    ).double()
    x = inputs()
    plain = InfiniteKernel(model, x, init=INIT).pair(x)
    dropped = InfiniteKernel(model, x, init=INIT, dropout=True)
    for grown, kernel in zip(dropped.pair(x), plain, strict=True):
        factors = torch.ones_like(kernel) + torch.eye(3, dtype=torch.float64) / 4
        torch.testing.assert_close(grown, kernel * factors)
    for grown, kernel in zip(dropped.diagonal(x), plain, strict=True):
        torch.testing.assert_close(grown, kernel.diagonal() / 0.8)
    for between, kernel in zip(dropped.pair(x, x), plain, strict=True):
        torch.testing.assert_close(between, kernel)  # other masks, for want of a common data set


def test_a_nonlinearity_on_dropped_values_is_sampled() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(48, 64), nn.Dropout(0.4), nn.ReLU(), nn.Linear(64, 1)
    ).double()
    swapped = nn.Sequential(model[0], model[1], model[3], model[2], model[4])
    x = inputs()
    with pytest.raises(UnsupportedOperation, match='numerical="sample"'):
        InfiniteKernel(model, x, dropout=True)
    sampled = InfiniteKernel(model, x, init=INIT, dropout=True, numerical="sample", samples=16384)
    result = sampled.estimate(x)
    exact = InfiniteKernel(swapped, x, init=INIT, dropout=True).pair(x)  # the ReLU commutes with it
    for kernel, error, truth in zip(result[:2], result[2:], exact, strict=True):
        assert bool(((kernel - truth).abs() < 4.5 * error).all())
        assert float(error.norm() / truth.norm()) < 0.02


def test_dropout_of_what_was_dropped_beside_it() -> None:
    """y = m u / k and y + m' y / k': of the second moment of u, 1 / k (1 + 2 + 1 / k')."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(48, 8), nn.Linear(8, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            hidden = nn.functional.dropout(torch.relu(self.first(x.flatten(1))), 0.2)
            return self.last(hidden + nn.functional.dropout(hidden, 0.5))

    x = inputs()
    plain = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 1, bias=False))
    apart = InfiniteKernel(plain.double(), x, init=INIT).pair(x)
    factors = torch.full((3, 3), 4.0, dtype=torch.float64).fill_diagonal_(5 / 0.8)
    for kernel, one in zip(
        InfiniteKernel(Twice().double(), x, init=INIT).pair(x), apart, strict=True
    ):
        torch.testing.assert_close(kernel, one * factors)


def test_alpha_dropout_in_closed_form() -> None:
    """Klambauer et al. 2017: a x + b with probability q, else a x0 + b, with their a, b and x0; the
    NNGP of a layer on ReLU features.
    """
    p, q, low = 0.3, 0.7, -1.7580993408473766
    a = (q * (1 + p * low**2)) ** -0.5
    b = -a * p * low
    layers = [nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 1, bias=False)]
    plain = nn.Sequential(*layers).double()
    dropped = nn.Sequential(*layers[:3], nn.AlphaDropout(p), layers[3]).double()
    x, one = inputs(), Init(weight=1.0, bias=0.0)
    kernel = InfiniteKernel(plain, x, init=one).nngp(x)
    mean = (2 * kernel.diagonal() / (2 * torch.pi)).sqrt()  # of relu(g) with E relu^2 = v / 2
    shift = b + p * a * low
    scale = a * q
    expected = (
        scale**2 * kernel + scale * shift * (mean[:, None] + mean) + torch.full((3, 3), shift**2)
    )
    own = q * (a**2 * kernel.diagonal() + 2 * a * b * mean + b**2) + p * (a * low + b) ** 2
    expected.diagonal().copy_(own)
    found = InfiniteKernel(dropped, x, init=one, dropout=True).nngp(x)
    torch.testing.assert_close(found, expected)
