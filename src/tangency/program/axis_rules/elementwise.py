"""Operations that act coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from tangency.program.axes import Dim, Shape, identify, resolve
from tangency.program.axis_rules.registry import Axes, axis_rule, first
from tangency.program.operations import POINTWISE

__all__ = ["broadcast"]


@axis_rule(
    "clone",
    "contiguous",
    "alias",
    "detach",
    "lift_fresh_copy",
    "_to_copy",
    "to",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
)
def unchanged(node: fx.Node, axes: Axes) -> Shape:
    return axes(first(node))


@axis_rule("native_dropout")
def with_mask(node: fx.Node, axes: Axes) -> tuple[Shape, ...]:
    shape = axes(first(node))
    return shape, shape


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Axes of an elementwise result; aligned dimensions of the arguments are identified."""
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = []
    for i in range(rank):
        aligned = [shape[i - rank] for shape in shapes if rank - i <= len(shape)]
        filled = [dim for dim in aligned if dim]
        for other in filled[1:]:
            identify(filled[0], other)
        result.append(resolve(filled[0]) if filled else ())
    return tuple(result)


@axis_rule(*POINTWISE)
def pointwise(node: fx.Node, axes: Axes) -> Shape:
    tensors = [n for n in node.all_input_nodes if hasattr(n.meta["val"], "shape")]
    return broadcast([axes(n) for n in tensors])
