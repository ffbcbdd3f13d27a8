"""Per-example Jacobians of any module, by `torch.func` and by plain autograd."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tangency import examples
from tangency.empirical.entries import as_real, real_shape
from tangency.empirical.function import detached, evaluate
from tangency.examples import Examples

__all__ = ["by_autograd", "by_vmap"]


def by_autograd(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Examples, cotangents: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs (n, out) and Jacobians {name: (n, k, size)}, one example and one cotangent at a time;
    of complex parameters with real and imaginary parts as entries.

    `cotangents` (k, out) are pulled back to the module's own parameters: plain autograd, which
    needs no batching rule and sees parameters however the module reaches them. `.grad` is not
    touched. The function of example i is `model(x[i : i + 1])`.
    """
    n, k = examples.count(x), len(cotangents)
    jacobian = {
        name: as_real(parameter).new_zeros(n, k, real_shape(parameter).numel())
        for name, parameter in parameters.items()
    }
    outputs = []
    for i in range(n):
        output = evaluate(model, examples.take(x, slice(i, i + 1)))
        outputs.append(output.detach())
        if not (parameters and output.requires_grad):
            continue
        for j, cotangent in enumerate(cotangents):
            gradients = torch.autograd.grad(
                output,
                list(parameters.values()),
                cotangent[None],
                retain_graph=j + 1 < k,
                allow_unused=True,
            )
            for rows, gradient in zip(jacobian.values(), gradients, strict=True):
                if gradient is not None:
                    rows[i, j] = as_real(gradient.detach()).reshape(-1)
    return torch.cat(outputs), jacobian


def by_vmap(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Examples, cotangents: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same as `by_autograd` for all examples at once, by `torch.func.vmap` of `vjp`.

    Raises:
        RuntimeError: `torch.func` cannot transform the module (an operation without a batching
            rule, branches on data, ...).
    """
    leaves, structure = pytree.tree_flatten(x)
    is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
    values = detached(parameters)

    def one_example(*rows: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
        row = iter(rows)
        single = pytree.tree_unflatten(
            [
                next(row).unsqueeze(0) if tensor else leaf
                for leaf, tensor in zip(leaves, is_tensor, strict=True)
            ],
            structure,
        )
        results = torch.func.vjp(lambda free: evaluate(model, single, free).reshape(-1), values)
        output, pull = results[0], results[1]
        return output, [pull(cotangent)[0] for cotangent in cotangents]

    with warnings.catch_warnings():
        # Slow rules give exact results, and the user can do nothing about them.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        outputs, pulled = torch.func.vmap(one_example)(*examples.tensors(x))
    n = examples.count(x)
    jacobian = {
        name: torch.stack([as_real(row[name]).reshape(n, -1) for row in pulled], dim=1).detach()
        for name in values
    }
    return outputs.detach(), jacobian
