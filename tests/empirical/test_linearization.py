"""Linearised and Taylor models against Jacobians by autograd, closed forms and polynomials."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import tangency
from empirical.cases import (
    CASES,
    Case,
    Lambda,
    case_of,
    linear,
    real,
    reference,
    reference_jacobian,
)
from tangency import examples, linearize, taylor
from tangency.empirical import EmpiricalKernel, directional
from tangency.errors import InvalidInput, UnsupportedOperation

DTYPE = torch.float64


def assert_equal(value: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert value.shape == expected.shape
    scale = float(expected.detach().abs().max())
    assert scale > 0
    assert float((value - expected).detach().abs().max()) <= tolerance * scale


def moved(model: nn.Module, size: float = 1.0) -> Tensor:
    """Move the trainable parameters; returns by how much, in one vector."""
    generator = torch.Generator().manual_seed(5)
    steps = []
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                steps.append(size * torch.randn(p.shape, dtype=p.dtype, generator=generator))
                p += steps[-1]
    return torch.cat([step.reshape(-1) for step in steps])


def each(model: nn.Module, x: object) -> Tensor:
    """Outputs of every example alone, (n, out)."""
    calls = [
        examples.arguments(examples.take(x, slice(i, i + 1))) for i in range(examples.count(x))
    ]
    return torch.stack([model(*args, **kwargs).reshape(-1) for args, kwargs in calls])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_value_and_gradient_against_autograd(case: Case) -> None:
    model, x = case.model(), case.data(3)
    outputs, jacobian = reference_jacobian(model, x)
    linearized = linearize(model)
    assert_equal(each(linearized, x), outputs)
    step = moved(linearized)
    assert_equal(each(linearized, x), outputs + jacobian @ step)
    assert_equal(reference_jacobian(linearized, x)[1], jacobian)
    assert_equal(reference_jacobian(model, x)[1], jacobian)


WAYS = {
    "mlp": directional._FORWARD[0],
    "multi-head attention": directional._FORWARD[1],
    "custom backward": directional._REVERSE[0],
    "no_grad in forward": directional._REVERSE[0],
    "checkpointed": directional._REVERSE[0],
    "embedding bag": directional._REVERSE[2],
}


@pytest.mark.parametrize("name", WAYS)
def test_way_is_the_fastest_that_is_right(name: str) -> None:
    linearized = linearize(case_of(name).model())
    linearized(case_of(name).data(3))
    assert linearized._expansion is WAYS[name]


@pytest.mark.parametrize("way", directional._FORWARD + directional._REVERSE)
def test_every_way_gives_the_same(way: directional.Expansion) -> None:
    name = "transformer layer, norm first"
    model, x = case_of(name).model(), case_of(name).data(3)
    outputs, jacobian = reference_jacobian(model, x)
    linearized = linearize(model)
    linearized._expansion = way
    step = moved(linearized)
    if way in (directional._FORWARD[0], directional._REVERSE[0]):  # the fused attention
        with pytest.raises((NotImplementedError, RuntimeError)):
            linearized(x)
        return
    assert_equal(linearized(x), outputs + jacobian @ step)
    assert_equal(reference_jacobian(linearized, x)[1], jacobian)


@pytest.mark.parametrize("name", ["mlp", "tied embedding", "multi-head attention", "embedding bag"])
def test_kernel_is_that_of_the_model_wherever_it_goes(name: str) -> None:
    model, x = case_of(name).model(), case_of(name).data(3)
    linearized = linearize(model)
    linearized(x)
    moved(linearized)
    kernel = EmpiricalKernel(linearized, output="full").ntk(x)
    assert_equal(kernel, reference(model, x, x)[1])


def test_gradient_descent_follows_the_closed_form() -> None:
    model, x, y = case_of("mlp").model(), real(4)(8), real(3)(8)
    x_test = real(4)(5)
    kernel = EmpiricalKernel(model, output="full")
    rate = 0.1
    theory = tangency.GradientDescent(kernel.ntk(x), y, learning_rate=rate)
    assert rate < theory.max_learning_rate
    predicted = theory.predict(
        40, kernel.ntk(x_test, x), f0_train=model(x).detach(), f0_test=model(x_test).detach()
    )
    linearized = linearize(model)
    optimizer = torch.optim.SGD(linearized.parameters(), lr=rate)
    for _ in range(40):
        optimizer.zero_grad()
        loss = (linearized(x) - y).square().sum() / (2 * 8)
        loss.backward()
        optimizer.step()
    assert_equal(linearized(x).detach(), predicted.train)
    assert predicted.test is not None
    assert_equal(linearized(x_test).detach(), predicted.test)
    assert float((model(x) - linearized(x)).detach().abs().max()) > 0.1


@pytest.mark.parametrize("name", ["mlp", "custom backward"])
def test_training_leaves_the_rest_alone(name: str) -> None:
    model, x = case_of(name).model(), real(4)(3)
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    linearized = linearize(model)
    optimizer = torch.optim.Adam(linearized.parameters(), lr=0.05, weight_decay=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append((linearized(x) - 1).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(bool((p.grad == 0.5).all()) for p in model.parameters())
    assert all(p.grad is None for p in linearized._network.parameters())
    for key, value in linearized.state_dict().items():
        if key.startswith("_initial."):
            assert torch.equal(value, before[key.removeprefix("_initial.")])
    outputs = linearized(x).detach()
    moved(model)
    assert torch.equal(linearized(x), outputs)


def test_state() -> None:
    model, x = case_of("batch norm, evaluating").model(), real(4)(3)
    linearized = linearize(model)
    theta = [name for name, _ in model.named_parameters()]
    buffers = [name for name, _ in model.named_buffers()]
    assert [name for name, _ in linearized.named_parameters()] == theta
    keys = set(theta) | {f"_initial.{name}" for name in theta} | set(buffers)
    assert set(linearized.state_dict()) == keys
    moved(linearized)
    outputs = linearized(x)
    other = linearize(moved_copy(model))
    assert not torch.equal(other(x), outputs)
    other.load_state_dict(linearized.state_dict())
    assert torch.equal(other(x), outputs)
    assert torch.equal(copy.deepcopy(linearized)(x), outputs)
    file = io.BytesIO()
    torch.save(linearized, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), outputs)
    single = linearized.float()(x.float())
    assert single.dtype == torch.float32
    assert_equal(single.double(), outputs.detach(), 1e-5)


def moved_copy(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    moved(other)
    return other


@pytest.mark.parametrize("assign", [False, True])
def test_another_starting_point_through_autograd(assign: bool) -> None:
    """The way through autograd takes theta_0 from the buffers, too."""
    name = "custom backward"
    model, x = case_of(name).model(), case_of(name).data(3)
    linearized, other = linearize(model), linearize(moved_copy(model))
    other(x)
    moved(linearized)
    other.load_state_dict(linearized.state_dict(), assign=assign)
    assert torch.equal(other(x), linearized(x))
    assert_equal(reference_jacobian(other, x)[1], reference_jacobian(model, x)[1])


def test_parameters_of_the_model_can_be_loaded() -> None:
    model, x = case_of("mlp").model(), real(4)(3)
    trained = copy.deepcopy(model)
    step = moved(trained, 0.1)
    linearized = linearize(model)
    linearized.load_state_dict(trained.state_dict(), strict=False)
    outputs, jacobian = reference_jacobian(model, x)
    assert_equal(linearized(x).detach(), outputs + jacobian @ step)


def test_chosen_and_frozen_parameters() -> None:
    model, x = case_of("mlp").model(), real(4)(3)
    model[0].weight.requires_grad_(False)
    linearized = linearize(model, parameters=["0.*", "4.weight"])
    names = ["0.bias", "4.weight"]
    assert [name for name, _ in linearized.named_parameters()] == names
    step = moved(linearized)
    for name, p in model.named_parameters():
        p.requires_grad_(name in names)
    outputs, jacobian = reference_jacobian(model, x)
    assert_equal(linearized(x).detach(), outputs + jacobian @ step)


def test_mode_stays_that_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))
    model, x = model.double(), real(4)(3)
    with pytest.raises(InvalidInput, match=r"'1' \(BatchNorm1d\).*model\.eval"):
        linearize(model)
    linearized = linearize(model.eval())
    outputs = linearized(x)
    model.train()
    assert torch.equal(linearized.train()(x), outputs)
    assert torch.equal(linearized.eval()(x), outputs)


class Counting(nn.Module):
    """Changes a buffer in place, which no state holds, and one that is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("calls", torch.ones(()))
        self.register_buffer("fixed", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x).tanh() * self.calls * self.fixed


def test_buffers_stay() -> None:
    linearized = linearize(Counting().double())
    outputs = linearized(real(4)(3))
    assert torch.equal(linearized(real(4)(3)), outputs)
    assert float(linearized.calls) == 1
    assert "fixed" not in linearized.state_dict()


def test_outputs_of_any_structure() -> None:
    model = Lambda(
        lambda m, x: {
            "logits": m.a(x).tanh(),
            "pair": (m.a(x).argmax(-1), None, "text"),
            "hidden": [m.b(x)],
        },
        a=linear(4, 3),
        b=linear(4, 2),
    ).double()
    x = real(4)(3)
    linearized = linearize(model)
    moved(linearized, 0.01)
    result, initial = linearized(x), model(x)
    assert set(result) == {"logits", "pair", "hidden"}
    assert torch.equal(result["pair"][0], initial["pair"][0])
    assert result["pair"][1:] == (None, "text")
    theta = dict(linearized.named_parameters())
    assert_equal(result["hidden"][0], x @ theta["b.weight"].T + theta["b.bias"])
    tanh = initial["logits"]
    slope = (1 - tanh.square()) * (x @ theta["a.weight"].T + theta["a.bias"] - model.a(x))
    assert_equal(result["logits"], tanh + slope)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["mlp", "multi-head attention", "custom backward"])
def test_under_disabled_autograd(name: str, context: Callable[[], Any]) -> None:
    model = case_of(name).model()
    linearized, x = linearize(model), case_of(name).data(3)
    moved(linearized)
    expected = linearized(x)
    other = linearize(model)
    moved(other)
    with context():
        outputs = other(case_of(name).data(3))
    assert not outputs.requires_grad
    assert_equal(outputs, expected.detach())
    other(x).sum().backward()
    assert all(p.grad is not None for p in other.parameters())


def test_gradient_in_the_inputs() -> None:
    model, x = case_of("mlp").model(), real(4)(2).requires_grad_()
    linearized = linearize(model)
    moved(linearized)
    assert torch.autograd.gradcheck(linearized, (x,))
    through_autograd = linearize(case_of("custom backward").model())
    with pytest.raises(UnsupportedOperation, match="inputs: detach"):
        through_autograd(x)


def test_in_transformations() -> None:
    model, x = case_of("mlp").model(), real(4)(3)
    linearized = linearize(model)
    theta = dict(linearized.named_parameters())

    def outputs(values: Mapping[str, Tensor]) -> Any:
        return functional_call(linearized, dict(values), (x,))

    with pytest.raises(UnsupportedOperation, match="call it once"):
        torch.func.jacrev(outputs)(theta)
    linearized(x)
    jacobian = torch.func.jacrev(outputs)(theta)
    flat = torch.cat([jacobian[name].flatten(2) for name in theta], dim=2)
    assert_equal(flat, reference_jacobian(model, x)[1])


def products(depth: int) -> nn.Module:
    """A polynomial of degree `depth` in the parameters."""
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth))).double()


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_polynomials_are_exact(depth: int) -> None:
    torch.manual_seed(0)
    model, x = products(depth), real(3)(4)
    polynomial = taylor(model, degree=depth)
    lower = taylor(model, degree=depth - 1) if depth > 1 else None
    state = {name: p + torch.randn_like(p) for name, p in model.named_parameters()}
    polynomial.load_state_dict(state, strict=False)
    model_moved = functional_call(model, state, (x,))
    assert_equal(polynomial(x), model_moved)
    if lower is not None:
        lower.load_state_dict(state, strict=False)
        assert float((lower(x) - model_moved).detach().abs().max()) > 0.1


def test_second_degree_against_the_hessian() -> None:
    model, x = case_of("mlp").model(), real(4)(1)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def output(flat: Tensor) -> Tensor:
        pieces = flat.split([shape.numel() for shape in shapes.values()])
        state = {k: piece.view(s) for (k, s), piece in zip(shapes.items(), pieces, strict=True)}
        return functional_call(model, state, (x,))[0, 1]

    hessian = torch.autograd.functional.hessian(output, start)
    quadratic, affine = taylor(model), linearize(model)
    step = moved(quadratic)
    moved(affine)
    second = (quadratic(x) - affine(x))[0, 1].detach()
    assert_equal(second, step @ hessian @ step / 2)


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("name", ["mlp, smooth", "multi-head attention", "lstm"])
def test_error_is_of_the_next_order(name: str, degree: int) -> None:
    case = case_of(name) if name != "mlp, smooth" else None
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Softplus()).double()
        if case is None
        else case.model()
    )
    x = real(4)(3) if case is None else case.data(3)
    polynomial = taylor(model, degree)
    errors = []
    for size in (0.04, 0.02, 0.01):
        actual = copy.deepcopy(model)
        moved(actual, size)
        polynomial.load_state_dict(actual.state_dict(), strict=False)
        errors.append(float((polynomial(x) - actual(x)).detach().norm()))
    orders = [a / b for a, b in itertools.pairwise(errors)]
    assert all(0.8 < order / 2 ** (degree + 1) < 1.25 for order in orders)


def test_gradients_of_a_polynomial() -> None:
    """At theta_0 its gradient is the model's, and away from it the quadratic term acts."""
    torch.manual_seed(0)
    model, x = products(2), real(3)(2)
    quadratic = taylor(model)
    assert_equal(reference_jacobian(quadratic, x)[1], reference_jacobian(model, x)[1])
    moved(quadratic)
    moved(model)
    assert_equal(reference_jacobian(quadratic, x)[1], reference_jacobian(model, x)[1])


@pytest.mark.parametrize("name", ["no_grad in forward", "custom backward", "embedding bag"])
def test_polynomials_without_higher_derivatives_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedOperation, match=r"degree 2.*tangency\.linearize"):
        taylor(case_of(name).model())(case_of(name).data(3))


def test_refused_arguments() -> None:
    model = nn.Linear(3, 2)
    for degree in (0, -1, 1.5, True, None):
        with pytest.raises(InvalidInput, match="degree="):
            taylor(model, degree)
    with pytest.raises(InvalidInput, match=r"torch\.nn\.Module"):
        linearize(lambda x: x)
    with pytest.raises(InvalidInput, match="matches no parameter"):
        linearize(model, parameters="layer.*")
    with pytest.raises(InvalidInput, match="frozen"):
        linearize(nn.Linear(3, 2).requires_grad_(False))
    with pytest.raises(InvalidInput, match="lazy"):
        linearize(nn.LazyLinear(3))
    with pytest.raises(InvalidInput, match="no real tensor"):
        linearize(Lambda(lambda m, x: m.a(x).argmax(-1), a=linear(3, 2)))(torch.randn(2, 3))
    uncopied = nn.Linear(3, 2)
    uncopied.held = uncopied.weight * 2
    with pytest.raises(InvalidInput, match="cannot be copied"):
        linearize(uncopied)
    with pytest.raises(RuntimeError, match="shapes"):
        linearize(model)(torch.randn(2, 4))


def test_repr() -> None:
    assert repr(taylor(products(2))) == "TaylorModel(Sequential, degree=2, 4 trainable tensors)"
