"""Images through one 1x1 layer and a ReLU: covariances in closed form, at all pairs of pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tangency.infinite import InfiniteKernel, Init
from tangency.kernel_pair import KernelPair

CHANNELS, HEIGHT, COLUMNS, WIDTH = 3, 5, 6, 12
WEIGHT, BIAS = 1.7, 0.2
INIT = Init(weight=WEIGHT, bias=BIAS)
Operation = Callable[[Tensor], Tensor]


def images(n: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, CHANNELS, HEIGHT, COLUMNS, generator=generator, dtype=torch.float64)


class OneOperation(nn.Module):
    """ReLU features of every pixel, an operation on them, and a readout of what it gives."""

    def __init__(self, operation: Operation, readout: str):
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, WIDTH, 1)
        self.operation = operation
        self.readout = readout
        self.last = nn.LazyLinear(1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.operation(torch.relu(self.first(x)))
        if self.readout == "flatten":
            return self.last(hidden.flatten(1))
        if self.readout == "mean":
            return self.last(hidden.flatten(2).mean(-1))
        return self.last(hidden.movedim(1, -1))


def kernels(operation: Operation, readout: str) -> KernelPair:
    """Kernels of `OneOperation` between two sets of images of differing size."""
    model = OneOperation(operation, readout).double().eval()
    model(images(1))
    return InfiniteKernel(model, images(), init=INIT).pair(images(), images(2, seed=1))


def hidden() -> tuple[Tensor, Tensor]:
    """NNGP and NTK of the ReLU features, each `(n1, n2, H, W, H, W)` (Cho and Saul 2009)."""
    x1, x2 = images(), images(2, seed=1)
    gram = torch.einsum("nchw,mcij->nmhwij", x1, x2)
    before = WEIGHT * gram / CHANNELS + BIAS
    own1, own2 = (WEIGHT * x.square().mean(1) + BIAS for x in (x1, x2))
    scale = (own1[:, None, :, :, None, None] * own2[None, :, None, None]).sqrt()
    theta = torch.acos((before / scale).clamp(-1, 1))
    slopes = (torch.pi - theta) / (2 * torch.pi)
    after = scale * torch.sin(theta) / (2 * torch.pi) + before * slopes
    return after, slopes * (gram + 1)


def on_both_sides(kernel: Tensor, operation: Operation) -> Tensor:
    """The covariance after a linear operation on images, from `(n1, n2, H, W, H, W)`."""
    for _ in range(2):  # on the last two dimensions, which change places with the two before
        done = operation(kernel.reshape(-1, 1, HEIGHT, COLUMNS))
        kernel = done.reshape(*kernel.shape[:-2], *done.shape[-2:]).permute(0, 1, 4, 5, 2, 3)
    return kernel


def expected(kernel: Tensor, ntk: Tensor, readout: str, fan_in: int = WIDTH) -> KernelPair:
    """The readout's kernels, from those of what it reads, `(n1, n2, H, W, H, W)`.

    Kernels have no dimension for positions of which there is one.
    """
    if readout == "all":
        places = [d for d in range(2, 6) if kernel.shape[d] == 1]
        kernel, ntk = kernel.squeeze(places), ntk.squeeze(places)
    elif readout == "flatten":
        places = kernel.shape[2] * kernel.shape[3]
        kernel, ntk = (torch.einsum("nmijij->nm", k) / places for k in (kernel, ntk))
        fan_in *= places
    elif readout == "mean":
        kernel, ntk = (k.mean((2, 3, 4, 5)) for k in (kernel, ntk))
    return KernelPair(WEIGHT * kernel + BIAS, fan_in * kernel + 1 + WEIGHT * ntk)


def assert_same(a: KernelPair, b: KernelPair) -> None:
    torch.testing.assert_close(a.nngp, b.nngp, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(a.ntk, b.ntk, rtol=1e-11, atol=1e-11)
