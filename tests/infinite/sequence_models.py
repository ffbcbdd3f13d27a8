"""Monte Carlo of whole modules: kernels of re-initialised networks, and their mean."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from tests.infinite.test_monte_carlo import allowed, distance
from torch import Tensor, nn

from tangency.examples import Examples, take
from tangency.infinite import InfiniteKernel, Init

WEIGHT, BIAS, TABLE = 1.7, 0.1, 0.8

Factory = Callable[[int, int], nn.Module]
"""A network of (width, outputs)."""


def initialisation(model: nn.Module) -> Init:
    """Second moments as `redraw` draws them."""
    tables = {
        f"{name}.weight" if name else "weight": TABLE
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    return Init(weight=WEIGHT, bias=BIAS, overrides=tables)


def redraw(model: nn.Module, generator: torch.Generator) -> None:
    """Fresh weights of variance WEIGHT / fan-in, tables TABLE, all other parameters BIAS.

    Norms keep their scale and shift; rows of padding stay zero.
    """
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            with torch.no_grad():
                parameter.normal_(
                    0, math.sqrt(_variance(module, name, parameter)), generator=generator
                )
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    parameter[module.padding_idx] = 0


def _variance(module: nn.Module, name: str, parameter: Tensor) -> float:
    if isinstance(module, nn.Embedding):
        return TABLE
    layer = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention))
    if layer and parameter.dim() > 1:
        return WEIGHT / parameter[0].numel()
    return BIAS


def ntk_by_autograd(model: nn.Module, x: Examples) -> Tensor:
    """NTK of a module's mean output, one example at a time."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for i in range(_count(x)):
        output = _call(model, take(x, slice(i, i + 1)))
        gradients = torch.autograd.grad(
            output.sum(), parameters, materialize_grads=True, allow_unused=True
        )
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def _count(x: Examples) -> int:
    return len(x) if isinstance(x, Tensor) else len(x[0])  # type: ignore[index]


def _call(model: nn.Module, x: Examples) -> Tensor:
    output: Tensor = model(x) if isinstance(x, Tensor) else model(*x)
    return output


def sampled_ntks(factory: Factory, width: int, samples: int, x: Examples) -> Tensor:
    """NTKs of independent initialisations, shape (samples, n, n)."""
    generator = torch.Generator().manual_seed(1)
    model = factory(width, 1).double().eval()
    draws = []
    for _ in range(samples):
        redraw(model, generator)
        draws.append(ntk_by_autograd(model, x))
    return torch.stack(draws)


def sampled_nngps(factory: Factory, width: int, samples: int, x: Examples) -> Tensor:
    """Mean over many outputs of f(x) f(x') for independent initialisations, (samples, n, n)."""
    generator = torch.Generator().manual_seed(2)
    model = factory(width, 256).double().eval()
    draws = []
    for _ in range(samples):
        redraw(model, generator)
        outputs = _call(model, x).detach()
        draws.append(outputs @ outputs.T / outputs.shape[1])
    return torch.stack(draws)


def limit(factory: Factory, width: int, x: Examples, **options: object) -> InfiniteKernel:
    """The limit kernel of the module with the moments that `redraw` gives it."""
    model = factory(width, 1).double()
    init = initialisation(model)
    return InfiniteKernel(model, x, init=init, dtype=torch.float64, **options)  # type: ignore[arg-type]


def agrees(draws: Tensor, exact: Tensor, most: float) -> bool:
    """Whether the mean of the draws is the exact kernel, within a bound of `most`."""
    bound = allowed(draws, exact)
    return float(distance(draws.mean(0), exact)) < bound < most
