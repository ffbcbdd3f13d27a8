"""Operations that put tensors side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import fx

from tangency.program.axes import AxisError, Shape, position, resolve, shape_of, width
from tangency.program.axis_rules.elementwise import broadcast
from tangency.program.axis_rules.registry import Axes, axis_rule
from tangency.program.operations import argument


@axis_rule("cat")
def cat(node: fx.Node, axes: Axes) -> Shape:
    pieces = [axes(n) for n in cast(Sequence[fx.Node], node.args[0])]
    rank = len(pieces[0])
    d = cast(int, argument(node, 1, "dim", 0)) % rank
    kinds = {axis.kind for piece in pieces for axis in resolve(piece[d])}
    if "batch" in kinds:
        raise AxisError("concatenating along the batch mixes examples")
    shape = list(broadcast([(*p[:d], (), *p[d + 1 :]) for p in pieces]))
    size = shape_of(node)[d]
    shape[d] = width(size) if "width" in kinds else position(size)
    return tuple(shape)


@axis_rule("stack")
def stack(node: fx.Node, axes: Axes) -> Shape:
    pieces = [axes(n) for n in cast(Sequence[fx.Node], node.args[0])]
    shape = list(broadcast(pieces))
    d = cast(int, argument(node, 1, "dim", 0)) % (len(shape) + 1)
    shape.insert(d, position(len(pieces)))
    return tuple(shape)
