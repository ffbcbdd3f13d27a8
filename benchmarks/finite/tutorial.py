"""The empirical NTK of the PyTorch tutorial, by its two ways.

https://docs.pytorch.org/tutorials/intermediate/neural_tangent_kernels.html, for one set of
examples: where the tutorial would compute the Jacobian of the same examples twice, it is computed
once here, which halves its time and memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from finite.cases import Layout

__all__ = ["WAYS", "jacobian_contraction", "ntk_vector_products"]

Function = Callable[[dict[str, Tensor], Tensor], Tensor]


def function_of_one(model: nn.Module) -> tuple[Function, dict[str, Tensor]]:
    """f(parameters, one example) -> (out,), and the parameters."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def function(values: dict[str, Tensor], x: Tensor) -> Tensor:
        outputs: Tensor = functional_call(model, values, (x.unsqueeze(0),)).squeeze(0)
        return outputs

    return function, parameters


def jacobian_contraction(model: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """Per-example Jacobians of all parameters, then their products, summed over parameters."""
    function, parameters = function_of_one(model)
    jacobian = vmap(jacrev(function), (None, 0))(parameters, x)
    flat = [j.flatten(2) for j in jacobian.values()]
    del jacobian
    equation = {"full": "Naf,Mbf->NMab", "trace": "Naf,Maf->NM"}[layout]
    total: Tensor = torch.stack([torch.einsum(equation, j, j) for j in flat]).sum(0)
    return total / flat[0].shape[1] if layout == "trace" else total


def ntk_vector_products(model: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """For each pair, a pass backward and one forward for every unit vector of outputs."""
    function, parameters = function_of_one(model)

    def pair(x1: Tensor, x2: Tensor) -> Tensor:
        outputs, back = vjp(lambda values: function(values, x1), parameters)

        def product(cotangent: Tensor) -> Tensor:
            (gradient,) = back(cotangent)
            pushed: Tensor = jvp(lambda values: function(values, x2), (parameters,), (gradient,))[1]
            return pushed

        return vmap(product)(torch.eye(len(outputs)))

    kernel = vmap(vmap(pair, (None, 0)), (0, None))(x, x)
    if layout == "full":
        return kernel
    # The tutorial's sum over outputs, as a mean.
    return torch.einsum("NMKK->NM", kernel) / kernel.shape[-1]


WAYS: dict[str, Callable[[nn.Module, Tensor, Layout], Tensor]] = {
    "jacobian": jacobian_contraction,
    "vectors": ntk_vector_products,
}
"""By the name of their side."""
