"""Parameters that meet the data entry by entry, with broadcasting: norms, scales, shifts.

The gradient is the cotangent, times what the parameter is multiplied by, summed over all that the
parameter is broadcast to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

from tangency.empirical.gradients import Explicit, Gradients
from tangency.empirical.passage import Order, Passage, batch_axis
from tangency.empirical.sites.registry import Site, bias_site, site_rule
from tangency.program.operations import arguments

PRODUCT_BYTES = 2**22
"""Bytes of products that exist before they are summed: they stay in the cache."""

_STATISTICS = ("running_mean", "running_var")

_CHANNELS = 3
"""Where channels stand after (examples, cotangents, what is left of the batch)."""


@site_rule("batch_norm", "group_norm", "layer_norm", "rms_norm")
def norm(node: fx.Node, parameter: fx.Node) -> Site | None:
    """Scale and shift of normalised values."""
    given = arguments(node)
    roles = [name for name in ("input", "weight", "bias") if given.get(name) is parameter]
    value = cast(fx.Node, given["input"])
    axis, dim = batch_axis(node), _dim(node)
    if len(roles) != 1 or roles == ["input"] or axis is None or batch_axis(value) != axis:
        return None
    if given.get("training") or any(given.get(name) is parameter for name in _STATISTICS):
        return None
    shape = parameter.meta["val"].shape
    # Channels stand in dimension 1, or the normalised dimensions last.
    first = dim - len(shape) if "normalized_shape" in given else 1
    if axis >= first and (axis < first + len(shape)):
        return None
    if roles == ["bias"] and len(shape) == 1:
        return bias_site(node, first)
    if roles == ["bias"]:
        return _summed_site(node, (), first, len(shape), None)
    read = [value, *(n for n in map(given.get, _STATISTICS) if isinstance(n, fx.Node))]

    def normalised(passage: Passage, order: Order) -> Tensor:
        def argument(name: str) -> Any:
            chosen = given[name]
            return passage.values[chosen] if isinstance(chosen, fx.Node) else chosen

        without = {name: None if name in ("weight", "bias") else argument(name) for name in given}
        found: Tensor = cast(Callable[..., Tensor], node.target)(**without)
        return passage.split(found, node, order)

    return _summed_site(node, tuple(read), first, len(shape), normalised)


@site_rule("add", "sub", "expand")
def shift(node: fx.Node, parameter: fx.Node) -> Site | None:
    """A tensor of parameters added to the data, or repeated for every example."""
    given = arguments(node)
    operands = [given.get(name) for name in ("self", "other")]
    if operands.count(parameter) != 1 or not _broadcast(node, parameter):
        return None
    is_second = operands[1] is parameter
    factor = given.get("alpha", 1) if is_second else 1
    if not isinstance(factor, (int, float)):
        return None
    sign = -factor if is_second and node.target is torch.ops.aten.sub.Tensor else factor

    def gradient(passage: Passage, order: Order) -> Gradients:
        summed = _sum_to(passage.cotangents_of(node, order), _shape(parameter))
        return Explicit((summed if sign == 1 else sign * summed)[None])

    return Site(node, "sum of cotangents", (), gradient)


@site_rule("mul")
def scale(node: fx.Node, parameter: fx.Node) -> Site | None:
    """A tensor of parameters that multiplies the data."""
    given = arguments(node)
    operands = [given.get(name) for name in ("self", "other")]
    if operands.count(parameter) != 1 or not _broadcast(node, parameter):
        return None
    value = operands[0] if operands[1] is parameter else operands[1]
    if not isinstance(value, fx.Node) or batch_axis(value) != batch_axis(node):
        return None
    if _dim(value) != _dim(node):
        return None

    def gradient(passage: Passage, order: Order) -> Gradients:
        cotangents, values = passage.cotangents_of(node, order), passage.of(value, order)
        return Explicit(
            _products(cotangents, values, lambda v: _sum_to(v, _shape(parameter)))[None]
        )

    return Site(node, "sum of products", (value,), gradient)


@site_rule("prelu")
def leaky(node: fx.Node, parameter: fx.Node) -> Site | None:
    """Slopes of negative values: one for all, or one for each channel."""
    given = arguments(node)
    value, slopes = cast(fx.Node, given["self"]), _shape(parameter).numel()
    if given["weight"] is not parameter or value is parameter or batch_axis(node) is None:
        return None
    if slopes > 1 and batch_axis(node) == 1:
        return None

    def gradient(passage: Passage, order: Order) -> Gradients:
        cotangents = passage.cotangents_of(node, order)
        negative = passage.of(value, order).clamp_max(0)
        return Explicit(_products(cotangents, negative, summed)[None])

    def summed(values: Tensor) -> Tensor:
        """(n, k, *shape) over all dimensions but that of channels, the second of a batch."""
        if slopes == 1:
            return values.flatten(2).sum(2, keepdim=True)
        return values.sum([d for d in range(2, values.dim()) if d != _CHANNELS])

    return Site(node, "sum of products", (value,), gradient)


def _summed_site(
    node: fx.Node,
    read: tuple[fx.Node, ...],
    first: int,
    count: int,
    factor: Callable[[Passage, Order], Tensor] | None,
) -> Site:
    """A parameter along `count` dimensions of the result from `first` on, times `factor`."""

    def summed(values: Tensor) -> Tensor:
        """(n, k, *shape) over all other dimensions."""
        others = [d for d in range(2, values.dim()) if not 0 <= d - 2 - first < count]
        return (values.sum(others) if others else values).flatten(2)

    def gradient(passage: Passage, order: Order) -> Gradients:
        cotangents = passage.cotangents_of(node, order)
        if factor is None:
            return Explicit(summed(cotangents)[None])
        return Explicit(_products(cotangents, factor(passage, order), summed)[None])

    return Site(node, "sum of products" if factor else "sum of cotangents", read, gradient)


def _products(cotangents: Tensor, values: Tensor, summed: Callable[[Tensor], Tensor]) -> Tensor:
    """Sums of cotangents (n, k, *shape) times values (n, *shape), some examples at a time."""
    each = cotangents[0].numel() * cotangents.element_size()
    step = max(1, PRODUCT_BYTES // max(1, each))
    parts = zip(cotangents.split(step), values.split(step), strict=True)
    # Half precision is accumulated in float32, as all products are.
    wide = torch.promote_types(cotangents.dtype, torch.float32)
    return torch.cat([summed(g.to(wide) * v[:, None]) for g, v in parts])


def _sum_to(values: Tensor, shape: torch.Size) -> Tensor:
    """(n, k, *result) summed to a shape that is broadcast to the result: (n, k, size)."""
    lead = values.dim() - len(shape)
    ones = [lead + d for d, size in enumerate(shape) if size == 1 and values.shape[lead + d] != 1]
    others = [*range(2, lead), *ones]
    return (values.sum(others, keepdim=True) if others else values).flatten(2)


def _broadcast(node: fx.Node, parameter: fx.Node) -> bool:
    """Whether a parameter is the same for all examples: broadcast along the batch."""
    axis, shape = batch_axis(node), _shape(parameter)
    if axis is None:
        return False
    at = axis - (_dim(node) - len(shape))
    return at < 0 or shape[at] == 1


def _shape(node: fx.Node) -> torch.Size:
    return cast(Tensor, node.meta["val"]).shape


def _dim(node: fx.Node) -> int:
    return cast(Tensor, node.meta["val"]).dim()
