"""The public kernel: forms, numerics near coincidence, tiles, compiled code, bad input."""

from __future__ import annotations

import functools
import math
import shutil
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.infinite.architectures import ARCHITECTURES, FEATURES, TIME
from torch import Tensor, nn

from tangency.errors import InvalidInput, UnsupportedOperation
from tangency.infinite import AccuracyWarning, InfiniteKernel, Init, planning
from tangency.infinite.evaluation import CompiledBlock
from tangency.infinite.fused import Fusion

HE = Init(weight=2.0, bias=0.09)


def real(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mlp(features: int = 6, depth: int = 2, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(features if i == 0 else 32, 32), activation()]
    return nn.Sequential(*layers, nn.Linear(32, 1))


@functools.cache
def kernel_of(name: str, **options: object) -> InfiniteKernel:
    model = ARCHITECTURES[name](16, 1).double()
    return InfiniteKernel(model, real(2, TIME, FEATURES), init=HE, **options)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_forms_agree(name: str) -> None:
    """Gram matrix, rectangle and diagonal are parts of one kernel, symmetric and PSD."""
    kernel, x = kernel_of(name), real(7, TIME, FEATURES, seed=1)
    whole = kernel.pair(x)
    part = kernel.pair(x[:3], x[3:])
    diagonal = kernel.diagonal(x)
    for matrix, block, entries in zip(whole, part, diagonal, strict=True):
        assert torch.equal(matrix, matrix.T)
        torch.testing.assert_close(matrix[:3, 3:], block, rtol=1e-9, atol=1e-12)
        assert torch.equal(matrix.diagonal(), entries)
        assert torch.linalg.eigvalsh(matrix)[0] > -1e-10 * matrix.diagonal().mean()
    assert torch.linalg.eigvalsh(whole.ntk - whole.nngp)[0] > -1e-10 * whole.ntk.diagonal().mean()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_off_diagonal_recursion_meets_the_diagonal(name: str) -> None:
    """K(x, x) computed as a pair of two inputs equals the diagonal's own recursion."""
    kernel, x = kernel_of(name), real(3, TIME, FEATURES, seed=2)
    pair, diagonal = kernel.pair(x, x.clone()), kernel.diagonal(x)
    # Sums of dependent terms form their angle by subtraction and lose half the digits of it.
    tolerance = 1e-8 if name == "residual recurrent" else 1e-11
    for matrix, entries in zip(pair, diagonal, strict=True):
        torch.testing.assert_close(matrix.diagonal(), entries, rtol=tolerance, atol=0)


@pytest.mark.parametrize("name", ["relu", "recurrent, mean", "tokens rolled", "chunked"])
def test_tiles_make_no_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x = kernel_of(name), real(9, TIME, FEATURES, seed=3)
    whole, rectangle = kernel.pair(x), kernel.pair(x[:4], x)
    monkeypatch.setattr(planning, "CACHED_PAIRS", (4 * TIME) ** 2)
    for a, b in zip((*whole, *rectangle), (*kernel.pair(x), *kernel.pair(x[:4], x)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["relu", "tokens rolled", "layer norm"])
def test_examples_at_a_time_make_no_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x = kernel_of(name), real(9, TIME, FEATURES, seed=3)
    whole = (*kernel.pair(x), *kernel.pair(x[:4], x))
    monkeypatch.setattr("tangency.infinite.kernel.examples_per_side", lambda *_: 4)
    for a, b in zip(whole, (*kernel.pair(x), *kernel.pair(x[:4], x)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("name", ["relu", "pre-activation residual"])
def test_compiled_code_agrees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `torch.compile`, as on a GPU; `fused/` tests the generated code."""
    monkeypatch.setattr(Fusion, "kernel", lambda *sides: None)
    x = real(120, TIME, FEATURES, seed=4)
    compiled, eager = kernel_of(name, compile=True), kernel_of(name, compile=False)
    for inputs in ((x,), (x[:70], x), (x[:100], x[20:])):
        for a, b in zip(compiled.pair(*inputs), eager.pair(*inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert compiled._evaluation._compiled is not None


def test_failing_compilation_is_said_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(CompiledBlock, "__init__", fail)
    x = real(70, TIME, FEATURES)
    kernel = kernel_of.__wrapped__("recurrent, mean", compile=True)  # numerical duals: no C
    with pytest.warns(UserWarning, match="no compiler"):
        matrix = kernel.ntk(x)
    assert torch.equal(matrix, kernel_of("recurrent, mean", compile=False).ntk(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel.ntk(x)


def angle_recursion(theta: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """NNGP and NTK of a bias-free ReLU network (w2 = 2, NTK parametrisation) for unit variances.

    Cho and Saul (2009); in float64 from the angle, so that it is a truth for near-duplicates.
    """
    ntk = torch.cos(theta)
    for _ in range(depth):
        cosine = (torch.sin(theta) + (math.pi - theta) * torch.cos(theta)) / math.pi
        ntk = cosine + ntk * (math.pi - theta) / math.pi
        small = theta < 1e-2
        gap = (
            2 * torch.sin(theta / 2) ** 2
            - torch.where(
                small, theta**3 / 3 - theta**5 / 30, torch.sin(theta) - theta * torch.cos(theta)
            )
            / math.pi
        )
        theta = 2 * torch.asin((gap / 2).sqrt())
    return torch.cos(theta), ntk


@pytest.mark.parametrize("angle", [1e-5, 1e-4, 1e-3, 1e-2, 0.3, 2.0])
def test_near_duplicates_lose_nothing_in_float32(angle: float) -> None:
    """Depth 20: what separates K(x, x) from K(x, x') survives, as far as float32 can show it."""
    depth, d = 20, 64
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(d if i == 0 else 8, 8, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(8, 1, bias=False))
    kernel = InfiniteKernel(
        model, torch.zeros(1, d), init=Init.he(), parametrization="ntk", dtype=torch.float32
    )
    basis = torch.linalg.qr(real(d, 2)).Q * math.sqrt(d)
    exact = basis[:, 0] * math.cos(angle) + basis[:, 1] * math.sin(angle)
    x = torch.stack([basis[:, 0], exact]).float()
    # The angle that the rounded inputs really have:
    unit = F.normalize(x.double(), dim=1)
    theta = 2 * torch.asin((unit[0] - unit[1]).norm() / 2)
    norms = x.double().square().mean(1).sqrt().prod()
    ntk = kernel.ntk(x).double()
    _, truth = angle_recursion(theta, depth)
    assert abs(ntk[0, 1] / 2 - truth * norms) < 4e-6 * truth * norms


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh, nn.ELU])
def test_float32_keeps_what_float64_has(activation: type[nn.Module]) -> None:
    base = real(12, 6)
    x = torch.cat(
        [base, base * (1 + 1e-6), base + 1e-5 * real(12, 6, seed=5), base[:2] * 3]
    ).float()
    kernel = InfiniteKernel(mlp(depth=3, activation=activation), x[:1], init=HE)
    single, double = kernel.pair(x), kernel.pair(x.double())
    for a, b in zip(single, double, strict=True):
        scale = torch.outer(b.diagonal(), b.diagonal()).sqrt()
        assert float(((a.double() - b) / scale).abs().max()) < 5e-6
        assert torch.linalg.eigvalsh(a.double())[0] > -1e-6 * a.diagonal().double().mean()


@pytest.mark.parametrize("bias", [0.0, 0.1])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh, nn.ELU])
def test_zero_inputs_give_no_nan(activation: type[nn.Module], bias: float) -> None:
    kernel = InfiniteKernel(mlp(activation=activation), real(1, 6), init=Init(2.0, bias))
    pair = kernel.pair(torch.cat([torch.zeros(2, 6), real(2, 6)]).double())
    for matrix in pair:
        assert bool(torch.isfinite(matrix).all())
    if bias == 0:
        assert float(pair.nngp[:2].abs().max()) < 1e-12  # f(0) = 0; biases still count in the NTK


@pytest.mark.parametrize("name", ["Hardsigmoid", "Hardswish", "SELU", "Mish", "Softsign", "ReLU6"])
def test_activations_by_series(name: str) -> None:
    """One hidden layer against a midpoint rule over the two Gaussian weights."""
    activation = getattr(nn, name)()
    model = nn.Sequential(nn.Linear(2, 8, bias=False), activation, nn.Linear(8, 1, bias=False))
    x = torch.tensor([[1.0, 0.0], [0.8, 1.2]], dtype=torch.float64)
    nodes = (torch.arange(3000, dtype=torch.float64) + 0.5) * 0.006 - 9
    weights = torch.exp(-nodes.square() / 2)
    weights = weights / weights.sum()
    first, second = nodes[:, None], nodes[None, :]
    u = x[0, 0] * first + 0 * second
    v = x[1, 0] * first + x[1, 1] * second
    expected = (weights[:, None] * weights * activation(u) * activation(v)).sum()
    found = InfiniteKernel(model, x, init=Init(2.0, overrides={"2.weight": 1.0})).nngp(x)[0, 1]
    assert abs(float(found - expected)) < 2e-6


@pytest.mark.parametrize("norm", [1e-8, 1e8])
def test_extreme_norms(norm: float) -> None:
    """A bias-free ReLU network is homogeneous of degree one."""
    layers = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False))
    kernel = InfiniteKernel(layers, real(1, 6), init=Init.he(), dtype=torch.float32)
    x = real(5, 6).float()
    scaled = kernel.ntk(torch.cat([x, x * norm]))
    expected = kernel.ntk(x)
    torch.testing.assert_close(scaled[:5, 5:] / norm, expected, rtol=1e-5, atol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 6), name=st.sampled_from(sorted(ARCHITECTURES)))
def test_permuting_examples_permutes_the_kernel(seed: int, n: int, name: str) -> None:
    kernel, x = kernel_of(name), real(n, TIME, FEATURES, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        kernel.ntk(x[order]), kernel.ntk(x)[order][:, order], rtol=1e-9, atol=1e-12
    )


class Grid(nn.Module):
    """Outputs that keep two position axes, of which neither commutes with the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))


def test_symmetric_gram_with_two_position_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x = InfiniteKernel(Grid(), real(2, 2, 3, 6), init=HE), real(5, 2, 3, 6, seed=7)
    rectangle = kernel.pair(x, x.clone())
    assert rectangle.ntk.shape == (5, 5, 2, 3, 2, 3)
    flat = InfiniteKernel(Grid(), real(2, 6), init=HE).ntk(x.flatten(0, 2))
    expected = flat.view(5, 2, 3, 5, 2, 3).permute(0, 3, 1, 2, 4, 5)
    for size in (512, 12):  # one tile, and many
        monkeypatch.setattr(planning, "CACHED_PAIRS", size**2)
        symmetric = kernel.pair(x)
        torch.testing.assert_close(symmetric.ntk, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(symmetric.nngp, rectangle.nngp, rtol=1e-10, atol=1e-12)


def test_orthogonal_maps_of_the_input_change_nothing() -> None:
    kernel = InfiniteKernel(mlp(activation=nn.SiLU), real(1, 6), init=HE)
    x, rotation = real(5, 6), torch.linalg.qr(real(6, 6, seed=9)).Q
    torch.testing.assert_close(kernel.ntk(x @ rotation), kernel.ntk(x), rtol=1e-10, atol=1e-12)


def test_dtype_follows_the_data_or_the_argument() -> None:
    kernel = InfiniteKernel(mlp(), real(1, 6), init=HE)
    assert kernel.ntk(real(2, 6).float()).dtype == torch.float32
    assert kernel.ntk(real(2, 6)).dtype == torch.float64
    wide = InfiniteKernel(mlp(), real(1, 6), init=HE, dtype=torch.float64)
    assert wide.diagonal(real(2, 6).float()).ntk.dtype == torch.float64


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 16), nn.Linear(4, 16), nn.Linear(16, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.out(F.relu(self.a(left) + self.b(right)))


def test_inputs_may_be_tuples_and_dictionaries_in_any_order() -> None:
    model = TwoInputs()
    left, right = real(5, 3), real(5, 4)
    by_tuple = InfiniteKernel(model, (left, right), init=HE).ntk((left, right))
    named = InfiniteKernel(model, {"left": left, "right": right}, init=HE)
    assert torch.equal(by_tuple, named.ntk({"left": left, "right": right}))
    assert torch.equal(by_tuple, named.ntk({"right": right, "left": left}))


def test_the_module_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    InfiniteKernel(model, real(2, 6).float()).ntk(real(3, 6).float())
    assert model.training
    assert model[1].training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_measured_scales_are_the_modules_own() -> None:
    model = mlp(depth=1).double()
    weights = {name: p for name, p in model.named_parameters() if p.dim() == 2}
    init = Init(
        weight=0.0,
        overrides={name: float(p.square().mean()) * p.shape[1] for name, p in weights.items()}
        | {n: float(p.square().mean()) for n, p in model.named_parameters() if p.dim() == 1},
    )
    x = real(4, 6)
    own, given_ = InfiniteKernel(model, x), InfiniteKernel(model, x, init=init)
    torch.testing.assert_close(own.ntk(x), given_.ntk(x), rtol=1e-12, atol=0)


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.inner(x), dim=-1)


class PostActivation(nn.Module):
    """The second sum is a function of three Gaussians."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)
        self.c, self.last = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        hidden = F.relu(hidden + self.b(hidden))
        return self.last(F.relu(hidden + self.c(hidden)))


class TokenMixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.mix = nn.Linear(6, 8), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.tokens(x).transpose(1, 2))


class PermutedCopies(nn.Module):
    """A value and a copy of it whose coordinates are permuted, by two routes."""

    def __init__(self, route: str) -> None:
        super().__init__()
        self.layer, self.route = nn.Linear(6, 10), route

    def forward(self, x: Tensor) -> Tensor:
        if self.route == "slices":
            hidden = self.layer(x)
            first, second = hidden[:, :9], hidden[:, :9]
        else:
            first, second = self.layer(x)[:, :9], self.layer(2 * x)[:, :9]
        return first.view(-1, 3, 3) + second.view(-1, 3, 3).mT


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (PermutedCopies("slices"), (6,), "aligns two axes"),
        (PermutedCopies("two calls"), (6,), "aligns two axes"),
        (Softmax(), (6,), "softmax"),
        (PostActivation(), (6,), "not a function of one Gaussian"),
        (TokenMixing(), (3, 6), "not deterministic"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(
    model: nn.Module, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UnsupportedOperation, match=message) as caught:
        InfiniteKernel(model, real(2, *shape).float())
    assert "test_kernel.py" in str(caught.value) or "module 'mix'" in str(caught.value)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((3, 6), math.nan), "NaN or infinite"),
        (torch.full((3, 6), math.inf), "NaN or infinite"),
        (torch.zeros(3, 5), "shape"),
        (torch.zeros(3, 6, dtype=torch.long), "dtype"),
        (torch.zeros(0, 6), "empty"),
        ([[1.0] * 6], "torch.Tensor"),
        ((torch.zeros(3, 6), torch.zeros(3, 6)), "structured"),
    ],
)
def test_bad_data_is_refused(x: object, message: str) -> None:
    kernel = InfiniteKernel(mlp(), real(1, 6), init=HE)
    with pytest.raises(InvalidInput, match=message):
        kernel.ntk(x)


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x - x.mean(0)) / x.std(0))


def test_mixing_examples_is_refused() -> None:
    kernel = InfiniteKernel(Standardised(), real(3, 6).float())
    with pytest.raises(UnsupportedOperation, match="mixes the examples"):
        kernel.ntk(real(5, 6).float())


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InvalidInput, match="parametrization"):
        InfiniteKernel(mlp(), real(1, 6), parametrization="mup")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="init"):
        InfiniteKernel(mlp(), real(1, 6), init="he")
    with pytest.raises(InvalidInput, match="floating"):
        InfiniteKernel(mlp(), real(1, 6), dtype=torch.int64)


def test_large_variances_draw_a_warning_with_the_accuracy() -> None:
    kernel = InfiniteKernel(mlp(activation=nn.Tanh), real(1, 6), init=Init(2000.0, 0.0))
    with pytest.warns(AccuracyWarning, match="tanh"):
        kernel.ntk(real(3, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InfiniteKernel(mlp(activation=nn.Tanh), real(1, 6), init=HE).ntk(real(3, 6))
