"""Average pooling and resizing: constant linear maps, one matrix per spatial dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.rules.spatial import along, check_positions
from tangency.infinite.values.position import Mapped, Take
from tangency.infinite.values.value import Value
from tangency.program.axes import Axis, shape_of
from tangency.program.geometry import ADAPTIVE_POOLS, POOLS, UPSAMPLINGS, spatial_rank
from tangency.program.operations import arguments

IDLE = 2
"""Size of the dimensions along which nothing happens. With 1, torch 2.13 resizes the other one
wrongly where it antialiases."""

_IDLE: dict[str, float] = {
    "kernel_size": 1,
    "stride": 1,
    "padding": 0,
    "output_size": IDLE,
    "scale_factors": 1.0,
}
"""Arguments per spatial dimension that leave a dimension of size `IDLE` as it is."""

_SCALES = {"scales_d": -3, "scales_h": -2, "scales_w": -1, "scales": -1}
"""Scale factors that are arguments of their own, and which dimension they are of."""


@rule(*POOLS, *ADAPTIVE_POOLS, *UPSAMPLINGS)
def resample(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Pooling and interpolation act on one spatial dimension after the other."""
    source = cast(fx.Node, node.args[0])
    before, after = lowering.program.axes[source], lowering.program.axes[node]
    rank = spatial_rank(node)
    check_positions(lowering, node, before[-rank:])
    value = lowering.strand(source, start, length)
    for dim in range(-rank, 0):
        value = along(value, before[dim], after[dim], _map(resampling_matrix(node, rank, dim)))
    return value


def _map(matrix: Tensor) -> Callable[[Value, Axis, Axis], Value]:
    """The map along an axis; where each result is one of the positions, it is a choice of these."""
    ones = matrix == 1
    if bool((ones.sum(1) == 1).all()) and torch.equal(ones.to(matrix), matrix):
        return partial(Take, indices=ones.int().argmax(1).tolist())
    return partial(Mapped, matrix=matrix)


def resampling_matrix(node: fx.Node, rank: int, dim: int) -> Tensor:
    """What the node does along one of its `rank` spatial dimensions, `(new, old)`, float64.

    The operation itself is applied to unit vectors, constant along the other dimensions.
    """
    size = shape_of(cast(fx.Node, node.args[0]))[dim]
    shape = [1] * rank
    shape[dim] = size
    whole = [IDLE] * rank
    whole[dim] = size
    operation = cast(OpOverload, node.target)
    given = {name: _only(name, value, rank, dim) for name, value in arguments(node).items()}
    del given[operation._schema.arguments[0].name]
    units = torch.eye(size, dtype=torch.float64).reshape(size, 1, *shape)
    mapped: Tensor = operation(units.expand(size, 1, *whole).contiguous(), **given)
    first = mapped.movedim(dim, -1).reshape(size, -1, mapped.shape[dim])[:, 0]
    return first.T.contiguous()


def _only(name: str, value: Any, rank: int, dim: int) -> Any:
    """An argument that acts along dimension `dim` as it does, and along the others not at all."""
    if name in _SCALES:
        return value if _SCALES[name] == dim else None
    if name == "divisor_override" and value is not None:
        return value if dim == -1 else 1  # the divisor of all dimensions together
    if name not in _IDLE or value is None or (name == "stride" and value == []):
        return value
    sizes = [value] if isinstance(value, (int, float)) else list(cast(Sequence[float], value))
    own = sizes[0] if len(sizes) == 1 else sizes[dim]
    idle: list[float] = [_IDLE[name]] * rank
    idle[dim] = own
    return idle
