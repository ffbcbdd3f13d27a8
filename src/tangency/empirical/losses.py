"""Kernels of losses: gradients of l(f(x_i), y_i) in the parameters, example by example.

By the chain rule the gradient of a loss is that of c_i . f(x_i) with the weights
c_i = dl(f(x_i), y_i)/df held fixed. They take one pass forward and cost nothing beside a kernel;
the kernel is then one of `WeightedSum`, by the same fast paths as any other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.empirical.function import outputs
from tangency.empirical.outputs import Loss
from tangency.empirical.probe import first_output
from tangency.errors import InvalidInput
from tangency.examples import Examples

__all__ = ["of_one", "split", "value", "weighted"]

_BATCH = 32
"""Examples that go through the module together: enough to keep it busy, in little memory."""


def split(data: Examples) -> tuple[Examples, Examples]:
    """Inputs and targets.

    Raises:
        InvalidInput: `data` is not a pair.
    """
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise InvalidInput(
            "the kernel of a loss needs targets: data must be pairs (inputs, targets), "
            f"not a {type(data).__name__}."
        )
    return data[0], data[1]


def of_one(loss: Loss, value: Tensor, target: Examples) -> Tensor:
    """The loss of one example, a scalar: `value` is (1, *rest), `target` has a leading one too.

    Raises:
        InvalidInput: the loss is not one finite real number that depends on the outputs.
    """
    name = getattr(loss, "__name__", type(loss).__name__)
    try:
        result = loss(value, target)
    except Exception as error:
        shapes = [(tuple(t.shape), t.dtype) for t in examples.tensors(target)]
        raise InvalidInput(
            f"{name} does not run on the output {tuple(value.shape)} {value.dtype} of one example "
            f"and its target {shapes}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(result, Tensor) or result.numel() != 1:
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise InvalidInput(
            f"{name} gives {shape} for one example, but the loss of an example is one number: "
            'use reduction="mean" or "sum", or sum it yourself.'
        )
    if not result.requires_grad:
        raise InvalidInput(
            f"{name} does not depend on the outputs in a way that can be differentiated "
            "(an accuracy, argmax or detach)."
        )
    if not bool(torch.isfinite(result)):
        raise InvalidInput(
            f"{name} is NaN or infinite for an example: look for a target that is ignored or out "
            "of range, or for the logarithm of zero."
        )
    return result.reshape(())


def value(model: nn.Module, loss: Loss, x: Examples, targets: Examples) -> Tensor:
    """The loss of one example, shape (1,), with its graph. Raises as `of_one`."""
    return of_one(loss, _one(outputs(model, x)), targets).reshape(1)


def weighted(
    model: nn.Module, loss: Loss, x: Examples, targets: Examples, *, together: bool
) -> Examples:
    """Data (x, c, s) on which `WeightedSum` of `model` has the losses' values and gradients.

    Args:
        model: the module whose outputs the loss is of.
        loss: of one example.
        x: inputs.
        targets: of the same examples.
        together: whether examples may go through the module in a batch.

    Returns:
        `x`, the weights c (n, out) and the shift s (n, 1) in float32 at least.

    Raises:
        InvalidInput: as `of_one`, and where the module does not run.
    """
    first_output(model, x)
    weights, shifts = [], []
    n, size = examples.count(x), _BATCH if together else 1
    for start in range(0, n, size):
        batch = outputs(model, examples.take(x, slice(start, start + size))).detach()
        rows = batch.split(1) if min(size, n - start) > 1 else (_one(batch),)
        for i, row in enumerate(rows, start):
            leaf = row.clone().requires_grad_()
            result = of_one(loss, leaf, examples.take(targets, slice(i, i + 1)))
            (gradient,) = torch.autograd.grad(result, leaf)
            dtype = torch.promote_types(leaf.dtype, torch.float32)
            product = (gradient.to(dtype) * leaf.detach().to(dtype)).sum()
            weights.append(gradient.reshape(1, -1))
            shifts.append((result.detach().to(dtype) - product).reshape(1, 1))
    return x, torch.cat(weights), torch.cat(shifts)


def _one(value: Tensor) -> Tensor:
    """(1, *rest), also from a module that squeezes its output."""
    return value if value.dim() > 0 and value.shape[0] == 1 else value.unsqueeze(0)
