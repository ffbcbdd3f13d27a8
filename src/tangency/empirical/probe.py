"""Three examples on which every fast path is held against plain autograd before it is used.

A recorded graph can differ from its module in ways that the graph does not show: a custom backward
pass, `torch.no_grad` inside `forward` and hooks on gradients are not recorded, and a batch
dimension merged with positions can be split in two ways. So each path must reproduce, for each
parameter, sum_i c_i d(w . f(x_i))/d(parameter) of the module itself, one example at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from tangency import examples
from tangency.empirical.entries import as_real
from tangency.empirical.function import evaluate, user_module
from tangency.empirical.jacobian import by_autograd
from tangency.empirical.randomness import PASSES, drawn, refusal
from tangency.errors import InvalidInput, TangencyError
from tangency.examples import Examples

__all__ = ["Probe", "agree", "first_output", "make", "three"]

_COEFFICIENTS = (1.0, -0.7, 0.4)


@dataclass(frozen=True)
class Probe:
    """Three examples and what the module itself says of them.

    Attributes:
        x: the examples.
        outputs: (3, out), each example evaluated alone.
        batch: outputs of the three together; None where the module takes only one at a time.
        cotangents: w, shape (2, out): two, so that the ways of pulling back several are seen; one
            for a single output.
        reference: parameter -> sum_i c_i d(w . f(x_i))/d(parameter), flattened: (2, size).
        custom_backward: whether the module's autograd graph holds a user's `autograd.Function`.
        dtype: in which the module rounds: of its outputs, or a coarser one that it passes through.
    """

    x: Examples
    outputs: Tensor
    batch: Tensor | None
    cotangents: Tensor
    reference: dict[str, Tensor]
    custom_backward: bool
    dtype: torch.dtype

    def confirms_outputs(self, outputs: Tensor) -> bool:
        """Whether `outputs` (3, out) are those of the examples alone."""
        return agree(outputs, self.outputs, dtype=self.dtype)

    def confirms(self, name: str, gradients: Tensor) -> bool:
        """Whether gradients (3, k, size) of the examples, for the first k w, give the reference."""
        coefficients = gradients.new_tensor(_COEFFICIENTS)
        total = torch.einsum("i,ikd->kd", coefficients, gradients)
        reference = self.reference[name][: len(total)]
        return agree(total, reference, floor=self.size, dtype=self.dtype)

    @cached_property
    def size(self) -> float:
        """Norm of the whole reference."""
        return math.hypot(*(float(value.double().norm()) for value in self.reference.values()))


def agree(
    value: Tensor, reference: Tensor, floor: float = 0.0, dtype: torch.dtype | None = None
) -> bool:
    """Equal but for rounding; wrong paths differ by far more than half of the digits.

    `floor` is the scale whose rounding counts too (a gradient that is zero but for rounding),
    `dtype` what is rounded to, where that is not the one of the reference.
    """
    epsilon = torch.finfo(dtype or reference.dtype).eps
    half = epsilon**0.5
    allowed = half * float(reference.norm()) + min(64 * epsilon, half) * floor
    return value.shape == reference.shape and float((value - reference).norm()) <= allowed


def make(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x1: Examples, x2: Examples | None
) -> Probe:
    """Run `model` on three of the user's examples, alone and together.

    Raises:
        InvalidInput: the module does not run on them, returns NaN or infinity, is random, or cannot
            be differentiated.
    """
    x = three(x1, x2)
    first, random = drawn(lambda: first_output(model, x))
    if not bool(torch.isfinite(first).all()):
        raise InvalidInput(
            f"{type(user_module(model)).__name__} returns NaN or infinite values for finite data: "
            "look for a parameter or a buffer that is not finite, or for an overflow."
        )
    count = first.shape[1]
    places = torch.arange(1, count + 1, device=first.device).to(torch.float64)
    cotangents = torch.stack([places.cos(), places.sin()][:count]).to(first.dtype)
    outputs = _alone(model, x)
    if not agree(outputs[:1], first.detach()) or (random and _varies(model, x, outputs)):
        raise refusal(user_module(model), partial(_alone, model, x), agree, random=random)
    batch = _together(model, x)
    try:
        reference = _reference(model, parameters, x, cotangents, outputs, batch)
    except TangencyError:
        raise
    except Exception as error:
        raise InvalidInput(
            f"{type(user_module(model)).__name__} runs, but autograd cannot differentiate it: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    custom = _has_custom_backward(first)
    return Probe(x, outputs, batch, cotangents, reference, custom, first.dtype)


def _reference(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    x: Examples,
    cotangents: Tensor,
    outputs: Tensor,
    batch: Tensor | None,
) -> dict[str, Tensor]:
    """sum_i c_i d(w . f(x_i))/d(parameter).

    In one batch where that gives the same outputs, since then a recorded graph rounds alike: one
    unit that a rounding error carries across the kink of a ReLU changes single gradients by more
    than all rounding errors do.
    """
    coefficients = cotangents.new_tensor(_COEFFICIENTS)
    if batch is not None and agree(batch, outputs):
        both = cotangents[:, None] * coefficients[:, None]
        return _pulled(parameters, evaluate(model, x), both)
    _, jacobian = by_autograd(model, parameters, x, cotangents)
    return {
        name: torch.einsum("i,ikd->kd", coefficients.to(rows.dtype), rows)
        for name, rows in jacobian.items()
    }


def _pulled(
    parameters: Mapping[str, nn.Parameter], outputs: Tensor, cotangents: Tensor
) -> dict[str, Tensor]:
    """Gradients in the parameters, flattened, for cotangents (k, *shape of the outputs)."""
    tensors = list(parameters.values())
    rows: list[list[Tensor]] = [[] for _ in tensors]
    for cotangent in cotangents:
        found: Sequence[Tensor | None] = [None] * len(tensors)
        if tensors and outputs.requires_grad:
            found = torch.autograd.grad(
                outputs, tensors, cotangent, retain_graph=True, allow_unused=True
            )
        for row, p, gradient in zip(rows, tensors, found, strict=True):
            whole = torch.zeros_like(p) if gradient is None else gradient.detach()
            row.append(as_real(whole).flatten())
    return {name: torch.stack(row) for name, row in zip(parameters, rows, strict=True)}


def _varies(model: nn.Module, x: Examples, outputs: Tensor) -> bool:
    """Whether the random numbers that a module draws ever change an output."""
    return any(not agree(_alone(model, x), outputs) for _ in range(PASSES))


def _alone(model: nn.Module, x: Examples) -> Tensor:
    """Outputs of the examples, each evaluated alone."""
    rows = [slice(i, i + 1) for i in range(examples.count(x))]
    return torch.cat([evaluate(model, examples.take(x, row)).detach() for row in rows])


def three(x1: Examples, x2: Examples | None) -> Examples:
    """First and middle example of `x1`, last one of `x2` (or of `x1`)."""
    last = x1 if x2 is None else x2
    end, middle = examples.count(last), examples.count(x1) // 2
    pieces = [
        examples.take(x1, slice(0, 1)),
        examples.take(x1, slice(middle, middle + 1)),
        examples.take(last, slice(end - 1, end)),
    ]
    return examples.concatenate(examples.concatenate(pieces[0], pieces[1]), pieces[2])


def first_output(model: nn.Module, x: Examples) -> Tensor:
    """The output of the first of the examples, (1, out).

    Raises:
        InvalidInput: the module does not run on it.
    """
    try:
        return evaluate(model, examples.take(x, slice(0, 1)))
    except TangencyError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{tuple(t.shape[1:])} {t.dtype}" for t in examples.tensors(x))
        kinds = {str(p.dtype) for p in model.parameters()}
        name = type(user_module(model)).__name__
        raise InvalidInput(
            f"{name} does not run on an example of the data ({shapes}; "
            f"the module's parameters are {', '.join(sorted(kinds)) or 'none'}): "
            f"{type(error).__name__}: {error}"
        ) from error


def _together(model: nn.Module, x: Examples) -> Tensor | None:
    try:
        return evaluate(model, x).detach()
    except TangencyError:
        raise
    except Exception:
        # A module that branches on its data runs on one example at a time only.
        return None


def _has_custom_backward(output: Tensor) -> bool:
    """Whether a Python `autograd.Function` stands in the graph behind `output`."""
    seen: set[object] = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, BackwardCFunction):
            return True
        seen.add(node)
        waiting.extend(parent for parent, _ in node.next_functions)
    return False
