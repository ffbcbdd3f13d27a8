"""Linearised and Taylor models against Jacobians by autograd, closed forms and polynomials."""

from __future__ import annotations

import copy
import io
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
from empirical.displacement import assert_equal, each, moved, moved_copy
from tangency import linearize
from tangency.empirical import EmpiricalKernel
from tangency.empirical.linearized import directional
from tangency.errors import InvalidInput, UnsupportedOperation

DTYPE = torch.float64


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
def test_every_way_gives_the_same(way: Any) -> None:
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


def test_every_way_can_be_saved() -> None:
    for name, way in WAYS.items():
        model, x = case_of("mlp").model(), real(4)(3)
        linearized = linearize(model)
        linearized._expansion = way
        moved(linearized)
        file = io.BytesIO()
        torch.save(linearized, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), linearized(x)), name


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


def test_refused_arguments() -> None:
    model = nn.Linear(3, 2)
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["mlp", "custom backward"])
def test_on_a_gpu(name: str) -> None:
    linearized, x = linearize(case_of(name).model()), case_of(name).data(3)
    moved(linearized)
    expected = linearized(x).detach()
    assert_equal(linearized.cuda()(x.cuda()).detach().cpu(), expected)
