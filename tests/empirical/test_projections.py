"""Random features of the empirical NTK: exact where they can be, unbiased, of stated variance."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from tests.random_state import numpy_state
from torch import Tensor, nn

from empirical.cases import (
    CASES,
    Case,
    Lambda,
    case_of,
    kernel_of,
    real,
    reference,
    reference_jacobian,
)
from tangency import examples
from tangency.empirical import EmpiricalKernel
from tangency.empirical.entries import as_real
from tangency.empirical.gradients import Explicit, Factors
from tangency.empirical.random_features.hadamard import UnitVectors, block, transform
from tangency.empirical.random_features.placement import Place, Sides
from tangency.empirical.random_features.projections import Projection, random_features
from tangency.errors import InvalidInput
from tangency.examples import Examples

TOLERANCE = 1e-10


def assert_equal(value: Tensor, expected: Tensor) -> None:
    assert value.shape == expected.shape
    scale = float(expected.abs().max())
    assert float((value - expected).abs().max()) <= TOLERANCE * max(scale, 1e-3)


def power_of_two(size: int) -> int:
    return int(2 ** np.ceil(np.log2(size)))


def pairs(parameter: Tensor, outputs: int) -> int:
    """Number of features that hold the parameter's part of the kernel exactly."""
    rows = parameter.shape[0] if parameter.dim() else 1
    return (
        power_of_two(outputs) * power_of_two(rows) * power_of_two(max(1, parameter.numel() // rows))
    )


# -- exactly ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_as_many_features_as_pairs_hold_a_parameters_kernel(case: Case) -> None:
    x1, x2 = case.data(4), case.data(3)
    model = kernel_of(case.name).model
    free = {name: as_real(p) for name, p in model.named_parameters() if p.requires_grad}
    jacobians = [reference_jacobian(model, x)[1] for x in (x1, x2)]
    sizes = [p.numel() for p in free.values()]
    parts = zip(*(jacobian.split(sizes, -1) for jacobian in jacobians), strict=True)
    for (name, parameter), (j1, j2) in zip(free.items(), parts, strict=True):
        kernel = kernel_of(case.name, output="full", parameters=name)
        dim, out = pairs(parameter, 1), j1.shape[1]
        f1, f2 = (kernel.features(x, dim, seed=3) for x in (x1, x2))
        assert f1.shape == (4, out, dim)
        assert_equal(products(f1, f2), products(j1, j2))
        kernel = kernel_of(case.name, output="trace", parameters=name)
        dim = pairs(parameter, out)
        f1, f2 = (kernel.features(x, dim, seed=4) for x in (x1, x2))
        assert f1.shape == (4, dim)
        assert_equal(f1 @ f2.T, torch.einsum("ijaa->ij", products(j1, j2)) / out)


def products(left: Tensor, right: Tensor) -> Tensor:
    """Of all examples and outputs, (..., n1, n2, out, out)."""
    return torch.einsum("...iar,...jbr->...ijab", left, right)


@pytest.mark.parametrize(
    "name",
    ["recurrence as a loop", "tied embedding", "conv2d", "layer norm", "embedding bag, largest"],
)
def test_no_graph_no_pieces_and_the_same_features(name: str) -> None:
    """Gradients written out by autograd are projected as those at the sites."""
    x = case_of(name).data(4)
    for output in ("trace", "full", 0):
        kernel = kernel_of(name, output=output)
        expected = kernel.features(x, 7, seed=1)
        graphless = EmpiricalKernel(case_of(name).model(), output=output)
        graphless._subject.preparations.recording.get = lambda x: None  # type: ignore[method-assign]
        assert_equal(graphless.features(x, 7, seed=1), expected)


@pytest.mark.parametrize("output", ["trace", "full", "diagonal", 1])
def test_features_of_examples_do_not_depend_on_their_company(output: str | int) -> None:
    """Batches of any size, slices of positions, single examples: one projection."""
    for name in ("multi-head attention", "conv2d", "tied embedding"):
        x = case_of(name).data(5)
        whole = kernel_of(name, output=output).features(x, 9, seed=2)
        for memory in (1, 20_000, 200_000):
            parts = kernel_of(name, output=output, memory=memory).features(x, 9, seed=2)
            assert_equal(parts, whole)
        alone = kernel_of(name, output=output).features(examples.take(x, slice(3, 4)), 9, seed=2)
        assert_equal(alone, whole[3:4])


def test_layouts_belong_together() -> None:
    x = case_of("mlp").data(4)
    full = kernel_of("mlp", output="full").features(x, 9)
    assert torch.equal(kernel_of("mlp", output="diagonal").features(x, 9), full)
    assert_equal(kernel_of("mlp", output=-1).features(x, 9), full[:, -1])
    targets = torch.tensor([0, 1, 1, 0])
    loss = kernel_of("mlp", output=F.cross_entropy)
    model = loss.model
    outputs = model(x).detach().requires_grad_()
    (weights,) = torch.autograd.grad(F.cross_entropy(outputs, targets, reduction="sum"), outputs)
    assert_equal(
        EmpiricalKernel(model, output=F.cross_entropy).features((x, targets), 9),
        torch.einsum("iar,ia->ir", full, weights),
    )


def test_parameters_add_up_and_seeds_differ() -> None:
    x = case_of("mlp").data(4)
    model = kernel_of("mlp").model
    whole = kernel_of("mlp").features(x, 9, seed=5)
    names = [name for name, _ in model.named_parameters()]
    parts = [kernel_of("mlp", parameters=name).features(x, 9, seed=5) for name in names]
    assert_equal(sum(parts[1:], parts[0]), whole)
    assert not torch.allclose(kernel_of("mlp").features(x, 9, seed=6), whole)


def test_transform_is_that_of_a_hadamard_matrix() -> None:
    for length in (1, 2, 32, 128):
        values = torch.randn(length, 3, dtype=torch.float64)
        matrix = torch.from_numpy(hadamard(length)).double()
        torch.testing.assert_close(transform(values), matrix @ values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("places", [[0, 3, 1], [40, 41], [5, 60], [63], list(range(64))])
def test_blocks_and_unit_vectors_are_parts_of_the_whole_transform(places: list[int]) -> None:
    at = torch.tensor(places)
    signs = 1 - 2 * torch.randint(0, 2, (64,)).double()
    values = torch.randn(len(places), 2, 3, dtype=torch.float64)
    whole = torch.zeros(64, 6, dtype=torch.float64)
    whole[at] = values.flatten(1)
    expected = torch.from_numpy(hadamard(64)).double() @ (signs[:, None] * whole)
    index = torch.randint(0, 64, (100,))
    found = block(values, at, signs).at(index)
    torch.testing.assert_close(found.flatten(1), expected[index], rtol=1e-12, atol=1e-12)
    units = UnitVectors(at, signs[at]).at(index)
    each = torch.from_numpy(hadamard(64)).double()[index][:, at] * signs[at]
    assert torch.equal(units, each)


# -- in the mean ------------------------------------------------------------------------------


def shared_everywhere() -> nn.Module:
    """An embedding that is tied to the output layer, a norm, and a layer that is used twice."""
    model = Lambda(
        lambda m, x: m.out(m.norm(m.a(m.a(m.e(x)).tanh())).mean(1)),
        e=nn.Embedding(6, 5),
        a=nn.Linear(5, 5),
        norm=nn.LayerNorm(5),
        out=nn.Linear(5, 6),
    )
    model.out.weight = model.e.weight
    return model


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.GELU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.GELU(),
        nn.ConvTranspose2d(4, 3, 2),
        nn.Flatten(),
        nn.Linear(75, 3),
    )


def features_of_seeds(
    model: nn.Module, x: Examples, output: str | int, dim: int, seeds: range
) -> Tensor:
    """(seeds, n, ...)."""
    kernel = EmpiricalKernel(model, output=output)
    with kernel._subject.prepared(x, gradients=True) as prepared:
        found = [random_features(prepared, dim=dim, seed=seed, memory=2**30) for seed in seeds]
    return torch.stack(found)


@pytest.mark.parametrize("output", ["trace", "full"])
@pytest.mark.parametrize(
    ("make", "x"),
    [
        (shared_everywhere, lambda: torch.randint(0, 6, (4, 3))),
        (convolutional, lambda: real(2, 6, 6)(4)),
    ],
    ids=["tokens", "images"],
)
def test_products_are_the_kernel_in_the_mean(
    make: Callable[[], nn.Module], x: Callable[[], Tensor], output: str
) -> None:
    torch.manual_seed(0)
    model, data = make().double(), x()
    seeds = 200
    phi = features_of_seeds(model, data, output, 12, range(seeds))
    full = reference(model, data, data)[1]
    if output == "trace":
        found = phi @ phi.mT
        expected = torch.einsum("ijaa->ij", full) / full.shape[-1]
    else:
        found, expected = products(phi, phi), full
    error = found.std(0) / seeds**0.5
    assert float(((found.mean(0) - expected) / error).abs().max()) < 4.5
    assert float(error.max()) < float(expected.abs().max()) / 8  # it could have been seen


def fourth_moment(u: Tensor, v: Tensor) -> float:
    """E[(R^T u S)^2 (R^T v S)^2] over all signs R and S."""
    left = torch.tensor(list(itertools.product([1.0, -1.0], repeat=u.shape[0]))).double()
    right = torch.tensor(list(itertools.product([1.0, -1.0], repeat=u.shape[1]))).double()
    return float(((left @ u @ right.T) ** 2 * (left @ v @ right.T) ** 2).mean())


SHAPES = {"a": (3, 4), "b": (5,), "c": (8,), "d": (2, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "dim", "outputs"), [("a", 11, 1), ("abcd", 16, 1), ("abcd", 6, 2)]
)
def test_variance_is_that_of_the_closed_form(names: str, dim: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(1)
    gradients = {
        name: torch.randn(2, outputs, *SHAPES[name], generator=generator, dtype=torch.float64)
        for name in names
    }
    gradients["a"][0] += 2 * gradients["a"][1]
    for name in set(names) & set("bc"):  # one entry stands out, the same in both
        gradients[name][:, 0, 0] += 6
    exact, variance = moments(list(gradients.values()), dim, outputs)

    found = torch.empty(3000, dtype=torch.float64)
    for seed in range(len(found)):
        phi = torch.zeros(dim, 2, 1, dtype=torch.float64)
        for name, value in gradients.items():
            shape = torch.Size(SHAPES[name])
            drawn = Projection.drawn(name, shape, outputs, dim, seed, like=phi)
            drawn.add_to(phi, [[Explicit(value.flatten(2)[None])]], [whole(shape)], 2**20)
        found[seed] = (phi[:, 0] * phi[:, 1]).sum() / dim
    assert_moments(found, exact, variance)


@pytest.mark.slow
@pytest.mark.parametrize("output", [1, "trace"])
def test_variance_of_a_networks_features_is_that_of_the_closed_form(output: str | int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, dim = real(3)(2), 10
    rows = reference_jacobian(model, x)[1]
    outputs = 2 if output == "trace" else 1
    rows = rows / 2**0.5 if output == "trace" else rows[:, 1:]
    parameters = list(model.parameters())
    parts = rows.split([p.numel() for p in parameters], -1)
    gradients = [g.unflatten(-1, p.shape) for g, p in zip(parts, parameters, strict=True)]
    phi = features_of_seeds(model, x, output, dim, range(1500))
    assert_moments((phi[:, 0] * phi[:, 1]).sum(-1), *moments(gradients, dim, outputs))


def assert_moments(found: Tensor, mean: float, variance: float) -> None:
    assert abs(float(found.mean()) - mean) < 4 * (variance / len(found)) ** 0.5
    squares = (found - mean) ** 2
    error = float(squares.std()) / len(found) ** 0.5
    assert abs(float(squares.mean()) - variance) < 4 * error
    assert error < 0.1 * variance


def moments(gradients: list[Tensor], dim: int, outputs: int) -> tuple[float, float]:
    """Mean and variance, as the module states them, of the product of two examples' features.

    `gradients` are (2, outputs, *shape), one for each parameter.
    """
    matrices = [value.reshape(2, -1, value.shape[3:].numel()) for value in gradients]
    inner = torch.stack([(u * v).sum() for u, v in matrices])
    norms = torch.stack([(m**2).sum((1, 2)) for m in matrices])
    crossed = norms[:, :1] * norms[:, 1] + inner[:, None] * inner
    total = float(crossed.sum() - crossed.trace())
    for value, (u, v) in zip(gradients, matrices, strict=True):
        count = pairs(value[0, 0], outputs)
        rest = dim % count
        share = rest * (count - rest) / ((count - 1) * dim)
        total += share * (fourth_moment(u, v) - float((u * v).sum()) ** 2)
    return float(inner.sum()), total / dim


def whole(shape: torch.Size) -> Place:
    rows, columns = shape[0], shape[1:].numel()
    return Place(None, Sides(torch.arange(rows), torch.arange(columns)))


def test_error_of_the_gram_matrix_is_within_its_bound() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
    )
    model, x, dim = model.double(), real(8)(16), 64
    phi = features_of_seeds(model, x, "trace", dim, range(60))
    exact = reference(model, x, x)[1][..., 0, 0]
    error = ((phi @ phi.mT - exact) ** 2).sum((1, 2))
    parts = EmpiricalKernel(model).by_parameter(x)
    shares = sum(float(part.trace()) ** 2 for part in parts.values())
    trace = float(exact.trace())
    bound = (trace**2 + float(exact.norm()) ** 2 + 6 * shares) / dim
    assert float(error.mean()) < bound < 8 * trace**2 / dim
    assert float(error.mean()) > (trace**2 + float(exact.norm()) ** 2) / dim / 2  # it is not loose


# -- at the door, and how ---------------------------------------------------------------------


def test_gradients_in_factors_are_never_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Factors) -> Tensor:
        raise AssertionError("a gradient was written out")

    for name in ("mlp", "conv2d", "transposed conv", "linear over tokens", "tied embedding"):
        kernel, x = kernel_of(name), case_of(name).data(4)
        expected = kernel.features(x, 5)
        with (
            kernel._subject.prepared(x, gradients=True) as prepared,
            monkeypatch.context() as m,
        ):
            m.setattr(Factors, "explicit", refuse)
            found = random_features(prepared, dim=5, seed=0, memory=2**30)
        assert_equal(found, expected)


def test_random_state_and_dtype() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(5, 4)
    exact = EmpiricalKernel(model.double()).features(x.double(), 16)
    state, numpy = torch.get_rng_state(), numpy_state()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        found = EmpiricalKernel(model.to(dtype)).features(x.to(dtype), 16)
        assert found.dtype == dtype
        assert not found.requires_grad
        assert float((found.double() - exact).norm() / exact.norm()) < tolerance
    assert torch.equal(torch.get_rng_state(), state)
    assert numpy_state() == numpy


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"dim": 2.0}, {"dim": True}, {"dim": 2, "seed": -1}])
def test_wrong_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="must be an integer"):
        kernel_of("mlp").features(case_of("mlp").data(2), **wrong)


def test_parameters_without_dimensions_and_without_entries() -> None:
    torch.manual_seed(0)
    model = Lambda(
        lambda m, x: m.a(x) * m.gain + m.none.sum(),
        a=nn.Linear(4, 2),
        gain=nn.Parameter(torch.tensor(2.0)),
        none=nn.Parameter(torch.empty(0)),
    )
    x = real(4)(3)
    kernel = EmpiricalKernel(model.double(), output=0, parameters=["gain", "none"])
    phi = kernel.features(x, 2)
    assert_equal(phi @ phi.T, kernel.ntk(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_devices_share_a_projection() -> None:
    model, x = convolutional(), torch.randn(4, 2, 6, 6)
    expected = EmpiricalKernel(model).features(x, 32)
    found = EmpiricalKernel(model.cuda()).features(x.cuda(), 32)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)
