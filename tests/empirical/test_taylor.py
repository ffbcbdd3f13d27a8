"""Taylor polynomials against polynomial networks, Hessians and the order of their error."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from empirical.cases import case_of, real, reference_jacobian
from empirical.displacement import assert_equal, moved
from tangency import linearize, taylor
from tangency.errors import InvalidInput, UnsupportedOperation


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


def test_refused_degrees() -> None:
    for degree in (0, -1, 1.5, True, None):
        with pytest.raises(InvalidInput, match="degree="):
            taylor(nn.Linear(3, 2), degree)


def test_repr() -> None:
    assert repr(taylor(products(2))) == "TaylorModel(Sequential, degree=2, 4 trainable tensors)"
