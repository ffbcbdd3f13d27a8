"""Kernels are differentiable: in the inputs and in the scales of the initialisation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tangency.infinite import InfiniteKernel, Init

PLAIN = 3
IMAGE = (2, 3, 3)


def fully_connected(activation: nn.Module, *, bias: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Linear(PLAIN, 8, bias=bias),
        activation,
        nn.Linear(8, 8, bias=bias),
        activation,
        nn.Linear(8, 1, bias=bias),
    )


def convolutional(activation: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        activation,
        nn.Conv2d(8, 8, 3, padding=1),
        activation,
        nn.Flatten(),
        nn.Linear(72, 1),
    )


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "relu": (fully_connected(nn.ReLU()), (PLAIN,)),
    "relu, no bias": (fully_connected(nn.ReLU(), bias=False), (PLAIN,)),
    "gelu": (fully_connected(nn.GELU()), (PLAIN,)),
    "tanh": (fully_connected(nn.Tanh()), (PLAIN,)),
    "elu": (fully_connected(nn.ELU()), (PLAIN,)),
    "convolution, relu": (convolutional(nn.ReLU()), IMAGE),
    "convolution, gelu": (convolutional(nn.GELU()), IMAGE),
}
SMOOTH = ["gelu", "tanh", "convolution, gelu"]


def inputs(shape: tuple[int, ...], where: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    if where == "duplicates":
        x[2] = x[0]
    if where == "zero":
        x[0] = 0.0
    return x


def central_difference(
    function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, step: float = 1e-5
) -> float:
    """Derivative along `direction`."""
    with torch.no_grad():
        ahead, behind = function(x + step * direction), function(x - step * direction)
    return float((ahead - behind) / (2 * step))


def direction_for(x: Tensor) -> Tensor:
    return torch.cos(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)


def weighted(kernel: InfiniteKernel, which: str, other: Tensor | None) -> Callable[..., Tensor]:
    """A number that depends on all entries of the kernel, unequally."""

    def function(x: Tensor) -> Tensor:
        values: Tensor = getattr(kernel, which)(x, other)
        weights = torch.linspace(0.5, 1.7, values.numel(), dtype=values.dtype)
        return (values.flatten() * weights).sum()

    return function


@pytest.mark.parametrize("which", ["nngp", "ntk"])
@pytest.mark.parametrize("where", ["apart", "duplicates", "zero"])
@pytest.mark.parametrize("name", NETWORKS)
def test_first_derivatives_in_the_inputs(name: str, where: str, which: str) -> None:
    """The symmetric Gram matrix too, whose diagonal pairs every input with itself."""
    network, shape = NETWORKS[name]
    x = inputs(shape, where)
    kernel = InfiniteKernel(network.double(), x)
    for other in (None, inputs(shape, "apart").flip(0)):
        function = weighted(kernel, which, other)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf), leaf)
        assert bool(torch.isfinite(gradient).all())
        if name == "relu, no bias" and where == "zero":
            continue  # a homogeneous kernel has no derivative at zero
        expected = central_difference(function, x, direction_for(x))
        assert float((gradient * direction_for(x)).sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("which", ["nngp", "ntk"])
@pytest.mark.parametrize("name", NETWORKS)
def test_second_derivatives_in_the_inputs(name: str, which: str) -> None:
    network, shape = NETWORKS[name]
    x = inputs(shape, "apart")
    kernel = InfiniteKernel(network.double(), x)
    function = weighted(kernel, which, inputs(shape, "apart").flip(0) + 0.3)
    direction = direction_for(x).flip(0)

    def slope(point: Tensor) -> Tensor:
        leaf = point.clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
        return (gradient * direction).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad((gradient * direction).sum(), leaf)
    expected = central_difference(slope, x, direction_for(x))
    assert float((second * direction_for(x)).sum()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("where", ["duplicates", "zero"])
def test_second_derivatives_at_coincidence(name: str, where: str) -> None:
    """Where the NTK is smooth there; a ReLU's has a cusp."""
    network, shape = NETWORKS[name]
    x = inputs(shape, where)
    leaf = x.clone().requires_grad_()
    function = weighted(InfiniteKernel(network.double(), x), "ntk", None)
    (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), leaf)
    assert bool(torch.isfinite(second).all())


@pytest.mark.parametrize("which", ["nngp", "ntk"])
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "convolution, relu"])
def test_derivatives_in_the_scales(name: str, parametrization: str, which: str) -> None:
    network, shape = NETWORKS[name]
    # The angle of two patches is a float64 difference: next to 0 its noise of 1e-8 would drown a
    # difference quotient.
    x = inputs(shape, "apart" if len(shape) > 1 else "duplicates")

    def function(scales: Tensor) -> Tensor:
        init = Init(weight=scales[0], bias=scales[1], overrides={"0.weight": scales[2]})
        kernel = InfiniteKernel(network.double(), x, init=init, parametrization=parametrization)  # type: ignore[arg-type]
        return weighted(kernel, which, None)(x)

    scales = torch.tensor([1.7, 0.3, 0.9], dtype=torch.float64)
    leaf = scales.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    for i in range(3):
        expected = central_difference(function, scales, torch.eye(3, dtype=torch.float64)[i])
        assert float(gradient[i]) == pytest.approx(expected, rel=1e-6)
