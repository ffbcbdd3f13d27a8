"""Learning rates that differ from layer to layer.

Parameter groups g with learning rates eta_g move the outputs by

    d f / dt = -(1/n) sum_g eta_g K_g (f - y),      K_g = J_g J_g^T :

training with the kernel sum_g eta_g K_g and learning rate 1 (a diagonal preconditioner D of the
parameters gives J D J^T in the same way).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tangency.analysis.matrix import ArrayLike
from tangency.errors import InvalidInput

__all__ = ["weighted_kernel"]


def weighted_kernel(kernels: Mapping[str, ArrayLike], rates: Mapping[str, float]) -> Tensor:
    """The kernel sum_g rates[g] K_g of training with a learning rate for each layer.

    With it, and learning_rate=1, `GradientDescent`, `HeavyBall` and `Nesterov` match
    `torch.optim.SGD` with parameter groups of these rates, step for step, for a model that is
    linear in its parameters; weigh the test kernels by the same rates. The largest stable rate
    that they state is then a common factor for all rates. A `ridge` is the penalty
    ridge/(2n) sum_g |theta_g - theta_g0|^2 / rates[g], in whose metric such training moves:
    weight decay ridge / (n rates[g]) of group g.

    Args:
        kernels: layer -> (n1, n2) or (n1, n2, out, out), all alike, e.g. from
            `EmpiricalKernel(model, output="full").by_layer(x)`.
        rates: layer -> learning rate, for the same layers; zero freezes a layer.

    Raises:
        InvalidInput: no layers, layers in one of the two only, rates that are negative or not
            finite, all of them zero, or kernels of different shapes.
    """
    if not kernels or set(kernels) != set(rates):
        odd = sorted(set(kernels) ^ set(rates))
        raise InvalidInput(
            f"kernels and rates must name the same layers; only one of the two has {odd}."
            if kernels
            else "there are no kernels."
        )
    for name, rate in rates.items():
        if not (math.isfinite(rate) and rate >= 0):
            raise InvalidInput(f"the rate of {name!r} is {rate}, but must be zero or positive.")
    if not any(rates.values()):
        raise InvalidInput("all rates are zero: nothing is trained.")
    parts = {name: torch.as_tensor(kernel) for name, kernel in kernels.items()}
    shapes = {tuple(part.shape) for part in parts.values()}
    if len(shapes) > 1:
        raise InvalidInput(f"kernels of one network have one shape, got {sorted(shapes)}.")
    return torch.stack([rates[name] * part for name, part in parts.items()]).sum(dim=0)
