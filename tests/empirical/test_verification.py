"""`verify` says yes to right kernels and no to each way of being wrong; random modules by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.random_state import numpy_state
from torch import Tensor, nn

from empirical.cases import Lambda, case_of, kernel_of, linear, mlp, real
from tangency import examples
from tangency.empirical import EmpiricalKernel
from tangency.empirical.function import evaluate
from tangency.empirical.verification import Check, Verification, verify
from tangency.errors import InvalidInput

NAMES = (
    "plain autograd",
    "the same examples in other batches",
    "computed twice, bit by bit",
    "symmetry",
    "negative eigenvalues",
)


@pytest.mark.parametrize("output", ["trace", "full", "diagonal", 1])
@pytest.mark.parametrize("name", ["conv2d", "tied embedding", "branch on data", "frozen layers"])
def test_right_kernels_pass(name: str, output: Any) -> None:
    report = kernel_of(name, output=output).verify(case_of(name).data(9), entries=12)
    assert report.ok, report
    assert report.entries == 12
    assert report.examples == 6
    assert tuple(check.name for check in report.checks) == NAMES


def test_losses_and_chosen_outputs_and_parameters() -> None:
    model, x = case_of("mlp").model(), real(4)(6)
    y = torch.arange(6) % 3
    assert EmpiricalKernel(model, output=F.cross_entropy).verify((x, y)).ok
    assert EmpiricalKernel(model, output=lambda out: out[:, :2], parameters="*.bias").verify(x).ok


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_other_dtypes(dtype: torch.dtype, allowed: float) -> None:
    torch.manual_seed(0)
    model, x = mlp().to(dtype), torch.randn(6, 4).to(dtype)
    report = EmpiricalKernel(model).verify(x)
    assert report.ok
    assert report.checks[0].allowed == allowed
    assert report.checks[0].deviation > 0


@pytest.mark.parametrize(("n", "entries", "expected"), [(1, 32, 1), (2, 100, 4), (40, 1, 1)])
def test_few_examples(n: int, entries: int, expected: int) -> None:
    report = EmpiricalKernel(case_of("mlp").model()).verify(real(4)(n), entries=entries)
    assert report.ok
    assert report.entries == expected


def test_equal_seeds_draw_equal_entries() -> None:
    kernel, x = kernel_of("mlp", output="full"), real(4)(30)
    reports = [kernel.verify(x, seed=seed) for seed in (0, 0, 1)]
    assert reports[0] == reports[1] != reports[2]


Kernel = Callable[[Any, Any], Tensor]


def scaled(true: Kernel) -> Kernel:
    return lambda x1, x2: true(x1, x2) * (1 + 1e-6)


def one_entry_is_wrong(true: Kernel) -> Kernel:
    def kernel(x1: Tensor, x2: Tensor) -> Tensor:
        value = true(x1, x2)
        near = (x1[:, None] * x2).sum(-1)
        return torch.where(near == near.max(), value * (1 + 1e-4), value)

    return kernel


def of_the_batch(true: Kernel) -> Kernel:
    return lambda x1, x2: true(x1, x2) * (1 + 1e-6 * (len(x1) == 1))


def of_the_place(true: Kernel) -> Kernel:
    def kernel(x1: Tensor, x2: Tensor) -> Tensor:
        place = 1 + 1e-6 * torch.arange(len(x2), dtype=x2.dtype)
        return true(x1, x2) * place.view(-1, *[1] * (true(x1, x2).dim() - 2))

    return kernel


def drifting(true: Kernel) -> Kernel:
    calls = iter(range(1000))
    return lambda x1, x2: true(x1, x2) * (1 + 1e-14 * next(calls))


def lopsided(true: Kernel) -> Kernel:
    def kernel(x1: Tensor, x2: Tensor) -> Tensor:
        first, second = x1[:, 0], x2[:, 0]
        larger = (first[:, None] > second).to(x1.dtype)
        return true(x1, x2) + 1e-6 * larger.view(*larger.shape, *[1] * (true(x1, x2).dim() - 2))

    return kernel


def negative(true: Kernel) -> Kernel:
    return lambda x1, x2: -true(x1, x2)


@pytest.mark.parametrize("output", ["trace", "full", "diagonal"])
@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        (scaled, {NAMES[0]}),
        (of_the_batch, {NAMES[1]}),
        (of_the_place, {NAMES[0], NAMES[1], NAMES[3]}),
        (drifting, {NAMES[2]}),
        (lopsided, {NAMES[0], NAMES[3]}),
    ],
)
def test_wrong_kernels_fail(wrong: Callable[[Kernel], Kernel], seen: set[str], output: Any) -> None:
    report = examined(wrong, output)
    assert {check.name for check in report.checks if not check.ok} == seen
    assert not report.ok


@pytest.mark.parametrize("output", ["trace", "full", "diagonal"])
def test_an_indefinite_kernel_fails(output: Any) -> None:
    """K - c 1 1^T, with c beyond its smallest eigenvalues: symmetric, and the same in any batch."""
    report = examined(lambda true: lambda a, b: true(a, b) - true(a[:1], a[:1]).mean(), output)
    assert not report.checks[-1].ok


def test_nan_is_not_allowed() -> None:
    assert not Check("", float("nan"), 1.0).ok
    report = examined(lambda true: lambda a, b: true(a, b) * torch.nan, "trace")
    assert not any(check.ok for check in report.checks)


def examined(wrong: Callable[[Kernel], Kernel], output: Any) -> Verification:
    kernel = kernel_of("mlp", output=output)
    return verify(
        wrong(kernel.ntk),
        lambda x: evaluate(kernel.model, x)[0],
        list(kernel.model.parameters()),
        real(4)(8),
        model="MLP",
        layout=output,
        entries=64,
        seed=0,
    )


def test_report() -> None:
    checks = (Check("plain autograd", 2e-16, 1e-10), Check("symmetry", 0.5, 1e-10))
    report = Verification("Net", "torch.float64", 8, 32, checks)
    assert repr(report).splitlines() == [
        "Verification of Net, torch.float64: 32 entries among 8 examples, "
        "largest relative deviations",
        "  plain autograd                               2.0e-16  (allowed 1e-10)  ok",
        "  symmetry                                     5.0e-01  (allowed 1e-10)  FAILED",
    ]
    assert not report.ok
    assert report.to_dict() == {
        "model": "Net",
        "dtype": "torch.float64",
        "examples": 8,
        "entries": 32,
        "checks": (
            {"name": "plain autograd", "deviation": 2e-16, "allowed": 1e-10},
            {"name": "symmetry", "deviation": 0.5, "allowed": 1e-10},
        ),
        "ok": False,
    }


@pytest.mark.parametrize("entries", [0, -1, 2.0, True])
def test_entries_are_counted(entries: Any) -> None:
    with pytest.raises(InvalidInput, match="entries="):
        kernel_of("mlp").verify(real(4)(3), entries=entries)


class Dropping(nn.Module):
    """Drops in any mode: F.dropout without training=self.training."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.01)


class StochasticDepth(nn.Module):
    """Skips its branch at random, by a generator of its own choice."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.branch, self.draw = nn.Linear(4, 4), draw

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and self.draw() < 0.1 else x + self.branch(x)


class Counting(nn.Module):
    """By a list, which it changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(0)
        return x / len(self.calls)


class Block(nn.Module):
    """A residual block around `inner`, which is random inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 4), inner, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.inner(self.first(x))).relu_()


def around(inner: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Block(nn.Tanh()), Block(inner), nn.Linear(4, 2))


def hooked() -> nn.Module:
    inner = nn.Linear(4, 4)
    inner.register_forward_hook(lambda module, args, output: output + torch.rand(()))
    return inner


DEPTH = r"'2\.inner' \(StochasticDepth\) makes the outputs random.*model\.eval\(\)"
RANDOM: dict[str, tuple[Callable[[], nn.Module], bool, str]] = {
    "F.dropout": (Dropping, False, r"'2\.inner' \(Dropping\) .*random.*training=self\.training"),
    "torch": (lambda: StochasticDepth(lambda: float(torch.rand(()))), True, DEPTH),
    "python": (lambda: StochasticDepth(random.random), True, DEPTH),
    "numpy": (lambda: StochasticDepth(np.random.rand), True, DEPTH),
    "counter": (Counting, False, r"'2\.inner' \(Counting\) changes with each call.*counter"),
    "hook": (hooked, False, r"'2\.inner' \(Linear\) makes the outputs random"),
    "nested": (
        lambda: nn.Sequential(nn.ReLU(), Block(Dropping())),
        False,
        r"'2\.inner\.1\.inner' \(Dropping\) makes the outputs random",
    ),
}


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("method", ["ntk", "verify", "conjugate"])
def test_random_modules_are_refused_by_name(name: str, method: str) -> None:
    make, training, message = RANDOM[name]
    torch.manual_seed(0)
    model, x = around(make()).train(training), torch.randn(4, 4)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    states = torch.get_rng_state(), random.getstate(), numpy_state()
    with pytest.raises(InvalidInput, match="^module " + message):
        getattr(EmpiricalKernel(model), method)(x)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == numpy_state()


def test_random_numbers_without_effect_are_accepted() -> None:
    """A layer may draw for a dropout that does not act in evaluation mode."""
    model = around(StochasticDepth(lambda: float(torch.rand(())))).double().eval()
    drawing = Lambda(lambda m, x: (torch.rand(()), m.inner(x))[1], inner=model)
    x = real(4)(4)
    assert torch.equal(EmpiricalKernel(drawing).ntk(x), EmpiricalKernel(model).ntk(x))


def test_what_forward_assigns_does_not_last() -> None:
    """A module that counts its calls has the kernel of the call that would come next."""

    def forward(m: Lambda, x: Tensor) -> Tensor:
        m.calls = m.calls + 1
        return m.a(x) / m.calls

    model, x = Lambda(forward, a=linear(4, 2), calls=1).double(), real(4)(5)
    first = EmpiricalKernel(model)
    assert torch.equal(first.ntk(x), first.ntk(x))
    assert torch.allclose(4 * first.ntk(x), EmpiricalKernel(model.a).ntk(x), rtol=1e-12, atol=0)
    assert model.calls == 1
    assert first.verify(x).ok


def test_coupled_examples_are_refused() -> None:
    model = Lambda(lambda m, x: m.a(x - x.mean(0)), a=linear(4, 2))
    with pytest.raises(InvalidInput, match="couples the examples"):
        EmpiricalKernel(model).verify(torch.randn(5, 4))


def test_a_state_that_hardly_changes_is_seen() -> None:
    """Below what the engine refuses as random; not the same bits."""

    def forward(m: Lambda, x: Tensor) -> Tensor:
        m.calls.append(float(x.sum()))  # no graph can be recorded of that
        return m.a(x) * (1 + 1e-13 * len(m.calls))

    model = Lambda(forward, a=linear(4, 2), calls=[]).double()
    report = EmpiricalKernel(model).verify(real(4)(5))
    assert [check.name for check in report.checks if not check.ok] == [NAMES[2]]


def test_examples_may_be_any_tree() -> None:
    name = "dictionary, not in the order of forward"
    x = case_of(name).data(7)
    assert kernel_of(name).verify(x).ok
    assert examples.count(x) == 7
