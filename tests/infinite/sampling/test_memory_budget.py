"""Sampled kernels keep to their memory: some samples, some pairs of examples at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.infinite.allocations import Allocations
from tests.infinite.sampling.networks import MaxPooled, PostActivationResidual, Recurrent
from torch import Tensor, nn

from tangency.errors import InvalidInput
from tangency.infinite import InfiniteKernel
from tangency.infinite.sampling import blockwise, draws
from tangency.infinite.sampling.draw import Sampling
from tangency.infinite.sampling.estimation import GROUPS
from tangency.infinite.sampling.plan import SamplingPlan

MEBIBYTE = 1 << 20


class Transformer(nn.Module):
    """Tokens, encoder layers with norms first, and the mean over tokens or the first one."""

    def __init__(self, *, mean: bool, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Linear(5, 16)
        layer = nn.TransformerEncoderLayer(
            16, 4, 32, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(16, 1)
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(self.embedding(x))
        y: Tensor = self.head(hidden.mean(1) if self.mean else hidden[:, 0])
        return y


def tokens(n: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, count, 5, generator=generator, dtype=torch.float64)


def images(n: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, size, size, generator=generator, dtype=torch.float64)


def sampled(model: nn.Module, x: Tensor, **options: object) -> InfiniteKernel:
    return InfiniteKernel(model.double().eval(), x, numerical="sample", **options)  # type: ignore[arg-type]


NETWORKS = {
    "transformer": (lambda: Transformer(mean=True), tokens(3, 5)),
    "transformer, first token": (lambda: Transformer(mean=False), tokens(3, 5)),
    "max pooling": (lambda: MaxPooled(8, 1), images(3, 4)),
    "residual": (lambda: PostActivationResidual(8, 1), tokens(3, 1)[:, 0]),
}


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_samples_and_pairs_at_a_time_make_no_difference(
    name: str, factored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if factored:
        monkeypatch.setattr(draws, "FACTORED", 2)
    make, x = NETWORKS[name]
    kernel = sampled(make(), x, samples=256)
    whole = kernel.estimate(x)
    parts = 0

    def passes(plan: SamplingPlan, positions: int) -> bool:
        nonlocal parts
        parts += 1
        return True

    monkeypatch.setattr(blockwise, "TILE", 1)
    monkeypatch.setattr(draws, "CHUNK", 1)
    monkeypatch.setattr(SamplingPlan, "passes", passes)
    for part, full in zip(kernel.estimate(x), whole, strict=True):
        torch.testing.assert_close(part, full, rtol=1e-7, atol=1e-9)
    assert parts


@pytest.mark.parametrize("mean", [True, False])
def test_a_transformer_keeps_to_its_memory(mean: bool) -> None:
    """The weights of one layer in all samples of a group take 10 MiB, with their tangents 20."""
    x, memory = tokens(4, 20), 12 * MEBIBYTE
    kernel = sampled(Transformer(mean=mean), x, samples=6400, memory=memory)
    with Allocations() as allocations:
        kernel.pair(x)
    assert allocations.peak < memory


class MaxPools(nn.Module):
    """Convolutions with max-pooling before each but the first."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        rest = [nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 8, 1)) for _ in range(layers - 1)]
        self.hidden = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), *rest, nn.ReLU())
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.hidden(x).mean((2, 3)))
        return y


DEEP: dict[str, tuple[Callable[[int], nn.Module], Tensor]] = {
    "transformer": (lambda layers: Transformer(mean=True, layers=layers), tokens(8, 8)),
    "first token": (lambda layers: Transformer(mean=False, layers=layers), tokens(8, 8)),
    "max pooling": (MaxPools, images(8, 6)),
}


REDRAWN: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "recurrent": (lambda: Recurrent(8, 1, nn.LSTM), tokens(3, 4)),
    "residual": (lambda: PostActivationResidual(8, 1), tokens(3, 1)[:, 0]),
}


@pytest.mark.parametrize("name", DEEP)
def test_layers_do_not_add_up(name: str) -> None:
    """What a layer takes is forgotten when the next is there: samples, factors, covariances."""
    make, x = DEEP[name]
    peaks = []
    for layers in (3, 6):
        kernel = sampled(make(layers), x, samples=1024)
        with Allocations() as allocations:
            kernel.pair(x)
        peaks.append(allocations.peak)
    assert peaks[1] < 1.05 * peaks[0]


@pytest.mark.parametrize("name", DEEP)
def test_the_estimate_covers_what_is_measured(name: str) -> None:
    """It counts what is remembered and, as a share of the memory, what works on the way."""
    make, x = DEEP[name]
    kernel = sampled(make(3), x, samples=512, memory=12 * MEBIBYTE)
    plan = kernel._sampling_plan(x, len(x), 512 // GROUPS, kernel._evaluation.of_samples)
    with Allocations() as allocations:
        kernel.pair(x)
    assert allocations.peak < plan.needed.memory < 2 * allocations.peak


def test_a_rehearsal_keeps_to_the_memory() -> None:
    """All layers together take more for one example."""
    x = images(1, 12)
    model = MaxPools(10)
    peaks, needed = [], []
    for memory in (64 * MEBIBYTE, 6 * MEBIBYTE):
        kernel = sampled(model, x, samples=64, memory=memory)
        with Allocations() as allocations:
            plan = kernel._sampling_plan(x, 1, 8, kernel._evaluation.of_samples)
        peaks.append(allocations.peak)
        needed.append(plan.needed.memory - memory // 8)
    assert peaks[1] < 6 * MEBIBYTE < peaks[0]
    assert needed[0] == needed[1]


def test_what_is_exact_is_computed_for_each_group_where_it_does_not_fit() -> None:
    make, x = DEEP["transformer"]
    roomy, tight = (sampled(make(3), x, samples=64, memory=m * MEBIBYTE) for m in (64, 12))
    kept = [
        k._sampling_plan(x, len(x), 8, k._evaluation.of_samples).keeps_exact for k in (roomy, tight)
    ]
    assert kept == [True, False]
    for part, full in zip(tight.estimate(x), roomy.estimate(x), strict=True):
        torch.testing.assert_close(part, full, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["recurrent", "residual"])
def test_gaussians_that_were_forgotten_are_drawn_as_before(name: str) -> None:
    make, x = REDRAWN[name]
    kernel = sampled(make(), x, samples=64)
    side = kernel._new_side(x, torch.float64, Sampling(32, 0))
    kernel._evaluation.of_samples(side)
    draws = side.draws
    drawn = {value: draws.of(value) for value in draws._gaussians}
    assert len(drawn) > 1
    for value, before in drawn.items():
        for kind in ("rows", "pooled"):
            draws._known.forget((kind, value))
        for again, first in zip(draws.of(value), before, strict=True):
            torch.testing.assert_close(again, first, rtol=1e-7, atol=1e-9)


def test_a_convolutional_network_keeps_to_its_memory() -> None:
    """One covariance of the first layer takes 10 MiB, and its NTK as much."""
    x, memory = images(8, 12), 72 * MEBIBYTE
    kernel = sampled(MaxPooled(8, 1), x, samples=128, memory=memory)
    with Allocations() as allocations:
        kernel.pair(x)
    assert allocations.peak < memory


def test_memory_is_a_positive_number() -> None:
    x = tokens(2, 3)
    with pytest.raises(InvalidInput, match="memory=0"):
        sampled(Transformer(mean=True), x, memory=0)


def test_gram_matrices_of_transformers_are_positive_semi_definite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draws, "FACTORED", 2)
    x = tokens(6, 4)
    x = torch.cat([x, x[:2] + 1e-7, x[:1]])
    for matrix in sampled(Transformer(mean=False), x, samples=128).pair(x):
        assert torch.equal(matrix, matrix.T)
        assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-9 * float(matrix.diagonal().mean())


def test_products_of_calls_on_the_same_data_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that are drawn by way of queries and keys have their samples in common too."""
    monkeypatch.setattr(draws, "FACTORED", 2)
    x = tokens(5, 4)
    kernel = sampled(Transformer(mean=True), x, samples=256)
    whole = kernel.pair(x)
    for part, full in zip(kernel.pair(x[:3]), whole, strict=True):
        torch.testing.assert_close(part, full[:3, :3], rtol=1e-6, atol=1e-8)
    for part, full in zip(kernel.pair(x[:2], x[2:]), whole, strict=True):
        torch.testing.assert_close(part, full[:2, 2:], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("name", ["transformer", "max pooling", "residual"])
def test_sampled_kernels_are_differentiable(
    name: str, factored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The samples of a seed are a function of the data: its slope by finite differences."""
    if factored:
        monkeypatch.setattr(draws, "FACTORED", 2)
    make, x = NETWORKS[name]
    kernel = sampled(make(), x, samples=64)
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(kernel.ntk(leaf)[0, 1], leaf)
    step = 1e-5 * direction
    by_differences = float(kernel.ntk(x + step)[0, 1] - kernel.ntk(x - step)[0, 1]) / 2e-5
    assert float((slope * direction).sum()) == pytest.approx(by_differences, rel=2e-3)
