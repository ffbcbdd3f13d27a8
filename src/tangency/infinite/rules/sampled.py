"""Operations without a closed form, executed on samples: max-pooling, softmax, sorting, ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.sampling.arrangement import as_in_module, by_positions
from tangency.infinite.side import Side
from tangency.infinite.values.sampled import Sampled
from tangency.infinite.values.value import Value, to_positions
from tangency.program.operations import base_name

__all__ = ["coordinatewise", "over_positions"]

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

    return Sampled(positions, list(operands.values()), function)


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "amax", "amin", "max", "min", "logsumexp", "prod", "softmax", "_softmax", "log_softmax",
    "_log_softmax", "sort", "topk", "cumprod", "cummax", "cummin", "logcumsumexp", "median",
)  # fmt: skip
def over_positions(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Any operation that acts on each coordinate of the width by itself, across positions."""
    source, index = node, None
    if base_name(node) == "getitem":
        source, index = cast(tuple[fx.Node, int], node.args)
        if not node.meta["val"].is_floating_point():
            raise lowering.unsupported(source, "gives indices, which depend on random values")
    lowering.need_samples(source, "has no closed form")
    operands = {
        n: lowering.strand(n, start, length) for n in source.all_input_nodes if lowering.random(n)
    }
    for n in source.all_input_nodes:
        if n not in operands and n in lowering.program.axes and lowering.width(n) != 1:
            raise lowering.unsupported(source, "is applied with data that differ along the width")
    positions: Positions = lowering.program.atoms(node, "position")
    order, program = list(operands), lowering.program

    def function(side: Side, *parts: Tensor) -> Tensor:
        def one_sample(*parts: Tensor) -> Tensor:
            def operand(argument: fx.Node) -> Any:
                if argument not in operands:
                    return side.concrete(argument)
                own = program.atoms(argument, "position")
                part = to_positions(parts[order.index(argument)], operands[argument].positions, own)
                return as_in_module(program, argument, side.full(part, own), side.count)

            args, kwargs = map_arg((source.args, source.kwargs), operand)
            result = cast(Operation, source.target)(*args, **kwargs)
            chosen = cast(Tensor, result if index is None else result[index])
            return by_positions(program, node, chosen, side.count)

        return torch.vmap(one_sample)(*parts)

    return Sampled(positions, list(operands.values()), function)
