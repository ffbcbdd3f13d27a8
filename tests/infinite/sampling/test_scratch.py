"""What a sampled kernel cannot hold in memory lies in files, with the same result."""

from __future__ import annotations

import re
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from tests.infinite.allocations import Allocations
from tests.infinite.sampling.networks import MaxPooled, PostActivationResidual, Recurrent
from tests.infinite.sampling.test_memory_budget import (
    MEBIBYTE,
    MaxPools,
    Transformer,
    images,
    sampled,
    tokens,
)
from torch import Tensor, nn

from tangency.errors import InvalidInput
from tangency.infinite import Init
from tangency.infinite.sampling import draws, scratch
from tangency.infinite.sampling.factors import Factor
from tangency.infinite.sampling.plan import SamplingPlan
from tangency.infinite.sampling.scratch import Scratch

DiskUsage = namedtuple("DiskUsage", "total used free")


def covariance(n: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(n, rank, generator=generator, dtype=torch.float64)
    half[n // 2] = half[n // 3]
    return half @ half.T


@pytest.mark.parametrize("rank", [700, 100])
def test_a_factor_in_a_file_is_that_in_memory(rank: int, tmp_path: Path) -> None:
    """Rows are factorised some at a time, here six."""
    matrix = covariance(600, rank)
    sd = matrix.diagonal().sqrt()
    files = Scratch(tmp_path, least=1, pages=24 * 8 * 600)
    copy = files.empty(600, 600, like=matrix).copy_(matrix)
    found, there = Factor(copy, sd, files), Factor(matrix.clone(), sd)
    assert files.holds(found.matrix)
    assert torch.equal(found.kept, there.kept)
    assert len(found.kept) == min(rank, 599)
    torch.testing.assert_close(found.matrix, there.matrix, rtol=1e-9, atol=1e-9)
    white = torch.randn(len(there.kept), 3, dtype=torch.float64)
    torch.testing.assert_close(found.times(white), there.times(white))
    torch.testing.assert_close(found.matrix @ found.matrix.T, matrix, rtol=1e-9, atol=1e-8)


NETWORKS = {
    "transformer": (lambda: Transformer(mean=True), tokens(5, 4)),
    "transformer, first token": (lambda: Transformer(mean=False), tokens(5, 4)),
    "max pooling": (lambda: MaxPooled(8, 1), images(4, 4)),
    "max pooling, deep": (lambda: MaxPools(3), images(4, 5)),
    "residual": (lambda: PostActivationResidual(8, 1), tokens(9, 1)[:, 0]),
    "recurrent": (lambda: Recurrent(8, 1, nn.LSTM), tokens(4, 3)),
}


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_by_way_of_files_are_those_in_memory(
    name: str, factored: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every tensor that may lie in a file does, tiles are small, and pages are given back often."""
    if factored:
        monkeypatch.setattr(draws, "FACTORED", 2)
    make, x = NETWORKS[name]
    kernel = sampled(make(), x, samples=64, scratch=tmp_path)
    whole = kernel.estimate(x)
    files = Scratch(tmp_path, least=1, pages=1 << 16)
    rehearsed = kernel._rehearsed

    def with_files(plan: SamplingPlan, *arguments: object) -> SamplingPlan:
        monkeypatch.setattr(SamplingPlan, "passes", lambda plan, positions: True)
        small = SamplingPlan(MEBIBYTE // 4, plan.examples, plan.samples, files)
        monkeypatch.setattr(small.__class__, "refuse", lambda *_: None)
        return rehearsed(small, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel, "_rehearsed", with_files)
    with Allocations() as allocations:
        found = kernel.estimate(x)
    assert allocations.in_files > 0
    for part, full in zip(found, whole, strict=True):
        torch.testing.assert_close(part, full, rtol=1e-5, atol=1e-9)
    assert not list(tmp_path.iterdir())


LARGE = {
    "transformer": (lambda: Transformer(mean=True), tokens(20, 8), 6),
    "max pooling": (lambda: MaxPools(3), images(12, 8), 8),
}


@pytest.mark.parametrize("name", LARGE)
def test_memory_is_kept_to_with_files(name: str) -> None:
    make, x, mebibytes = LARGE[name]
    memory = mebibytes * MEBIBYTE
    kernel = sampled(make(), x[:2], samples=64, memory=memory)
    plan = kernel._sampling_plan(x, len(x), 8, kernel._evaluation.of_samples)
    assert plan.needed.files > memory
    with Allocations() as allocations:
        found = kernel.pair(x)
    assert allocations.peak < memory
    assert allocations.in_files > memory
    for matrix in found:
        assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-9 * float(matrix.diagonal().mean())


def test_small_tensors_share_files(tmp_path: Path) -> None:
    """As many as there may not be open files."""
    files = Scratch(tmp_path, least=8, pages=1 << 16)
    number = torch.zeros((), dtype=torch.float64)
    tensors = [files.empty(3, 7, like=number).fill_(k) for k in range(5000)]
    assert len(files._files) < 20
    assert all(files.holds(t) and bool((t == k).all()) for k, t in enumerate(tensors))
    assert not files.holds(torch.empty(4096))
    tensors.clear()
    files.empty(1 << 20, like=number)
    assert len(files._files) == 2  # and the one that further small ones share


def test_refused_before_the_work_where_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda _: DiskUsage(0, 0, 64 * MEBIBYTE))
    x, memory = images(40, 12), 24 * MEBIBYTE
    kernel = sampled(MaxPooled(8, 1), x[:2], samples=128, memory=memory)
    with Allocations() as allocations, pytest.raises(InvalidInput, match="free in scratch") as no:
        kernel.pair(x)
    assert allocations.peak < memory // 4
    found = re.search(r"kernel of (\d+) examples", str(no.value))
    assert found is not None
    fitting = int(found[1])
    assert 1 < fitting < 40
    with Allocations() as allocations:
        kernel.pair(x[:fitting])
    assert allocations.peak < memory
    with pytest.raises(InvalidInput, match=f"kernel of {fitting} examples"):
        kernel.pair(x[: fitting + 1])


@pytest.mark.parametrize("of", ["data", "scales"])
def test_nothing_goes_to_files_under_automatic_differentiation(of: str) -> None:
    x, memory = images(12, 12), 24 * MEBIBYTE
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=of == "scales")
    kernel = sampled(MaxPooled(8, 1), x[:2], samples=128, memory=memory, init=Init(scale))
    x.requires_grad_(of == "data")
    with pytest.raises(InvalidInput, match="memory=") as caught:
        kernel.pair(x)
    assert "scratch" not in str(caught.value)


def test_the_folder_must_exist(tmp_path: Path) -> None:
    x = tokens(2, 3)
    with pytest.raises(InvalidInput, match="is not a folder"):
        sampled(Transformer(mean=True), x, scratch=tmp_path / "none")
