"""Samples and noise of random outputs."""

import numpy as np
import pytest
import torch

from tangency.analysis.dynamics import RandomOutputs
from tangency.errors import InvalidInput

from .linear_model import close


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def psd(size: int, rank: int, seed: int = 0) -> torch.Tensor:
    root = torch.randn(size, rank, generator=torch.Generator().manual_seed(seed)).double()
    return root @ root.mT


def scatter(draws: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Empirical minus stated covariance, in standard errors; draws are (count, N)."""
    centred = draws - draws.mean(dim=0)
    found = centred.mT @ centred / len(draws)
    own = covariance.diagonal()
    return (found - covariance) / ((own[:, None] * own + covariance**2) / len(draws)).sqrt()


@pytest.mark.parametrize("rank", [2, 6])
def test_samples_have_the_covariance(rank):
    covariance, mean = psd(4, rank), torch.arange(8.0).reshape(4, 2).double()
    outputs = RandomOutputs(mean, covariance.diagonal()[:, None].expand(4, 2), covariance)
    draws = outputs.sample(20_000, generator())
    assert draws.shape == (20_000, 4, 2)
    for out in range(2):
        assert float(scatter(draws[..., out], covariance).abs().max()) < 4.5
        error = (draws[..., out].mean(0) - mean[:, out]) / (covariance.diagonal() / 20_000).sqrt()
        assert float(error.abs().max()) < 4.5
    cross = (draws[..., 0] - mean[:, 0]).mT @ (draws[..., 1] - mean[:, 1]) / 20_000
    own = covariance.diagonal()
    assert float((cross / (own[:, None] * own / 20_000).sqrt()).abs().max()) < 4.5
    close(outputs.sample(3, generator()), outputs.sample(3, generator()), 0)


def test_samples_of_a_full_covariance_at_several_times():
    flat = torch.stack([psd(6, 6), psd(6, 3, seed=1)])
    full = flat.reshape(2, 3, 2, 3, 2).transpose(2, 3)
    variance = flat.diagonal(dim1=1, dim2=2).reshape(2, 3, 2)
    times = torch.tensor([1.0, 2.0])
    outputs = RandomOutputs(torch.zeros(2, 3, 2).double(), variance, full, times)
    draws = outputs.sample(20_000, generator())
    assert draws.shape == (20_000, 2, 3, 2)
    for index in range(2):
        assert float(scatter(draws[:, index].reshape(-1, 6), flat[index]).abs().max()) < 4.5


def test_noise():
    covariance = psd(3, 3)
    vector = RandomOutputs(torch.zeros(3).double(), covariance.diagonal(), covariance)
    noisy = vector.with_noise(0.5)
    close(noisy.covariance, covariance + 0.5 * torch.eye(3).double(), 1e-14)
    close(noisy.variance, covariance.diagonal() + 0.5, 1e-14)
    assert vector.sample(2).shape == (2, 3)
    flat = psd(6, 6)
    full = flat.reshape(3, 2, 3, 2).transpose(1, 2)
    matrix = RandomOutputs(torch.zeros(3, 2).double(), flat.diagonal().reshape(3, 2), full)
    expected = (flat + 0.5 * torch.eye(6)).reshape(3, 2, 3, 2).transpose(1, 2)
    close(matrix.with_noise(0.5).covariance, expected, 1e-14)
    with pytest.raises(InvalidInput, match="noise"):
        vector.with_noise(-1.0)


def test_what_cannot_be_sampled_is_refused():
    mean, variance = torch.zeros(2).double(), torch.ones(2).double()
    with pytest.raises(InvalidInput, match="covariance"):
        RandomOutputs(mean, variance).sample()
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double()
    with pytest.raises(InvalidInput, match="positive semi-definite"):
        RandomOutputs(mean, variance, indefinite).sample()
    rounding = torch.from_numpy(np.ones((2, 2)) - 1e-17)
    assert bool(torch.isfinite(RandomOutputs(mean, variance, rounding).sample(4)).all())
    assert "std 1" in repr(RandomOutputs(mean, variance))
