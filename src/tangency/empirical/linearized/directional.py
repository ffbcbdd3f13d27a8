"""Directional derivatives of all that a module returns, in its parameters, along one direction.

In forward mode, to any order; or, to first order, through autograd alone: J v as the derivative of
J^T u in u, or output by output. Which one serves a module is found out by trying.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tangency.empirical.entries import as_parameter, as_real
from tangency.empirical.linearized.calls import Call, Returned
from tangency.empirical.matrix_free.attention import elementary_attention
from tangency.empirical.matrix_free.products import ParameterVectors, agree, trial_vectors
from tangency.errors import InvalidInput, UnsupportedOperation

__all__ = ["Expansion", "expansion"]

Expansion: TypeAlias = Callable[[Call, int], Returned]
"""The Taylor polynomial of a degree at the displacement of a call."""

_Push: TypeAlias = Callable[
    [Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]
]
"""From outputs, parameters and a direction in them to the derivatives of the outputs."""


def expansion(call: Call, degree: int) -> Expansion:
    """The fastest way to expand a module that autograd confirms at the arguments of `call`.

    Raises:
        InvalidInput: the module returns no real tensor.
        UnsupportedOperation: there is none, or a `torch.func` transformation is under way.
    """
    if torch._C._are_functorch_transforms_active():
        raise UnsupportedOperation(
            f"the expansion of {type(call.network).__name__} is checked at its first call, for "
            "which a torch.func transformation (vmap, jacrev, ...) leaves no room: call it once "
            "on data before."
        )
    with torch.inference_mode(False), torch.enable_grad():
        call = call.detached()
        reason = ""
        for way in _FORWARD + (_REVERSE if degree == 1 else ()):
            # Within the same context, so that rounding does not switch a ReLU on one side only.
            with way.context():
                reason = _objection(way.expand, call, degree, _gradients(call))
            if not reason:
                return way
    advice = "; tangency.linearize(model) is possible." if degree > 1 else "."
    raise UnsupportedOperation(
        f"{type(call.network).__name__} cannot be expanded to degree {degree}: {reason}{advice}"
    )


def _gradients(call: Call) -> ParameterVectors:
    """Of w . f, with w as in `_weighted`, in the parameters to expand in: (1, *shape) each."""
    returned, parameters = call.run_own()
    if not returned.real:
        raise InvalidInput(
            f"{type(call.network).__name__} returns no real tensor, so there is nothing to "
            "differentiate."
        )
    total = _weighted(returned.real)
    if not total.requires_grad:
        zeros = {name: torch.zeros_like(value) for name, value in call.initial.items()}
        return {name: as_real(zero)[None] for name, zero in zeros.items()}
    pulled = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return {name: as_real(g.detach())[None] for name, g in zip(call.initial, pulled, strict=True)}


def _weighted(outputs: Sequence[Tensor]) -> Tensor:
    """w . f for fixed weights w, a scalar."""
    parts = []
    for output in outputs:
        weights = torch.arange(output.numel(), device=output.device).double().cos()
        parts.append((output.flatten() * weights.to(output.dtype)).double().sum())
    return torch.stack(parts).sum()


def _objection(expand: Expansion, call: Call, degree: int, expected: ParameterVectors) -> str:
    """Why `expand` does not serve the module; nothing if it does."""
    vectors, products = trial_vectors(expected)
    dtype = next(iter(expected.values())).dtype
    moves = [
        {name: as_parameter(v[i], call.initial[name]) for name, v in vectors.items()}
        for i in range(2)
    ]
    still = {name: torch.zeros_like(value) for name, value in call.initial.items()}
    try:
        start, pulled = _value_and_gradients(expand, replace(call, displacement=still), 1)
        ends = [_value_and_gradients(expand, replace(call, displacement=m), 1)[0] for m in moves]
        if degree > 1:
            _value_and_gradients(expand, call, degree)
    except Exception as error:
        # The module has been seen to run and differentiate: it is this way that fails.
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    whole = float(torch.stack([g.double().norm() for g in expected.values()]).norm())
    right = [
        agree(as_real(g), expected[name][0].double(), dtype, floor=whole)
        for name, g in pulled.items()
    ]
    if all(right) and agree(torch.stack(ends)[:, None] - start, products, dtype):
        return ""
    return (
        "its derivatives in forward mode are not those of autograd (torch.no_grad in forward, a "
        "backward pass of its own, a parameter kept in two places)"
    )


def _value_and_gradients(
    expand: Expansion, call: Call, degree: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """w . f of the expanded module, and its gradients in the displacement."""
    moved = {name: v.detach().clone().requires_grad_() for name, v in call.displacement.items()}
    total = _weighted(expand(replace(call, displacement=moved), degree).real)
    pulled = torch.autograd.grad(
        total, list(moved.values()), allow_unused=True, materialize_grads=True
    )
    return total.detach(), dict(zip(moved, pulled, strict=True))


def _forward_mode(call: Call, degree: int) -> Returned:
    layouts = []

    def run(values: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        returned = call.run(values)
        layouts.append(returned.layout)
        return returned.real, returned.other

    series, other = _series(run, dict(call.initial), dict(call.displacement), degree)
    terms = [[t / math.factorial(k) for t in term] for k, term in enumerate(series)]
    real = tuple(torch.stack(leaf).sum(dim=0) for leaf in zip(*terms, strict=True))
    return Returned(real, other, layouts[0])


def _series(
    run: Callable[[dict[str, Tensor]], Any],
    values: dict[str, Tensor],
    direction: dict[str, Tensor],
    order: int,
) -> tuple[tuple[tuple[Tensor, ...], ...], tuple[Tensor, ...]]:
    """`run` at `values` and its directional derivatives up to `order`; and what has none."""
    if order == 0:
        real, other = run(values)
        return (real,), other
    results: Any = torch.func.jvp(
        lambda v: _series(run, v, direction, order - 1), (values,), (direction,), has_aux=True
    )
    lower, derivatives, other = results
    return (*lower, derivatives[-1]), other


class _Affine(torch.autograd.Function):
    """f + J v as a function of v, whose gradient is J^T u: exact by autograd alone."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, push: _Push, returned: list[Returned], *direction: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.call = call
        with torch.inference_mode(False), torch.enable_grad():
            value, parameters = call.run_own()
            products = push(value.real, parameters, [v.detach() for v in direction])
        returned.append(value)
        return tuple(f.detach() + p for f, p in zip(value.real, products, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            value, parameters = ctx.call.run_own()
            reached = [
                (f, u) for f, u in zip(value.real, cotangents, strict=True) if f.requires_grad
            ]
            if not reached:
                return None, None, None, *map(torch.zeros_like, parameters)
            pulled = torch.autograd.grad(
                [f for f, _ in reached],
                parameters,
                [u for _, u in reached],
                allow_unused=True,
                materialize_grads=True,
            )
        return None, None, None, *pulled


@dataclass(frozen=True)
class _ThroughAutograd:
    """The linearised module with J v from `push`."""

    push: _Push

    def __call__(self, call: Call, degree: int) -> Returned:
        if call.has_differentiable_arguments():
            raise UnsupportedOperation(
                f"{type(call.network).__name__} has no derivatives in forward mode, so that its "
                "linearised module has none in its inputs: detach them."
            )
        returned: list[Returned] = []
        apply: Callable[..., tuple[Tensor, ...]] = _Affine.apply
        real = apply(call, self.push, returned, *call.displacement.values())
        return replace(returned[0], real=real)


def _twice(
    outputs: Sequence[Tensor], parameters: Sequence[Tensor], direction: Sequence[Tensor]
) -> list[Tensor]:
    """J v as the derivative of (J^T u) . v, which is linear in u."""
    u = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    reached = [(f, w) for f, w in zip(outputs, u, strict=True) if f.requires_grad]
    if not reached:
        return [torch.zeros_like(output) for output in outputs]
    pulled = torch.autograd.grad(
        [f for f, _ in reached],
        parameters,
        [w for _, w in reached],
        create_graph=True,
        allow_unused=True,
    )
    pairs = [
        (g, v) for g, v in zip(pulled, direction, strict=True) if g is not None and g.requires_grad
    ]
    if not pairs:
        return [torch.zeros_like(output) for output in outputs]
    return list(
        torch.autograd.grad(
            [g for g, _ in pairs],
            u,
            [v for _, v in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
    )


def _output_by_output(
    outputs: Sequence[Tensor], parameters: Sequence[Tensor], direction: Sequence[Tensor]
) -> list[Tensor]:
    """J v from the gradients of every single output."""

    def product(output: Tensor) -> Tensor:
        if not output.requires_grad:
            return torch.zeros_like(output)
        pulled = torch.autograd.grad(
            output, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        pairs = zip(map(as_real, pulled), map(as_real, direction), strict=True)
        return torch.stack([(g * v).sum() for g, v in pairs]).sum()

    return [
        torch.stack([product(single) for single in output.flatten()]).view_as(output)
        for output in outputs
    ]


@dataclass(frozen=True)
class _Way:
    """An expansion, computed within a context."""

    expand: Expansion
    context: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self, call: Call, degree: int) -> Returned:
        with self.context():
            return self.expand(call, degree)


_FORWARD = (_Way(_forward_mode), _Way(_forward_mode, elementary_attention))
_REVERSE = (
    _Way(_ThroughAutograd(_twice)),
    _Way(_ThroughAutograd(_twice), elementary_attention),
    _Way(_ThroughAutograd(_output_by_output)),
)
"""The fastest first; the last one serves every module."""
