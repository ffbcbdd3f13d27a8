"""Matrices that multiply data: `y = a W^T + b` and products written out.

The gradient with respect to W is the sum over positions of g_p a_p^T, with `a` the input and `g`
the cotangent of the result: both are small where the gradient is large.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, fx

from tangency.empirical.gradients import Factors, Gradients
from tangency.empirical.passage import Order, Passage, batch_axis
from tangency.empirical.sites.registry import Site, bias_site, site_rule
from tangency.program.operations import arguments


@site_rule("linear")
def linear(node: fx.Node, parameter: fx.Node) -> Site | None:
    """x W^T + b."""
    given = arguments(node)
    roles = [name for name in ("input", "weight", "bias") if given.get(name) is parameter]
    value = cast(fx.Node, given["input"])
    if not _has_rows(node) or not _has_rows(value):
        return None
    if roles == ["bias"]:
        return bias_site(node, node.meta["val"].dim() - 1)
    if roles == ["weight"] and _dim(parameter) == 2:
        return _product(node, value)
    return None


@site_rule("matmul", "mm")
def matmul(node: fx.Node, parameter: fx.Node) -> Site | None:
    """x W and W x with a matrix W."""
    left, right = cast("tuple[fx.Node, fx.Node]", node.args[:2])
    if left is right or _dim(parameter) != 2:
        return None
    value = left if right is parameter else right
    columns = left is parameter
    if not _has_rows(node, columns) or not _has_rows(value, columns):
        return None
    return _product(node, value, columns=columns, transposed=not columns)


def _dim(node: fx.Node) -> int:
    return cast(Tensor, node.meta["val"]).dim()


def _has_rows(node: fx.Node, columns: bool = False) -> bool:
    """Whether a value is a batch of vectors: along its last dimension, or the last but one."""
    axis = batch_axis(node)
    return axis is not None and _dim(node) >= 2 and axis != _dim(node) - (2 if columns else 1)


def _product(
    node: fx.Node, value: fx.Node, *, columns: bool = False, transposed: bool = False
) -> Site:
    def gradient(passage: Passage, order: Order) -> Gradients:
        inputs, cotangents = passage.of(value, order), passage.cotangents_of(node, order)
        if columns:
            inputs, cotangents = inputs.mT, cotangents.mT
        return Factors(
            inputs.flatten(1, -2)[None, :, None],
            cotangents.flatten(2, -2)[None, :, :, None],
            transposed=transposed,
        )

    return Site(node, "factors", (value,), gradient)
