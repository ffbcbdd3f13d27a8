"""Users' own activations: one function for the activation, one for its kernel."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tangency.errors import InvalidInput
from tangency.infinite.duals.activations import register_closed_form
from tangency.infinite.duals.closed import ClosedForm, KernelFunction
from tangency.infinite.duals.quadrature import gaussian_rule
from tangency.infinite.lowering import rule
from tangency.infinite.rules.pointwise import composite
from tangency.program.axis_rules import axis_rule
from tangency.program.axis_rules.elementwise import pointwise

__all__ = ["activation"]

Activation: TypeAlias = Callable[[Tensor], Tensor]

TOLERANCE = 1e-3
"""Relative difference between kernel and quadrature, which a kink of the activation may cause."""

_numbers = itertools.count()


def activation(kernel: KernelFunction) -> Callable[[Activation], Activation]:
    """Give an activation function its dual in closed form (a decorator).

    It is needed only for speed or accuracy: activations written in PyTorch operations have a
    numerical dual without it. The activation becomes an operation of its own, differentiable any
    number of times, for use in modules:

        @tangency.activation(lambda q1, q2, c: torch.exp(c - (q1 + q2) / 2))
        def fourier(x):
            return torch.sin(x) + torch.cos(x)

    Args:
        kernel: gives E[phi(u) phi(v)] for jointly Gaussian u, v of mean zero, from their variances
            q1, q2 and their covariance c: tensors that broadcast. Differentiable torch code.

    Raises:
        InvalidInput: `kernel` is not the kernel of the activation (checked by Gaussian quadrature
            at some variances), or the activation is not elementwise.
    """

    def decorate(function: Activation) -> Activation:
        _check(function, kernel)
        own = re.sub(r"\W", "_", function.__name__)  # a lambda has no name of its own
        name = f"tangency_activations::{own}_{next(_numbers)}"
        operation = _operation(name, function)
        axis_rule(name)(pointwise)
        rule(name)(composite)
        register_closed_form(name, lambda node: ClosedForm(kernel))
        return functools.wraps(function)(lambda x: operation(x))

    return decorate


def _operation(name: str, function: Activation) -> Callable[..., Any]:
    """The activation as one node of exported graphs."""

    def forward(x: Tensor) -> Tensor:
        return function(x).clone()  # an operation must not return its input

    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]
        return gradient * slope

    schema = "(Tensor x) -> Tensor"
    operation = torch.library.custom_op(name, forward, mutates_args=(), schema=schema)
    operation.register_fake(torch.empty_like)
    operation.register_autograd(
        backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
    )
    operation.register_vmap(lambda info, dims, x: (operation(x), dims[0]))
    return operation


def _check(function: Activation, kernel: KernelFunction) -> None:
    """Compare the kernel with quadrature at a few pairs of variances and correlations."""
    nodes, weights = gaussian_rule(torch.ones((), dtype=torch.float64))
    nodes, weights = nodes.flatten(), weights.flatten()
    for q1, q2, correlation in ((1.0, 1.0, 0.5), (0.5, 2.0, -0.3), (0.3, 0.3, 1.0)):
        u = q1**0.5 * nodes[:, None]
        v = q2**0.5 * (correlation * nodes[:, None] + (1 - correlation**2) ** 0.5 * nodes)
        if function(u).shape != u.shape:
            raise InvalidInput(f"activation: {function.__name__} changes the shape of its input.")
        expected = (weights[:, None] * weights * function(u) * function(v)).sum()
        size = (weights[:, None] * weights * (function(u) * function(v)).abs()).sum()
        c = correlation * (q1 * q2) ** 0.5
        given = kernel(*(torch.tensor(a, dtype=torch.float64) for a in (q1, q2, c)))
        if not bool((given - expected).abs() <= TOLERANCE * size):
            raise InvalidInput(
                f"activation: the kernel gives {float(given):.6g} for variances {q1}, {q2} and "
                f"covariance {c:.6g}, where E[phi(u) phi(v)] of {function.__name__} is "
                f"{float(expected):.6g} by quadrature."
            )
