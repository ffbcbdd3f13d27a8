"""Products with a weight matrix, and convolutions: a weight makes a new width."""

from __future__ import annotations

from typing import cast

from torch import fx

from tangency.program.axes import AxisError, Dim, Shape, position, shape_of, width
from tangency.program.axis_rules.attention import product
from tangency.program.axis_rules.elementwise import broadcast
from tangency.program.axis_rules.registry import Axes, axis_rule
from tangency.program.geometry import CONVOLUTIONS
from tangency.program.operations import base_name

__all__ = ["PRODUCTS", "WEIGHTED", "rows"]

PRODUCTS = ("linear", "matmul", "mm", "addmm")
"""Products that may be with a weight matrix."""

WEIGHTED = ("linear", "addmm", "embedding", *CONVOLUTIONS)
"""Operations that a parameter must take part in, unless they act on data and constants alone."""


@axis_rule("linear", "addmm")
def affine(node: fx.Node, axes: Axes) -> Shape:
    return _weighted(node, axes)


def _weighted(node: fx.Node, axes: Axes) -> Shape:
    start = 1 if base_name(node) == "addmm" else 0
    x, weight = cast("tuple[fx.Node, fx.Node]", node.args[start : start + 2])
    shape = shape_of(node)
    if len(shape) != len(axes(x)):
        raise AxisError("a product with a weight vector is not known: use a matrix of one column")
    return (*axes(x)[:-1], rows(weight, shape[-1]))


@axis_rule("matmul", "mm")
def matmul(node: fx.Node, axes: Axes) -> Shape:
    """With a weight matrix on the right, or of two values that both depend on data."""
    left, right = cast("tuple[fx.Node, fx.Node]", node.args[:2])
    if axes.nature[right] != "parameter":
        return product(left, right, axes)
    if len(axes(right)) == 2:
        return _weighted(node, axes)
    return _unshared(node, axes)


def _unshared(node: fx.Node, axes: Axes) -> Shape:
    """(.., L, i, k) times a stack of matrices (L, k, j): another matrix at every place of L."""
    left, right = cast("tuple[fx.Node, fx.Node]", node.args[:2])
    if len(axes(left)) < 2 or len(axes(right)) < 2:
        raise AxisError("products with a vector are not known: write them as x * v and a sum")
    lead = broadcast([axes(left)[:-2], axes(right)[:-2]])
    return (*lead, axes(left)[-2], rows(right, shape_of(node)[-1]))


@axis_rule("bmm")
def batched(node: fx.Node, axes: Axes) -> Shape:
    left, right = cast("tuple[fx.Node, fx.Node]", node.args[:2])
    if axes.nature[right] == "parameter":
        return _unshared(node, axes)
    return product(left, right, axes)


def rows(weight: fx.Node, size: int) -> Dim:
    """The width that a weight makes: the same one at every use, so that coordinates line up."""
    while weight.all_input_nodes:
        weight = weight.all_input_nodes[0]
    known: dict[int, Dim] = weight.meta.setdefault("tangency_rows", {})
    return known.setdefault(size, width(size))


@axis_rule(*CONVOLUTIONS)
def convolution(node: fx.Node, axes: Axes) -> Shape:
    """Batch, the width that the weight makes, and new positions: they shift even at equal size."""
    x, weight = cast("tuple[fx.Node, fx.Node]", node.args[:2])
    shape = shape_of(node)
    if len(shape) != len(shape_of(weight)):
        raise AxisError("a convolution of an input without a batch dimension is not known")
    spatial = tuple(position(size) for size in shape[2:])
    return (axes(x)[0], rows(weight, shape[1]), *spatial)


@axis_rule("embedding")
def embedding(node: fx.Node, axes: Axes) -> Shape:
    """The rows of a weight that integers choose: the product of their one-hot codes with it."""
    weight, indices = cast("tuple[fx.Node, fx.Node]", node.args[:2])
    return (*axes(indices), rows(weight, shape_of(node)[-1]))
