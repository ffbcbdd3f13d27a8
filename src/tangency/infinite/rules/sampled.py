"""Operations without a closed form, executed on samples: max-pooling, softmax, sorting, ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.rules.normalization import affine_part
from tangency.infinite.sampling.arrangement import as_in_module, by_positions
from tangency.infinite.side import Side
from tangency.infinite.values.sampled import Sampled, SampledPointwise
from tangency.infinite.values.value import Value, to_positions
from tangency.program.operations import arguments, base_name

__all__ = ["channel_by_channel", "coordinatewise", "over_positions"]

Operation = Callable[..., Any]


def coordinatewise(
    lowering: Lowering,
    node: fx.Node,
    operands: Mapping[fx.Node, Value],
    operation: Operation,
    reason: str,
) -> Value:
    """A pointwise operation on values of several Gaussians."""
    lowering.need_samples(node, reason)
    positions: Positions = lowering.program.atoms(node, "position")
    order = list(operands)

    def function(side: Side, *parts: Tensor) -> Tensor:
        def operand(argument: fx.Node) -> Any:
            if argument in operands:
                part = parts[order.index(argument)]
                return to_positions(part, operands[argument].positions, positions)
            return lowering.constant(argument, side, positions)

        args, kwargs = map_arg((node.args, node.kwargs), operand)
        return cast(Tensor, operation(*args, **kwargs))

    return SampledPointwise(positions, list(operands.values()), function)


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "amax", "amin", "max", "min", "logsumexp", "prod", "softmax", "_softmax", "log_softmax",
    "_log_softmax", "sort", "topk", "cumprod", "logcumsumexp",
)  # fmt: skip
def over_positions(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Any operation that acts on each coordinate of the width by itself, across positions."""
    if base_name(node) != "getitem":
        call = _Call(node, cast(Operation, node.target), node.args, node.kwargs)
        return _executed(lowering, call, node, start, length)
    source, index = cast(tuple[fx.Node, int], node.args)
    if not node.meta["val"].is_floating_point():
        raise lowering.unsupported(source, "gives indices, which depend on random values")

    def one_result(*args: Any, **kwargs: Any) -> Any:
        return cast(Operation, source.target)(*args, **kwargs)[index]

    call = _Call(source, one_result, source.args, source.kwargs)
    return _executed(lowering, call, node, start, length)


@dataclass(frozen=True)
class _Call:
    """An operation with its arguments, nodes of the graph among them; `node` is for messages."""

    node: fx.Node
    operation: Operation
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def inputs(self) -> list[fx.Node]:
        found: list[fx.Node] = []
        map_arg((self.args, dict(self.kwargs)), found.append)
        return found


def _executed(lowering: Lowering, call: _Call, result: fx.Node, start: int, length: int) -> Value:
    """What a call makes of samples, one at a time; it has the shape of the node `result`.

    Arguments have the shapes that they have in the module, with a width of one.
    """
    lowering.need_samples(call.node, "has no closed form")
    operands = {n: lowering.strand(n, start, length) for n in call.inputs if lowering.random(n)}
    for n in call.inputs:
        if n not in operands and n in lowering.program.axes and lowering.width(n) != 1:
            reason = "is applied with data that differ along the width"
            raise lowering.unsupported(call.node, reason)
    order, program = list(operands), lowering.program

    def function(side: Side, *parts: Tensor) -> Tensor:
        def one_sample(*parts: Tensor) -> Tensor:
            def operand(argument: fx.Node) -> Any:
                if argument not in operands:
                    return side.concrete(argument)
                own = program.atoms(argument, "position")
                part = to_positions(parts[order.index(argument)], operands[argument].positions, own)
                return as_in_module(program, argument, side.full(part, own), side.count)

            args, kwargs = map_arg((call.args, dict(call.kwargs)), operand)
            return by_positions(program, result, call.operation(*args, **kwargs), side.count)

        return torch.vmap(one_sample)(*parts)

    return Sampled(program.atoms(result, "position"), list(operands.values()), function)


@rule("instance_norm")
def instance_norm(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """(u - m) / sqrt(v + eps) * scale + shift, with the mean m and variance v of every channel over
    its own positions (Ulyanov et al. 2016): random, however many channels there are.
    """
    given = arguments(node)
    if not given["use_input_stats"]:
        raise lowering.unsupported(
            node, "normalises by running statistics: write it as a BatchNorm in evaluation mode"
        )
    return channel_by_channel(lowering, node, start, length)


def channel_by_channel(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """A norm of every channel over its own positions, with the scale and shift of its node."""
    eps = cast(float, arguments(node)["eps"])

    def standardized(x: Tensor) -> Tensor:
        dims = list(range(2, x.dim()))
        return (x - x.mean(dims, keepdim=True)) / (x.var(dims, False, keepdim=True) + eps).sqrt()

    call = _Call(node, standardized, node.args[:1], {})
    value = _executed(lowering, call, node, start, length)
    site = lowering.program.sites.get(node)
    if site is None:
        return value
    return affine_part(lowering, site, value, lowering.program.axes[node][1:2], start, length)
