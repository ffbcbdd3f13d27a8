"""Records the dual of a piecewise linear function of two Gaussians as one operation."""

from __future__ import annotations

import torch
from torch import Tensor

from tangency.infinite.duals.two_gaussians_piecewise import (
    RAY_NUMBERS,
    SIDE_NUMBERS,
    PiecewiseLinearOfTwo,
)
from tangency.infinite.fused.graph import Kind, Node, NotFusable
from tangency.infinite.fused.trace import Traced, merged_labels, traced
from tangency.infinite.fused.two_gaussians import OfTwo
from tangency.infinite.layout import Layout, Which
from tangency.infinite.pairs import Pairs
from tangency.infinite.values.composite_of_two import CompositeOfTwo

__all__ = ["traced_pair_of_two"]


def traced_pair_of_two(
    versine1: Tensor,
    versine2: Tensor,
    values: tuple[CompositeOfTwo, CompositeOfTwo],
    layout: Layout,
    pairs: Pairs,
) -> tuple[Tensor, ...]:
    """Three nodes with the same arguments: both versines, then the numbers of both sides.

    Raises:
        NotFusable: a dual by a series, or a versine that is the same for all pairs.
    """
    rule = values[0].dual
    if not isinstance(rule, PiecewiseLinearOfTwo):
        raise NotFusable("a numerical dual of two Gaussians")
    if not (isinstance(versine1, Traced) and isinstance(versine2, Traced)):
        raise NotFusable("a function of two Gaussians one of which is independent of the other's")
    count = len(rule.cones.rays) * RAY_NUMBERS + SIDE_NUMBERS
    sides: tuple[Which, Which] = ("left", "right")
    given: list[Tensor] = [versine1, versine2]
    for which, value in zip(sides, values, strict=True):
        given += [
            pairs.quantity(which, value, "number", k, layout=layout, wide=True)
            for k in range(count)
        ]
    operands = [tensor for tensor in given if isinstance(tensor, Traced)]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in given))
    labels = merged_labels(operands, len(shape))
    axes = frozenset(axis for tensor in operands for axis in tensor.node.axes)
    dtype = torch.promote_types(versine1.dtype, versine2.dtype)
    arguments = tuple(tensor.node for tensor in operands)
    like = torch.full(shape, 0.5, dtype=dtype)
    nodes = rule.nodes_for(dtype)
    return tuple(
        traced(like, Node(Kind.OF_TWO, dtype, axes, arguments, detail=detail), labels, tracer)
        for tracer in (versine1.tracer,)
        for detail in (OfTwo(rule.cones, nodes, output) for output in range(3))
    )
