"""Generated code against kernels computed in float64 by an independent library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.infinite.test_reference import DATA, HIDDEN, NETWORKS

from tangency.infinite import InfiniteKernel, Init
from tangency.infinite.fused import compiler
from tangency.infinite.fused.compiler import CompilerMissing

try:
    compiler.find_compiler()
except CompilerMissing:
    pytest.skip("no C compiler", allow_module_level=True)

NAMES = [
    "fc_relu_3",
    "fc_gelu_2",
    "fc_preact_residual",
    "conv_same_flatten",
    "conv_same_gap",
    "conv_stride2_circular_avgpool_flatten",
    "conv_preact_resnet_gap",
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_reference(name: str, dtype: torch.dtype) -> None:
    with np.load(DATA / f"{name}.npz") as stored:
        reference = {key: torch.from_numpy(stored[key]) for key in stored.files}
    x1, x2 = (reference[which].to(dtype) for which in ("x1", "x2"))
    if name.startswith("conv"):
        x1, x2 = x1.movedim(-1, 1), x2.movedim(-1, 1)
    model = NETWORKS[name](x1.shape[1])
    weight, bias = HIDDEN.get(name, (2.0, 0.09))
    last = [parameter for parameter, _ in model.named_parameters()][-2]
    init = Init(weight=weight, bias=bias, overrides={last: 1.0})
    kernel = InfiniteKernel(model, x1[:2].float(), init=init, parametrization="ntk", compile=True)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-5
    for suffix, pair in (("11", kernel.pair(x1)), ("12", kernel.pair(x1, x2))):
        for which, matrix in (("nngp", pair.nngp), ("ntk", pair.ntk)):
            expected = reference[f"{which}_{suffix}"]
            torch.testing.assert_close(matrix.double(), expected, rtol=tolerance, atol=0)
    assert kernel._evaluation._fusion._kernels[dtype] is not None
