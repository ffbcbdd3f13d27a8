"""Normalisations keep axes; batch statistics are refused."""

from __future__ import annotations

from torch import fx

from tangency.program.axes import AxisError, Shape
from tangency.program.axis_rules.registry import Axes, axis_rule, dimension, first, refuse
from tangency.program.operations import arguments


@axis_rule("layer_norm", "rms_norm", "group_norm", "instance_norm")
def unchanged(node: fx.Node, axes: Axes) -> Shape:
    return axes(first(node))


@axis_rule("batch_norm")
def batch_norm(node: fx.Node, axes: Axes) -> Shape:
    """With running statistics an affine map per channel."""
    if axes.nature[first(node)] == "parameter":
        raise AxisError("this computes with a parameter before it meets the data")
    if arguments(node)["training"]:
        raise AxisError(
            "batch normalisation by the statistics of the batch couples the examples "
            "(the module keeps no running statistics)"
        )
    return axes(first(node))


@axis_rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def softmax(node: fx.Node, axes: Axes) -> Shape:
    shape, d = axes(first(node)), dimension(node, 1, "dim")
    if not axes.executed(first(node)):
        refuse([shape[d]], ("width",), "a softmax over a width vanishes as the width grows")
    refuse([shape[d]], ("batch",), "a softmax over the batch couples the examples")
    return shape
