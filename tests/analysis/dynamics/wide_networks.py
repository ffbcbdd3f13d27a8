"""Many wide networks trained side by side, each from its own start: nothing but matrix products."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import tangency as tg

WEIGHT, BIAS = 1.5, 0.1


def module(width: int, inputs: int) -> nn.Module:
    """One of the networks, whose moments the kernels are told."""
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 1))


def kernel(width: int, x: Tensor) -> tg.InfiniteKernel:
    """In the standard parametrisation, with the widths that there are."""
    return tg.InfiniteKernel(
        module(width, x.shape[1]).double(), x[:2], init=tg.Init(weight=WEIGHT, bias=BIAS)
    )


class Networks:
    """`count` networks f(x) = tanh(x W + b) v + c of their own."""

    def __init__(self, count: int, width: int, inputs: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, moment: float) -> Tensor:
            values = torch.randn(count, *shape, generator=generator) * moment**0.5
            return values.requires_grad_()

        self.parameters = [
            normal(inputs, width, moment=WEIGHT / inputs),
            normal(1, width, moment=BIAS),
            normal(width, 1, moment=WEIGHT / width),
            normal(1, 1, moment=BIAS),
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """(count, n)"""
        W, b, v, c = self.parameters
        return (torch.baddbmm(b, x.expand(len(W), *x.shape), W).tanh() @ v + c)[..., 0]

    def train(self, x: Tensor, y: Tensor, rate: float, steps: int, **sgd: object) -> Iterator[int]:
        """Full-batch SGD of each of them; yields before every step, and at the end."""
        optimizer = torch.optim.SGD(self.parameters, lr=rate, **sgd)
        for step in range(steps):
            yield step
            optimizer.zero_grad()
            # A sum over networks, which do not meet, of the mean loss of each.
            ((self(x) - y).square().sum() / (2 * len(y))).backward()
            optimizer.step()
        yield steps
