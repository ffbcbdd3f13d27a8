"""Products with a matrix of data or constants: aggregation over the nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, fx

from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering
from tangency.infinite.rules.spatial import check_positions, grouped, one_axis
from tangency.infinite.side import Side
from tangency.infinite.values.aggregated import Aggregated
from tangency.infinite.values.value import Value, to_positions
from tangency.program.axes import resolve

__all__ = ["product"]


def product(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """`A @ u` or `u @ A` along positions, with A of data or constants."""
    left, right = cast("tuple[fx.Node, fx.Node]", node.args[:2])
    if lowering.random(right):
        return _sum(lowering, node, (right, left), -2, lowering.strand(right, start, length))
    return _sum(lowering, node, (left, right), -1, lowering.strand(left, start, length))


def _sum(
    lowering: Lowering, node: fx.Node, operands: tuple[fx.Node, fx.Node], inner: int, value: Value
) -> Value:
    """The sum over dimension `inner` of a random operand (of which `value` is a strand) and the
    matching one of a matrix.
    """
    source, matrix = operands
    axes = lowering.program.axes
    check_positions(lowering, node, axes[source][inner : inner + 1 or None])
    old = one_axis(axes[source][inner], axes[node][inner])
    value = grouped(value, axes[source][inner], old)
    made = resolve(axes[node][inner])
    lead = tuple(a for d in axes[matrix][:-2] for a in resolve(d) if a.kind != "batch")
    extra = tuple(a for a in lead if a not in value.positions)
    made_and_old = (made, (old,)) if inner == -2 else ((old,), made)
    have = (*lead, *made_and_old[0], *made_and_old[1])
    new = (*made, *extra)
    evaluate = _evaluated(lowering, matrix, have, (*new, *value.positions))
    return Aggregated(value, (old,), new, evaluate)


def _evaluated(
    lowering: Lowering, matrix: fx.Node, have: Positions, want: Positions
) -> Callable[[Side], Tensor]:
    """A matrix whose dimensions lie along `have` as `(*want, n)`; the batch comes first, if any.

    Its last two dimensions are read by their place: they may be the same axis.
    """
    shape = lowering.program.axes[matrix]
    batch = [d for d, dim in enumerate(shape) if any(a.kind == "batch" for a in resolve(dim))]

    def evaluate(side: Side) -> Tensor:
        values = cast(Tensor, side.concrete(matrix)).double()
        values = values.movedim(batch[0], -1) if batch else values[..., None]
        values = values.reshape(*(axis.size for axis in have), values.shape[-1])
        return to_positions(values, have, want).expand(*[-1] * len(want), side.count)

    return evaluate
