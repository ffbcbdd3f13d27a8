"""One convolution used twice, on values that are added up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tangency import InfiniteKernel, Init


class Twice(nn.Module):
    """`c(h) + c(relu(c(h)))` with one layer c, of filters that cover one place."""

    def __init__(self, *, convolution: bool) -> None:
        super().__init__()
        self.convolution = convolution
        self.stem = nn.Linear(3, 8, bias=False)
        self.layer = nn.Conv1d(8, 8, 1, bias=False) if convolution else nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 1, bias=False)

    def shared(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.mT).mT if self.convolution else self.layer(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        once = self.shared(h)
        y: Tensor = self.head(torch.relu(once + self.shared(torch.relu(once))).mean(1))
        return y


def test_convolutions_of_one_place_are_linear_layers() -> None:
    x = torch.randn(3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernels = []
    for convolution in (True, False):
        model = Twice(convolution=convolution).double()
        kernel = InfiniteKernel(model, x, init=Init.he(), parametrization="ntk", compile=False)
        kernels.append(kernel.pair(x))
    for slid, applied in zip(*kernels, strict=True):
        # Convolutions go by way of moments, in which an angle has an error of 1e-8 near 0.
        assert torch.allclose(slid, applied, rtol=1e-7)
