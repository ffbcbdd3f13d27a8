"""The conjugate kernel: second moments of the values that the last layer is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from tangency import examples
from tangency.empirical.function import call
from tangency.empirical.probe import agree
from tangency.errors import InvalidInput
from tangency.examples import Examples

__all__ = ["conjugate_kernel"]

_BATCH = 32
"""Examples that go through the module together."""


def conjugate_kernel(
    model: nn.Module, x1: Examples, x2: Examples | None, layer: str | None, *, together: bool
) -> Tensor:
    """h(x1) . h(x2) / width with the input h of `layer`, shape (n1, n2).

    `together` says whether examples may go through the module in a batch. Products are accumulated
    in float32 at least; the result has the dtype of h.

    Raises:
        InvalidInput: there is no such layer, or it is not reached, or given no tensor.
    """
    layers = _layers(model, layer)
    first = _hidden(model, layers, x1, together)
    second = first if x2 is None else _hidden(model, layers, x2, together)
    _joined([first[:1], second[:1]])
    dtype = torch.promote_types(first.dtype, torch.float32)
    kernel = first.to(dtype) @ second.to(dtype).mT / first.shape[1]
    if x2 is None:
        kernel = (kernel + kernel.mT) / 2  # a product by a library need not be symmetric
    return kernel.to(first.dtype)


def _layers(model: nn.Module, layer: str | None) -> list[nn.Module]:
    """The modules whose last call counts."""
    named = dict(model.named_modules())
    if layer is not None and layer in named:
        return [named[layer]]
    found = {name: m for name, m in named.items() if isinstance(m, (nn.Linear, _ConvNd))}
    if layer is not None:
        known = ", ".join(found) or "none"
        raise InvalidInput(f"layer={layer!r} is no module; the linear layers are: {known}.")
    if not found:
        raise InvalidInput(
            f"{type(model).__name__} has no linear or convolutional layer: choose the module whose "
            "input is the last hidden layer, by its name, layer=."
        )
    return list(found.values())


def _hidden(model: nn.Module, layers: list[nn.Module], x: Examples, together: bool) -> Tensor:
    """Input of the last call of one of `layers` for each example, flattened, (n, size)."""
    n = examples.count(x)
    separable = together and _separable(model, layers, examples.take(x, slice(0, 3)))
    size = _BATCH if separable else 1
    batches = [examples.take(x, slice(i, i + size)) for i in range(0, n, size)]
    return _joined([_last_input(model, layers, batch) for batch in batches])


def _separable(model: nn.Module, layers: list[nn.Module], x: Examples) -> bool:
    """Whether the rows of a layer's input are the examples (tokens may come first)."""
    together = _last_input(model, layers, x)
    alone = [
        _last_input(model, layers, examples.take(x, slice(i, i + 1)))
        for i in range(examples.count(x))
    ]
    return agree(together, _joined(alone))


def _joined(inputs: list[Tensor]) -> Tensor:
    sizes = {value.shape[1] for value in inputs}
    if len(sizes) > 1:
        raise InvalidInput(
            "the last layer that is called, or the size of its input, differs from example to "
            f"example (sizes {sorted(sizes)}): choose a layer by its name, layer=."
        )
    return torch.cat(inputs)


def _last_input(model: nn.Module, layers: list[nn.Module], x: Examples) -> Tensor:
    seen: list[Tensor] = []
    n = examples.count(x)
    handles: list[RemovableHandle] = []
    try:
        handles += [m.register_forward_pre_hook(_keep(seen), with_kwargs=True) for m in layers]
        call(model, x)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise InvalidInput(
            "no linear or convolutional layer is called as a module, or not the one that was asked "
            "for: choose one that is, by its name, layer=."
        )
    hidden = seen[-1]
    if not hidden.is_floating_point():
        raise InvalidInput(
            f"the layer is given {hidden.dtype} and no hidden values: choose one further up, by "
            "its name, layer=."
        )
    return hidden.reshape(n, -1)


def _keep(seen: list[Tensor]) -> Callable[..., None]:
    """A hook that keeps a copy (operations in place may follow) of the last input."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        seen[:] = [value.detach().clone() for value in given[:1]]

    return hook
