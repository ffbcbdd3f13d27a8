"""Generated code against the rules evaluated eagerly, and where it has to step aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from tests.infinite.fused.networks import NETWORKS, images
from torch import Tensor, nn

from tangency.infinite import InfiniteKernel
from tangency.infinite.evaluation import CompilationWarning
from tangency.infinite.fused import FusedKernel, NotFusable, compiler
from tangency.infinite.fused.compiler import CompilerMissing
from tangency.infinite.fused.runner import MOST_TASKS
from tangency.infinite.fused.tables import sweeps
from tangency.kernel_pair import KernelPair

try:
    compiler.find_compiler()
except CompilerMissing:
    pytest.skip("no C compiler", allow_module_level=True)


def eager(model: nn.Module, x1: Tensor, x2: Tensor | None = None) -> KernelPair:
    return InfiniteKernel(model, x1, compile=False).pair(x1, x2)


def fused(model: nn.Module, x1: Tensor, x2: Tensor | None = None) -> KernelPair:
    """By generated code for certain: anything else raises."""
    kernel = InfiniteKernel(model, x1)
    rows = kernel._side(x1)
    columns = rows if x2 is None else kernel._side(x2)
    return KernelPair(*FusedKernel(kernel._evaluation.output, rows, columns)(rows, columns))


def assert_close(found: KernelPair, expected: KernelPair, *tolerances: float) -> None:
    for kernel, other, tolerance in zip(found, expected, tolerances, strict=True):
        torch.testing.assert_close(kernel.double(), other.double(), rtol=tolerance, atol=0.0)


def network(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[int, ...]]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    return make().to(dtype), shape


@pytest.mark.parametrize("name", NETWORKS)
def test_generated_code_computes_what_the_rules_say(name: str) -> None:
    model, shape = network(name)
    x = images(5, shape)
    assert_close(fused(model, x[:2], x[2:]), eager(model, x[:2], x[2:]), 1e-12, 1e-12)
    assert_close(fused(model, x), eager(model, x), 1e-12, 1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_loses_nothing(name: str) -> None:
    model, shape = network(name)
    x = images(3, shape)
    near = x[:1] + 1e-5 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    x = torch.cat([x, near]).float()
    expected = eager(model, x.double())
    assert_close(fused(model.float(), x), expected, 1e-6, 2e-5)


@pytest.mark.parametrize("name", [
    "pooled", "strided", "pools", "one dimension", "replicated", "nearest upsampling, added",
    "identity block, pooled, then flattened",
])  # fmt: skip
def test_many_pairs_equal_single_ones(name: str) -> None:
    """Threads take pairs where there are many, and slices of a pair where there are few."""
    model, shape = network(name)
    x = images(40, shape)
    whole = fused(model, x)
    for i, j in ((0, 0), (3, 17), (39, 20)):
        single = fused(model, x[i : i + 1], x[j : j + 1])
        entry = KernelPair(*(kernel[i : i + 1, j : j + 1] for kernel in whole))
        assert_close(single, entry, 1e-13, 1e-13 if i != j else 1e-8)
    assert torch.equal(whole.ntk, whole.ntk.T)


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("name", ["pooled", "mean of all pixels", "circular", "one dimension"])
def test_an_example_with_itself_takes_half_of_the_offsets(name: str, count: int) -> None:
    model, shape = network(name)
    x = images(count, shape)
    kernel = InfiniteKernel(model, x)
    side, same = kernel._side(x), kernel._side(x)
    made = FusedKernel(kernel._evaluation.output, side, side)
    (chain,) = made.plan.chains
    last = len(chain.runs) - 1
    half, whole = (sweeps(chain, last, everywhere=True, symmetric=s) for s in (True, False))
    assert half[-1].count < 0.7 * whole[-1].count
    for found, expected in zip(made(side, side), made(side, same), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize(("name", "count", "bars"), [
    ("fully connected", 2, [1]),
    ("fully connected", 300, [15]),  # tiles of 64 examples
    ("one dimension", 2, [3, 1]),  # pairs, then the head
    ("one dimension", 300, [MOST_TASKS + 1, 15]),
])  # fmt: skip
def test_progress_moves_by_pieces(
    name: str, count: int, bars: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
        assert label == "kernel"
        ticks: list[None] = []
        yield lambda: ticks.append(None)
        assert len(ticks) == total
        found.append(total)

    monkeypatch.setattr("tangency.tiles.progress", progress)
    monkeypatch.setattr("tangency.infinite.fused.execution.TILE", 64)
    model, shape = network(name)
    fused(model, images(count, shape))
    assert found == bars


def test_permuted_examples_permute_the_kernel() -> None:
    model, shape = network("pools and mean")
    x = images(6, shape)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    found, expected = fused(model, x[order]).ntk, fused(model, x).ntk[order][:, order]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)


def test_zeros_and_extreme_norms() -> None:
    model, shape = network("pooled")
    x = images(4, shape)
    x[0] = 0
    x[1] *= 1e-8
    x[2] *= 1e8
    assert_close(fused(model, x), eager(model, x), 1e-12, 1e-8)


def test_the_kernel_uses_it_where_it_pays() -> None:
    model, shape = network("pooled")
    x = images(4, shape)
    kernel = InfiniteKernel(model, x, compile=True)
    assert_close(kernel.pair(x), eager(model, x), 1e-12, 1e-8)
    assert kernel._evaluation._fusion._kernels[torch.float64] is not None
    small = InfiniteKernel(model, x)
    small.pair(x)
    assert not small._evaluation._fusion._kernels


def test_functions_of_two_gaussians_are_dear_eagerly() -> None:
    """About fifty times as dear as others: few examples are enough for generated code to pay."""
    for name, pays in (("identity blocks that end in a ReLU", True), ("residual", False)):
        model, shape = network(name)
        x = images(15, shape)
        kernel = InfiniteKernel(model, x)
        side = kernel._side(x)
        assert kernel._evaluation._fusion._pays(side, side) == pays


def test_windows_wrap_around_the_whole_image_or_read_a_padded_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stride that does not divide it brings other offsets together."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 1),
    ).double()
    for shape in ((3, 5, 6), (3, 4, 6)):
        x = images(3, shape)
        assert_close(fused(model, x), eager(model, x), 1e-12, 1e-8)

    def padded_only(*args: object, **keywords: object) -> None:
        raise NotFusable("padded")

    monkeypatch.setattr("tangency.infinite.fused.symbolic.Tracer.padded", padded_only)
    fused(model, images(2, (3, 4, 6)))
    with pytest.raises(NotFusable, match="padded"):
        fused(model, images(2, (3, 5, 6)))


def test_slices_that_are_kept_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each thread would need too much, all work on one pair; else the kernel is eager."""
    model, shape = network("replicated")
    x = images(20, shape)
    kernel = InfiniteKernel(model, x)
    side = kernel._side(x)
    made = FusedKernel(kernel._evaluation.output, side, side)
    expected = KernelPair(*made(side, side))
    (runner,) = made._runners
    asked: list[int] = []
    monkeypatch.setattr(runner, "_by_pairs", lambda pairs, *_: asked.append(len(pairs)))
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    made(side, side)
    assert asked == [210]
    monkeypatch.setattr("tangency.infinite.fused.runner.MOST_BYTES", 2 * runner._kept - 1)
    assert_close(KernelPair(*made(side, side)), expected, 1e-13, 1e-8)
    assert asked == [210]
    monkeypatch.setattr("tangency.infinite.fused.runner.MOST_BYTES", runner._kept - 1)
    with pytest.raises(NotFusable, match="more memory"):
        fused(model, x)


def test_pools_may_not_cut_what_a_transposed_filter_put_apart() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.ConvTranspose2d(4, 4, 2, stride=2),
        nn.ReLU(),
        nn.AvgPool2d(3),
        nn.Conv2d(4, 4, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 1),
    ).double()
    with pytest.raises(NotFusable, match="cut those of a transposed"):
        fused(model, images(2, (3, 4, 4)))
    x = images(3, (3, 3, 3))
    assert_close(fused(model, x), eager(model, x), 1e-12, 1e-8)


def test_derivatives_go_the_eager_way() -> None:
    model, shape = network("pooled")
    x = images(2, shape)
    kernel = InfiniteKernel(model, x, compile=True)
    x.requires_grad_()
    kernel.ntk(x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.abs().sum() > 0)


def test_a_map_that_reads_many_positions_goes_the_eager_way() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(5, stride=1, padding=2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 1),
    ).double()
    x = images(2, (3, 4, 5))
    kernel = InfiniteKernel(model, x, compile=True)
    assert_close(kernel.pair(x), eager(model, x), 1e-13, 1e-13)
    assert kernel._evaluation._fusion._kernels == {torch.float64: None}


def test_without_a_compiler_it_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(source: str) -> None:
        raise CompilerMissing("no C compiler (cc, gcc or clang) is on the path")

    monkeypatch.setattr("tangency.infinite.fused.execution.compiled", missing)
    model, shape = network("pooled")
    x = images(2, shape)
    kernel = InfiniteKernel(model, x, compile=True)
    with pytest.warns(CompilationWarning, match="no C compiler"):
        first = kernel.pair(x)
    assert_close(kernel.pair(x), first, 0.0, 0.0)
