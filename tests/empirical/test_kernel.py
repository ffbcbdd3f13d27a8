"""`EmpiricalKernel`: random state, tiles, dtypes, and refusals."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from empirical.cases import (
    Lambda,
    case_of,
    encoder,
    kernel_of,
    linear,
    mlp,
    real,
    reference,
)
from tangency.empirical import EmpiricalKernel
from tangency.errors import InvalidInput
from tangency.kernel_pair import KernelPair


def close(value: Tensor, expected: Tensor, rtol: float = 1e-10) -> bool:
    return float((value - expected).abs().max()) <= rtol * float(expected.abs().max())


def test_random_state_survives_a_random_module() -> None:
    model = Lambda(lambda m, x: m.a(x) + torch.rand(x.shape[0], 2), a=linear(4, 2))
    state = torch.get_rng_state()
    with pytest.raises(InvalidInput, match="random"):
        EmpiricalKernel(model).ntk(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("linear over tokens", "full"),
        ("linear over tokens", "diagonal"),
        ("conv1d", "trace"),
        ("branch on data", "full"),
    ],
)
def test_tiles_change_nothing(name: str, output: str) -> None:
    x1, x2 = case_of(name).data(7), case_of(name).data(4)
    empirical = kernel_of(name, output=output)
    symmetric, rectangular = empirical.pair(x1), empirical.pair(x1, x2)
    diagonal = empirical.diagonal(x1)
    empirical = kernel_of(name, output=output, memory=1)
    for whole, tiled in [
        (symmetric, empirical.pair(x1)),
        (rectangular, empirical.pair(x1, x2)),
        (diagonal, empirical.diagonal(x1)),
    ]:
        assert isinstance(tiled, KernelPair)
        assert close(tiled.nngp, whole.nngp, 1e-12)
        assert close(tiled.ntk, whole.ntk, 1e-12)


@pytest.mark.parametrize("memory", [1, 2**31])
def test_gram_matrix_is_exactly_symmetric(memory: int) -> None:
    model, x = mlp(), torch.randn(11, 4)
    full = EmpiricalKernel(model, output="full", memory=memory).pair(x)
    trace = EmpiricalKernel(model, memory=memory).pair(x)
    for k in full:
        assert torch.equal(k, k.permute(1, 0, 3, 2))
    for k in trace:
        assert torch.equal(k, k.T)
    assert close(EmpiricalKernel(model).diagonal(x).ntk, trace.ntk.diagonal(), 1e-5)


@pytest.mark.parametrize("n1", [1, 3])
@pytest.mark.parametrize("n2", [1, 2])
def test_single_examples(n1: int, n2: int) -> None:
    name = "linear over tokens, tokens first"
    x1, x2 = case_of(name).data(n1), case_of(name).data(n2)
    empirical = kernel_of(name, output="full")
    assert close(empirical.ntk(x1, x2), reference(empirical.model, x1, x2)[1])


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ("0.*", ["0.weight", "0.bias"]),
        (["*.bias", "4.*"], ["0.bias", "2.bias", "4.weight", "4.bias"]),
    ],
)
def test_parameters_by_pattern(patterns: str | list[str], kept: list[str]) -> None:
    model, x = case_of("mlp").model(), real(4)(3)
    ntk = EmpiricalKernel(model, output="full", parameters=patterns).ntk(x)
    for name, p in model.named_parameters():
        p.requires_grad_(name in kept)
    assert close(ntk, reference(model, x, x)[1])


def test_patterns_match_any_name_of_a_tied_parameter() -> None:
    x = case_of("tied embedding").data(3)
    by_first = kernel_of("tied embedding", parameters="embedding.*").ntk(x)
    by_second = kernel_of("tied embedding", parameters="head.*").ntk(x)
    assert torch.equal(by_first, by_second)


def test_parameters_are_those_of_the_moment() -> None:
    model, x = case_of("mlp").model(), real(4)(3)
    empirical = EmpiricalKernel(model, output="full")
    before = empirical.ntk(x)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    after = empirical.ntk(x)
    assert not close(after, before, 0.1)
    assert close(after, reference(model, x, x)[1])


def test_plain_attributes_are_those_of_the_moment() -> None:
    model, x = Lambda(lambda m, x: m.scale * m.a(x).tanh(), a=linear(4, 3), scale=1.0), real(4)(3)
    model = model.double()
    empirical = EmpiricalKernel(model, output="full")
    before = empirical.ntk(x)
    model.scale = 3.0
    assert close(empirical.ntk(x), 9 * before)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_under_disabled_autograd(context: Callable[[], object]) -> None:
    expected = kernel_of("mlp").ntk(real(4)(3))
    model = case_of("mlp").model()
    with context():
        value = EmpiricalKernel(model).ntk(real(4)(3))
    assert close(value, expected)
    assert not value.requires_grad


def test_module_made_under_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    with pytest.raises(InvalidInput, match="inference"):
        EmpiricalKernel(model).ntk(torch.randn(3, 4))


def test_dtypes() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4)), torch.randn(6, 16)
    exact = EmpiricalKernel(copy.deepcopy(model).double()).ntk(x.double())
    single = EmpiricalKernel(model).ntk(x)
    half = EmpiricalKernel(copy.deepcopy(model).bfloat16()).ntk(x.bfloat16())
    assert (single.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert close(single.double(), exact, 1e-5)
    assert close(half.double(), exact, 3e-2)


def two_outputs(m: Lambda, x: Tensor) -> tuple[Tensor, Tensor]:
    return m.a(x), m.a(x)


def drop() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Dropout(0.1)), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), r"'1' \(BatchNorm1d\).*model\.eval"),
        (nn.BatchNorm1d(4, track_running_stats=False).eval(), "no running statistics"),
        (drop(), r"'1\.0' \(Dropout\).*model\.eval"),
        (encoder(norm_first=False), r"Dropout|MultiheadAttention"),
        (nn.Sequential(nn.Linear(4, 3), nn.RReLU()), r"RReLU.*model\.eval"),
        (Lambda(two_outputs, a=linear(4, 2)), "returns a tuple"),
        (Lambda(lambda m, x: m.a(x).argmax(-1), a=linear(4, 2)), "int64"),
        (Lambda(lambda m, x: m.a(x).mean(), a=linear(4, 2)), "one row per example"),
        (Lambda(lambda m, x: m.a(x - x.mean(0)), a=linear(4, 2)), "couples the examples"),
        (Lambda(lambda m, x: m.a(x) / 0, a=linear(4, 2)), "NaN or infinite"),
        (
            Lambda(lambda m, x: m.a(x).exp().add_(1), a=linear(4, 2)),
            "cannot differentiate.*inplace",
        ),
        (nn.Linear(5, 2), r"does not run.*\(4,\) torch\.float32"),
        (nn.Linear(4, 2).double(), r"does not run.*torch\.float64"),
        (nn.Linear(4, 2).requires_grad_(False), "frozen"),
    ],
)
def test_refused_modules(model: nn.Module, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        EmpiricalKernel(model).ntk(torch.randn(3, 4))


@pytest.mark.parametrize(
    ("x1", "x2", "message"),
    [
        (torch.empty(0, 4), None, "x1 is empty"),
        (torch.full((3, 4), torch.nan), None, "x1 holds NaN"),
        (torch.randn(3, 4), torch.full((3, 4), torch.inf), "x2 holds NaN"),
        (torch.randn(3, 4), torch.randn(3, 5), "x2 has examples of shape"),
        (torch.randn(3, 4), torch.randn(3, 4).double(), r"x2 is torch\.float64.*x\.to\(x1\)"),
        (torch.randn(3, 4).to_sparse(), None, "x1 holds a sparse_coo tensor"),
        (torch.ones(3, 4, dtype=torch.long), None, "does not run"),
        ([[1.0, 2.0]], None, "no torch.Tensor"),
        ((torch.randn(3, 4), torch.randn(2, 4)), None, "differ in their leading size"),
    ],
)
def test_refused_data(x1: object, x2: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        EmpiricalKernel(nn.Linear(4, 2)).ntk(x1, x2)


def test_order_of_keyword_arguments() -> None:
    model = Lambda(lambda m, x, z: m.a(x.tanh() - z), a=linear(4, 2)).double()
    x, z = real(4)(3), real(4)(5)[:3]
    kernel = EmpiricalKernel(model)
    expected = kernel.ntk({"x": x, "z": z})
    assert close(kernel.ntk({"x": x, "z": z}, {"z": z, "x": x}), expected, 1e-12)
    assert close(kernel.ntk({"z": z, "x": x}, {"x": x, "z": z}), expected, 1e-12)


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, partial(torch.compile, backend="eager")],
    ids=["DataParallel", "torch.compile"],
)
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, x = case_of("mlp").model(), real(4)(3)
    wrapped = EmpiricalKernel(wrap(model), parameters="0.*")
    assert close(wrapped.ntk(x), EmpiricalKernel(model, parameters="0.*").ntk(x), 1e-12)
    assert list(wrapped.by_parameter(x)) == ["0.weight", "0.bias"]
    assert close(wrapped.conjugate(x), EmpiricalKernel(model).conjugate(x), 1e-12)


def test_refused_arguments() -> None:
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    for output in ("sum", 1.5, True, None):
        with pytest.raises(InvalidInput, match="output="):
            EmpiricalKernel(model, output=output)
    for index in (2, -3):
        with pytest.raises(InvalidInput, match="has 2 outputs"):
            EmpiricalKernel(model, output=index).ntk(x)
    with pytest.raises(InvalidInput, match=re.escape("available: weight, bias")):
        EmpiricalKernel(model, parameters=["weight", "layer.*"])
    with pytest.raises(InvalidInput, match="empty list"):
        EmpiricalKernel(model, parameters=[])
    with pytest.raises(InvalidInput, match=r"torch\.nn\.Module"):
        EmpiricalKernel(lambda x: x)
    with pytest.raises(InvalidInput, match=r"'0' is a TorchScript module"):
        EmpiricalKernel(nn.Sequential(torch.jit.trace(model, x)))
    for memory in (0, "4 GiB", True, math.nan):
        with pytest.raises(InvalidInput, match="memory="):
            EmpiricalKernel(model, memory=memory)
    with pytest.raises(AttributeError):
        EmpiricalKernel(model).parameters = "weight"
    with pytest.raises(InvalidInput, match="lazy"):
        EmpiricalKernel(nn.LazyLinear(3))
