"""Products with a matrix of data or constants: aggregation over the nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, fx

from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering
from tangency.infinite.rules.spatial import grouped, one_axis
from tangency.infinite.side import Side
from tangency.infinite.values.aggregated import Aggregated
from tangency.infinite.values.value import Value, to_positions
from tangency.program.axes import Axis, resolve

__all__ = ["product"]


def product(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """`A @ u` or `u @ A` along positions, with A of data or constants."""
    left, right = cast("tuple[fx.Node, fx.Node]", node.args[:2])
    if lowering.random(right):
        return _sum(lowering, node, (right, left), (-2, -1), start, length)
    return _sum(lowering, node, (left, right), (-1, -2), start, length)


def _sum(
    lowering: Lowering,
    node: fx.Node,
    operands: tuple[fx.Node, fx.Node],
    dims: tuple[int, int],
    start: int,
    length: int,
) -> Value:
    """The sum over dimension `dims[0]` of a random operand and `dims[1]` of a matrix."""
    (source, matrix), (inner, outer) = operands, dims
    axes = lowering.program.axes
    old = one_axis(axes[source][inner])
    if old.kind == "width":
        raise lowering.unsupported(node, "sums over a width with fixed coefficients")
    value = grouped(lowering.strand(source, start, length), axes[source][inner], old)
    made = resolve(axes[node][inner])
    lead = tuple(a for d in axes[matrix][:-2] for a in resolve(d) if a.kind != "batch")
    extra = tuple(a for a in lead if a not in value.positions)
    evaluate = _evaluated(lowering, matrix, outer, (made, lead), (old, (*made, *extra), value))
    return Aggregated(value, (old,), (*made, *extra), evaluate)


def _evaluated(
    lowering: Lowering,
    matrix: fx.Node,
    outer: int,
    axes: tuple[Positions, Positions],
    target: tuple[Axis, Positions, Value],
) -> Callable[[Side], Tensor]:
    """The matrix as `(*new, *positions of the value, n)`; dimension `outer` is summed over."""
    (made, lead), (old, new, value) = axes, target
    shape = lowering.program.axes[matrix]
    rows, columns = (resolve(shape[d]) for d in (-3 - outer, outer))
    have = (*lead, *made, old)

    def evaluate(side: Side) -> Tensor:
        values = side.features(matrix, (*lead, *rows, *columns), ())[..., 0]
        sizes = [axis.size for axis in have]
        return to_positions(values.reshape(*sizes, side.count), have, (*new, *value.positions))

    return evaluate
