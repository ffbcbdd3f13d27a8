"""Products of matrices, in float32 by whatever way is the fast one, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from tangency import EmpiricalKernel
from tangency.matrices import each_product, inner_products, linear, long_products

LARGE = (300, 200, 150)
SMALL = (3, 4, 5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found.double() - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def laid_out(matrix: Tensor, layout: str) -> Tensor:
    """The same matrix, dense by rows or columns, or a part of a larger one."""
    if layout == "rows":
        return matrix.contiguous()
    if layout == "columns":
        return matrix.mT.contiguous().mT
    larger = matrix.new_zeros(matrix.shape[0], 2 * matrix.shape[1])
    larger[:, ::2] = matrix
    return larger[:, ::2]


@pytest.mark.parametrize("sizes", [SMALL, LARGE])
@pytest.mark.parametrize("layout", ["rows", "columns", "part"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products(sizes: tuple[int, int, int], layout: str, dtype: torch.dtype) -> None:
    m, n, k = sizes
    a, b = normal(m, k).to(dtype), normal(n, k, seed=1).to(dtype)
    expected = a.double() @ b.double().mT
    left, right = laid_out(a, layout), laid_out(b, layout)
    assert_equal(inner_products(left, right), expected)
    assert_equal(inner_products(left[None], right[None])[0], expected)
    assert_equal(long_products(left, right), expected)
    several = each_product(left.expand(3, -1, -1), right.expand(3, -1, -1))
    assert_equal(several, expected.expand(3, -1, -1))


@pytest.mark.parametrize("sizes", [SMALL, LARGE])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_forward_and_backward(sizes: tuple[int, int, int], bias: bool) -> None:
    m, out, size = sizes
    x = normal(2, m, size).requires_grad_()
    weight, shift = normal(out, size, seed=1), normal(out, seed=2) if bias else None
    y = linear(x, weight, shift)
    double = None if shift is None else shift.double()
    assert_equal(y.detach(), functional.linear(x.detach().double(), weight.double(), double))
    cotangents = normal(3, *y.shape, seed=3)
    expected = cotangents.double() @ weight.double()
    (one,) = torch.autograd.grad(y, x, cotangents[0], retain_graph=True)
    assert_equal(one, expected[0])

    def back(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, cotangent, retain_graph=True)[0]

    assert_equal(torch.func.vmap(back)(cotangents), expected)


def test_linear_with_a_weight_that_depends_on_data() -> None:
    x, weight = normal(300, 200).requires_grad_(), normal(150, 200, seed=1).requires_grad_()
    found = torch.autograd.grad(linear(x, weight).square().sum(), (x, weight))
    expected = torch.autograd.grad(functional.linear(x, weight).square().sum(), (x, weight))
    for value, right in zip(found, expected, strict=True):
        torch.testing.assert_close(value, right)


@pytest.mark.parametrize("output", ["full", "trace", "diagonal"])
@pytest.mark.parametrize("convolutional", [True, False])
def test_float32_kernel_of_a_wide_network(output: str, convolutional: bool) -> None:
    """Large enough for every fast product, against the same network in float64."""
    torch.manual_seed(0)
    if convolutional:
        model = nn.Sequential(
            nn.Conv2d(8, 64, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Conv2d(128, 64, 3, padding=1, groups=2),
            nn.Flatten(),
            nn.Linear(64 * 16, 4),
        )
        x = normal(12, 8, 8, 8)
    else:
        layers = [nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 256), nn.Tanh()]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256 * 20, 4))
        x = normal(12, 20, 256)
    found = EmpiricalKernel(model, output=output).ntk(x)
    expected = EmpiricalKernel(model.double(), output=output).ntk(x.double())
    assert_equal(found, expected)
    one_by_one = EmpiricalKernel(model.float(), output=output).diagonal(x).ntk
    here = torch.arange(12)
    assert_equal(one_by_one, expected[here, here])


@pytest.mark.parametrize("product", [inner_products, long_products])
def test_derivatives_of_products(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Recorded, by transforms and forward: where oneDNN's product would drop them."""
    a, b, t = normal(300, 150), normal(200, 150, seed=1), normal(300, 150, seed=2)
    expected = b.double().sum(0).expand(300, -1)
    leaf = a.clone().requires_grad_()
    product(leaf, b).sum().backward()
    assert leaf.grad is not None
    assert_equal(leaf.grad, expected)
    assert_equal(torch.func.grad(lambda x: product(x, b).sum())(a), expected)
    forward = t.double() @ b.double().mT
    assert_equal(torch.func.jvp(lambda x: product(x, b), (a,), (t,))[1], forward)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(product(forward_ad.make_dual(a, t), b)).tangent
        assert dual is not None
        assert_equal(dual, forward)
