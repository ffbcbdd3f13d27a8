"""The kernel as a linear operator, against the matrix that plain autograd gives."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from linear_operator import settings
from linear_operator.utils.lanczos import lanczos_tridiag
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from empirical.cases import CASES, Case, Lambda, case_of, kernel_of, linear, real, reference
from empirical.displacement import assert_equal
from tangency.empirical import EmpiricalKernel
from tangency.empirical.matrix_free import products
from tangency.errors import InvalidInput, MissingDependency

DTYPE = torch.float64


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(7))


def matrix(ntk: Tensor) -> Tensor:
    """(n1, n2, out, out) as (n1 * out, n2 * out), example by example."""
    n1, n2, out, _ = ntk.shape
    return ntk.transpose(1, 2).reshape(n1 * out, n2 * out)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_products_against_autograd(case: Case) -> None:
    x1, x2 = case.data(4), case.data(3)
    kernel = kernel_of(case.name, output="full")
    expected = matrix(reference(kernel.model, x1, x2)[1])
    operator = kernel.operator(x1, x2)
    assert operator.shape == expected.shape
    v = vectors(expected.shape[1], 3)
    assert_equal(operator @ v, expected @ v)
    assert_equal(operator @ v[:, 0], expected @ v[:, 0])
    u = vectors(expected.shape[0], 2)
    assert_equal(operator.T @ u, expected.T @ u)


PATHS = {
    "mlp": "forward mode",
    "multi-head attention": "forward mode, elementary attention",
    "weight norm": "reverse mode twice",
    "no_grad in forward": "reverse mode twice",
    "custom backward": "reverse mode twice",
    "parameter reached by another reference": "reverse mode twice",
    "embedding bag": "gradients",
}


@pytest.mark.parametrize(("name", "path"), PATHS.items())
def test_path_is_the_fastest_that_is_right(name: str, path: str) -> None:
    operator = kernel_of(name, output="full").operator(case_of(name).data(3))
    assert f"J v by {path})" in repr(operator)


def test_one_example_in_three_cannot_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding can switch a ReLU in an example: others are asked before a slow path is taken."""
    confirms, answers = products._confirms, iter([False, True])
    monkeypatch.setattr(products, "_confirms", lambda *args: next(answers) and confirms(*args))
    assert not kernel_of("mlp").operator(real(4)(5))._products.alone


@pytest.mark.parametrize("path", products._PATHS)
@pytest.mark.parametrize("name", ["mlp", "tied embedding", "grouped and dilated conv"])
def test_every_path_gives_the_same(name: str, path: str) -> None:
    kernel, x = kernel_of(name, output="full"), case_of(name).data(3)
    operator = kernel.operator(x)
    operator._products = replace(operator._products, path=path)
    v = vectors(operator.shape[1], 2)
    assert_equal(operator @ v, matrix(reference(kernel.model, x, x)[1]) @ v)


@pytest.mark.parametrize(
    ("output", "chosen"),
    [
        ("trace", lambda k: k.diagonal(dim1=2, dim2=3).mean(-1)),
        (1, lambda k: k[..., 1, 1]),
        (-1, lambda k: k[..., -1, -1]),
        ((lambda out: out[:, 1:], "full"), lambda k: matrix(k[..., 1:, 1:])),
        (lambda out: out[:, :2], lambda k: k[..., :2, :2].diagonal(dim1=2, dim2=3).mean(-1)),
    ],
    ids=["trace", "one output", "last output", "some outputs in full", "mean of some"],
)
def test_outputs(output: Any, chosen: Callable[[Tensor], Tensor]) -> None:
    model, x1, x2 = case_of("mlp").model(), real(4)(4), real(4)(3)
    expected = chosen(reference(model, x1, x2)[1])
    operator = EmpiricalKernel(model, output=output).operator(x1, x2)
    assert operator.shape == expected.shape
    v = vectors(expected.shape[1], 5)
    assert_equal(operator @ v, expected @ v)


def test_kernel_of_a_loss() -> None:
    model, x, y = case_of("mlp").model(), real(4)(4), torch.tensor([0, 2, 1, 1])
    rows = []
    for i in range(4):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    jacobian = torch.stack(rows)
    operator = EmpiricalKernel(model, output=F.cross_entropy).operator((x, y))
    v = vectors(4)
    assert_equal(operator @ v, jacobian @ (jacobian.T @ v))


def test_frozen_parameters_and_patterns() -> None:
    model, x = case_of("mlp").model(), real(4)(3)
    model[0].weight.requires_grad_(False)
    operator = EmpiricalKernel(model, output="full", parameters=["0.*", "4.weight"]).operator(x)
    for name, p in model.named_parameters():
        p.requires_grad_(name in ("0.bias", "4.weight"))
    expected = matrix(reference(model, x, x)[1])
    for p in model.parameters():
        p.requires_grad_(True)
    model[0].weight.requires_grad_(False)
    v = vectors(9)
    assert_equal(operator @ v, expected @ v)


@pytest.mark.parametrize("output", ["full", "trace"])
@pytest.mark.parametrize("name", ["mlp", "multi-head attention", "branch on data"])
def test_tiles_change_nothing(name: str, output: str) -> None:
    x1, x2 = case_of(name).data(7), case_of(name).data(5)
    whole = kernel_of(name, output=output).operator(x1, x2)
    tiled = EmpiricalKernel(case_of(name).model(), output=output, memory=1).operator(x1, x2)
    assert tiled._products.vectors_at_once == 1
    v = vectors(whole.shape[1], 4)
    assert_equal(tiled @ v, whole @ v, 1e-12)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


def test_neither_matrix_nor_jacobian_exists() -> None:
    n = 300
    model, x = case_of("mlp").model(), real(4)(n)
    parameters = sum(p.numel() for p in model.parameters())
    operator = EmpiricalKernel(model, output="full").operator(x)
    with Largest() as largest:
        operator @ vectors(3 * n)
    assert 6 * n <= largest.numel < 20 * n < min(n * parameters, n**2)


@pytest.mark.parametrize("output", ["full", "trace", 1])
def test_diagonal_and_transpose(output: Any) -> None:
    kernel, x1, x2 = kernel_of("mlp", output=output), real(4)(4), real(4)(3)
    operator = kernel.operator(x1)
    identity = torch.eye(operator.shape[0], dtype=DTYPE)
    dense = operator @ identity
    assert_equal(operator.diagonal(), dense.diagonal())
    assert operator.T is operator
    between = kernel.operator(x1, x2)
    assert between.T.shape == between.shape[::-1]
    assert between.T.T.shape == between.shape
    with pytest.raises(InvalidInput, match="between two sets"):
        between.diagonal()


def test_scipy_eigenvalues_and_solutions() -> None:
    kernel, x = kernel_of("mlp", output="full"), real(4)(20)
    dense = matrix(reference(kernel.model, x, x)[1])
    operator = kernel.operator(x).to_scipy()
    largest = scipy.sparse.linalg.eigsh(operator, k=5, return_eigenvectors=False)
    expected = torch.linalg.eigvalsh(dense)[-5:]
    assert_equal(torch.from_numpy(largest).sort().values, expected, 1e-9)
    y, ridge = vectors(60), 0.3
    shifted = operator + ridge * scipy.sparse.linalg.aslinearoperator(np.eye(60))
    alpha, info = scipy.sparse.linalg.cg(shifted, y.numpy(), rtol=1e-10)
    assert info == 0
    solution = torch.linalg.solve(dense + ridge * torch.eye(60, dtype=DTYPE), y)
    assert_equal(torch.from_numpy(alpha), solution, 1e-7)


def test_scipy_between_two_sets() -> None:
    kernel, x1, x2 = kernel_of("mlp"), real(4)(5), real(4)(3)
    dense, operator = kernel.ntk(x1, x2).numpy(), kernel.operator(x1, x2).to_scipy()
    v, u = vectors(3, 2).numpy(), vectors(5).numpy()
    assert operator.shape == (5, 3)
    assert operator.dtype == np.float64
    np.testing.assert_allclose(operator @ v, dense @ v, rtol=1e-10)
    np.testing.assert_allclose(operator.H @ u, dense.T @ u, rtol=1e-10)
    largest = scipy.sparse.linalg.svds(operator, k=1, return_singular_vectors=False)
    np.testing.assert_allclose(largest, np.linalg.norm(dense, 2), rtol=1e-9)


def test_linear_operator_package() -> None:
    kernel, x = kernel_of("mlp", output="full"), real(4)(20)
    dense = matrix(reference(kernel.model, x, x)[1])
    lazy = kernel.operator(x).to_linear_operator()
    assert (lazy.shape, lazy.dtype) == (dense.shape, DTYPE)
    assert_equal(lazy.to_dense(), dense)
    assert_equal(lazy.diagonal(), dense.diagonal())
    batch = vectors(2, 60, 3)
    assert_equal(lazy @ batch, dense @ batch)
    assert_equal(lazy.mT @ batch, dense @ batch)
    y, ridge = vectors(60), 10.0
    solution = torch.linalg.solve(dense + ridge * torch.eye(60, dtype=DTYPE), y)
    with settings.max_cholesky_size(1), settings.cg_tolerance(1e-6):
        alpha = lazy.add_diagonal(torch.tensor(ridge, dtype=DTYPE)).solve(y)
    assert_equal(alpha, solution, 1e-5)
    basis, tridiagonal = lanczos_tridiag(
        lazy.matmul, 30, DTYPE, torch.device("cpu"), torch.Size([60, 60]), init_vecs=y[:, None]
    )
    assert basis.shape[0] == 60
    largest = torch.linalg.eigvalsh(tridiagonal)[-1]
    assert_equal(largest, torch.linalg.eigvalsh(dense)[-1], 1e-9)


def test_linear_operator_between_two_sets() -> None:
    kernel, x1, x2 = kernel_of("mlp"), real(4)(5), real(4)(3)
    lazy = kernel.operator(x1, x2).to_linear_operator()
    assert_equal(lazy.to_dense(), kernel.ntk(x1, x2))
    assert_equal(lazy.mT.to_dense(), kernel.ntk(x1, x2).T)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tangency.empirical.matrix_free.lazy_matrix", raising=False)
    monkeypatch.setitem(sys.modules, "linear_operator", None)
    with pytest.raises(MissingDependency, match=r"tangency\[linear-operator\]"):
        kernel_of("mlp").operator(real(4)(3)).to_linear_operator()


def test_dtypes() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4)), torch.randn(40, 16)
    v = torch.randn(40)
    exact = EmpiricalKernel(copy.deepcopy(model).double()).ntk(x.double()) @ v.double()
    single = EmpiricalKernel(model).operator(x)
    half = EmpiricalKernel(copy.deepcopy(model).bfloat16()).operator(x.bfloat16())
    assert (single.dtype, half.dtype) == (torch.float32, torch.float32)
    assert_equal((single @ v).double(), exact, 1e-5)
    assert_equal((half @ v).double(), exact, 3e-2)


def test_half_precision_sums_do_not_stall() -> None:
    """A sum of 600 equal terms, which stops growing at 256 in bfloat16."""
    model, x = nn.Linear(1, 1, bias=False).bfloat16(), torch.ones(600, 1, dtype=torch.bfloat16)
    product = EmpiricalKernel(model, memory=1).operator(x) @ torch.ones(600)
    assert torch.equal(product, torch.full((600,), 600.0).bfloat16().float())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_module_is_untouched(context: Callable[[], Any]) -> None:
    model = case_of("batch norm, evaluating").model()
    x, v = real(4)(3), vectors(3)
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    expected = EmpiricalKernel(model).ntk(x) @ v
    with context():
        product = EmpiricalKernel(model).operator(x) @ v
    assert_equal(product, expected)
    assert not product.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(bool((p.grad == 0.5).all()) for p in model.parameters())


def test_changed_modules_are_refused() -> None:
    model, x = case_of("batch norm, evaluating").model(), real(4)(3)
    operator = EmpiricalKernel(model).operator(x)
    product = operator @ vectors(3)
    model.train()
    for changed in (lambda: operator @ vectors(3), operator.diagonal):
        with pytest.raises(InvalidInput, match="training modes"):
            changed()
    model.eval()
    model[0].weight.data[0, 0] += 1e-3
    with pytest.raises(InvalidInput, match=r"parameters or buffers.*kernel\.operator"):
        operator.T @ vectors(3)
    model[0].weight.data[0, 0] -= 1e-3
    model[0].weight.data.copy_(operator._state[0])
    assert torch.equal(operator @ vectors(3), product)
    model[1].running_mean.add_(1)
    with pytest.raises(InvalidInput, match="parameters or buffers"):
        operator @ vectors(3)


def test_refused_arguments() -> None:
    operator = kernel_of("mlp", output="full").operator(real(4)(3))
    with pytest.raises(InvalidInput, match=r"9 x 9.*\(3,\)"):
        operator @ vectors(3)
    with pytest.raises(InvalidInput, match=r"9 x 9.*\(9, 2, 2\)"):
        operator @ vectors(9, 2, 2)
    with pytest.raises(InvalidInput, match=r"float64.*float32.*convert"):
        operator @ vectors(9).float()
    with pytest.raises(InvalidInput, match=r"ndarray.*to_scipy"):
        operator @ vectors(9).numpy()
    with pytest.raises(InvalidInput, match=r"diagonal.*output=0"):
        kernel_of("mlp", output="diagonal").operator(real(4)(3))
    with pytest.raises(InvalidInput, match="x1 is empty"):
        kernel_of("mlp").operator(torch.empty(0, 4))


def test_modules_without_influence() -> None:
    model = Lambda(lambda m, x: x.sum(-1, keepdim=True) + 0 * m.a(x), a=linear(4, 2)).double()
    operator = EmpiricalKernel(model, output="full").operator(real(4)(3))
    assert torch.equal(operator @ vectors(6), torch.zeros(6, dtype=DTYPE))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    model, x = case_of("mlp").model(), real(4)(5)
    v = vectors(15, 2)
    expected = EmpiricalKernel(copy.deepcopy(model), output="full").operator(x) @ v
    operator = EmpiricalKernel(model.cuda(), output="full").operator(x.cuda())
    assert operator.device.type == "cuda"
    assert_equal((operator @ v.cuda()).cpu(), expected)
    assert_equal(torch.from_numpy(operator.to_scipy() @ v.numpy()), expected)
    assert_equal((operator.to_linear_operator() @ v.cuda()).cpu(), expected)
    with pytest.raises(InvalidInput, match=r"cuda.*cpu"):
        operator @ v
