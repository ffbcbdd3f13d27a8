"""Operations that re-bracket, reorder and repeat axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import fx

from tangency.program.axes import BATCH, Dim, Shape, position, rebracket, resolve, shape_of
from tangency.program.axis_rules.registry import Axes, axis_rule, dimension, first
from tangency.program.operations import argument


@axis_rule("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
def reshape(node: fx.Node, axes: Axes) -> Shape:
    return rebracket([a for dim in axes(first(node)) for a in dim], shape_of(node))


@axis_rule("permute")
def permute(node: fx.Node, axes: Axes) -> Shape:
    shape = axes(first(node))
    order = cast(Sequence[int], argument(node, 1, "dims"))
    return tuple(shape[d] for d in order)


@axis_rule("transpose")
def transpose(node: fx.Node, axes: Axes) -> Shape:
    shape = list(axes(first(node)))
    a, b = dimension(node, 1, "dim0"), dimension(node, 2, "dim1")
    shape[a], shape[b] = shape[b], shape[a]
    return tuple(shape)


@axis_rule("t", "numpy_T")
def reverse(node: fx.Node, axes: Axes) -> Shape:
    return tuple(reversed(axes(first(node))))


@axis_rule("expand")
def expand(node: fx.Node, axes: Axes) -> Shape:
    """A repeated dimension is a new axis (the batch, where it has its size)."""
    sizes = shape_of(node)
    shape = axes(first(node))
    padded = (((),) * (len(sizes) - len(shape))) + tuple(shape)

    def repeated(size: int) -> Dim:
        return (axes.batch,) if size == BATCH else position(size)

    pairs = zip(padded, sizes, strict=True)
    return tuple(dim if resolve(dim) else repeated(size) for dim, size in pairs)
