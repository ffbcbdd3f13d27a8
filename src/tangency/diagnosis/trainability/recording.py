"""Calls of layers and activations in a forward pass, and where activations are flat."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tangency.diagnosis.trainability.propagation import mean_correlation

__all__ = ["ACTIVATIONS", "FLAT", "Call", "Recorder"]

_ACTIVATIONS = """
    celu elu erf gelu hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish prelu relu relu6
    selu sigmoid silu sin softplus softsign special_erf tanh tanhshrink threshold
"""
ACTIVATIONS = frozenset(_ACTIVATIONS.split())
"""Functions whose slope is looked at, by name (with or without a final underscore)."""

FLAT = 0.05
"""An entry is saturated where the slope is below this part of the activation's steepest."""

CONSTANT = 1e-2
"""Range of a unit over examples, in units of the largest output, below which it says nothing."""

_SCALE = torch.linspace(-6, 6, 241)
"""Where the steepest slope of an activation is looked for."""


@dataclass(eq=False)
class Call:
    """A call of a layer: its outputs in the graph of autograd, and what must be read at once."""

    name: str
    kind: str
    output: Tensor
    parameters: tuple[str, ...]
    second_moment: float
    correlation: float
    saturated: float = math.nan
    dead: float = math.nan


class Recorder(TorchFunctionMode):
    """Calls of layers with parameters and of activations, under the names of their modules."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._path: list[tuple[str, bool]] = [("", False)]

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Record while `model` runs; its hooks are removed afterwards."""
        handles = []
        try:
            for name, module in model.named_modules():
                handles += [
                    module.register_forward_pre_hook(self._entering(name, _is_leaf(module))),
                    module.register_forward_hook(self._leaving(name), always_call=True),
                ]
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str, leaf: bool) -> Callable[..., None]:
        return lambda module, args: self._path.append((name, leaf))

    def _leaving(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            self._path.pop()
            mine = module.named_parameters(recurse=False)
            own = tuple(f"{name}.{n}".lstrip(".") for n, _ in mine)
            if (
                own
                and _is_leaf(module)
                and isinstance(output, Tensor)
                and output.is_floating_point()
            ):
                self._record(name or "model", type(module).__name__, output, own)

        return hook

    def _record(self, name: str, kind: str, output: Tensor, own: tuple[str, ...]) -> Call:
        h = output.detach().double().flatten(1)
        gram = h @ h.mT / h.shape[1]
        call = Call(
            name, kind, output, own, float(gram.diagonal().mean()), float(mean_correlation(gram))
        )
        self.calls.append(call)
        return call

    def _place(self, function: str) -> str:
        """The name of an activation: that of its module, or what it comes after."""
        name, leaf = self._path[-1]
        if leaf:
            return name or "model"
        return (
            f"{function} after {self.calls[-1].name}" if self.calls else f"{function} of the data"
        )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "").strip("_")
        x = args[0] if args else given.get("input")
        if name not in ACTIVATIONS or not isinstance(x, Tensor) or x.dim() < 2:
            return func(*args, **given)
        before = x.detach().clone()
        output = func(*args, **given)
        if isinstance(output, Tensor) and output.shape == before.shape:
            call = self._record(self._place(name), name, output, ())
            rest = {k: v for k, v in given.items() if k != "input"}
            # A copy, so that the slope of a function that writes over its input is known too.
            call.saturated, call.dead = _flat(lambda t: func(t.clone(), *args[1:], **rest), before)
        return output


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _flat(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """Fractions of entries where the slope is next to nothing, and of units that are dead.

    A dead unit is flat on every example and says the same about all of them; one that is saturated
    on both sides still tells them apart.
    """
    scale = _SCALE.to(x).reshape(-1, *[1] * (x.dim() - 1))
    grid = scale.expand(-1, x.shape[1], *scale.shape[2:])  # slopes may differ between channels
    flat = _slope(function, x) < FLAT * _slope(function, grid).max()
    y = function(x)
    low, high = (f(y.movedim(1, 0).flatten(1), dim=1) for f in (torch.amin, torch.amax))
    constant = high - low <= CONSTANT * y.abs().max()
    dead = flat.movedim(1, 0).flatten(1).all(dim=1) & constant
    return float(flat.double().mean()), float(dead.double().mean())


def _slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0].abs()
