"""The least work of the kernel of a fully connected network with one output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["gram_products"]


def gram_products(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The products a a^T and g g^T over examples that each layer needs, and nothing else.

    For y = W a with cotangents g, the layer's part of the kernel is (a a^T) * (g g^T), elementwise.
    Inputs and cotangents are made beforehand (random), results go into one buffer, and what is
    returned is the last product.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    widths = [w for layer in layers for w in (layer.in_features, layer.out_features)]
    made: dict[int, list[Tensor]] = {}

    def kernel(x: Tensor) -> Tensor:
        n = len(x)
        if n not in made:
            made[n] = [torch.randn(n, w) for w in widths]
            made[n].append(torch.empty(n, n))
        *factors, result = made[n]
        for factor in factors:
            torch.mm(factor, factor.T, out=result)
        return result

    return kernel
