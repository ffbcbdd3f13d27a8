"""The same kernels on a GPU, where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from empirical.cases import CASES, Case, real
from tangency.empirical import EmpiricalKernel
from tangency.examples import Examples

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(x: Examples) -> Examples:
    return pytree.tree_map(lambda leaf: leaf.cuda() if isinstance(leaf, Tensor) else leaf, x)


def assert_equal(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.device.type == "cuda"
    assert found.shape == expected.shape
    scale = float(expected.abs().max())
    assert scale > 0
    assert float((found.cpu().double() - expected).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_device_makes_no_difference(case: Case) -> None:
    x1, x2 = case.data(4), case.data(3)
    expected = EmpiricalKernel(case.model(), output="full").pair(x1, x2)
    there = EmpiricalKernel(case.model().cuda(), output="full").pair(on_gpu(x1), on_gpu(x2))
    for found, here in zip(there, expected, strict=True):
        assert_equal(found, here, 1e-10)


def test_float32_is_not_rounded_to_tf32() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()]
    model, x = nn.Sequential(*layers, nn.Linear(1024, 2)).double(), real(3, 8, 8)(5)
    expected = EmpiricalKernel(model).ntk(x)
    allowed = torch.backends.cudnn.allow_tf32
    assert_equal(EmpiricalKernel(model.float().cuda()).ntk(x.float().cuda()), expected, 1e-5)
    assert torch.backends.cudnn.allow_tf32 == allowed


def test_tiles() -> None:
    model, x = CASES[0].model(), CASES[0].data(40)
    expected = EmpiricalKernel(model).ntk(x)
    assert_equal(EmpiricalKernel(model.cuda(), memory=2**12).ntk(on_gpu(x)), expected, 1e-10)
