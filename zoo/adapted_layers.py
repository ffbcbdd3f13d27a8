"""What people do to a finished network: adapters, normalised weights, statistics of data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Adapter", "add_adapters", "normalise_weights", "with_statistics"]


class Adapter(nn.Module):
    """A frozen linear layer and a trainable product of low rank (Hu et al., 2022, eq. 3).

    Both factors are random here: at the usual start, with B = 0, A has no gradient.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.B = nn.Parameter(torch.randn(base.out_features, rank) / base.out_features**0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + x @ self.A.mT @ self.B.mT


def add_adapters(model: nn.Module, rank: int) -> nn.Module:
    """`model`, frozen, with an adapter in the place of each linear layer."""
    model.requires_grad_(False)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in linear:
        parent, _, child = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(model.get_submodule(parent), child, Adapter(layer, rank))
    return model


def normalise_weights(
    model: nn.Module, parametrization: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """`model` with a parametrization of the weights of its convolutions."""
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            parametrization(module)
    return model


def with_statistics(model: nn.Module, x: Tensor) -> nn.Module:
    """`model` with the statistics of a batch in its BatchNorms: at their start, mean zero and
    variance one, signals die out in deep networks and kernels hold little but the last bias.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches, here one
    with torch.no_grad():
        model.train()(x)
    return model.eval()
