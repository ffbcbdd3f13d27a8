"""Products of two values that both depend on data: attention, graph aggregation, queries."""

from __future__ import annotations

from typing import cast

from torch import fx

from tangency.program.axes import AxisError, Dim, Shape, identify, position, resolve, size_of
from tangency.program.axis_rules.elementwise import broadcast
from tangency.program.axis_rules.registry import Axes, axis_rule, refuse
from tangency.program.operations import arguments

__all__ = ["product"]


def product(left: fx.Node, right: fx.Node, axes: Axes) -> Shape:
    """Axes of `left @ right` (..., i, k) x (..., k, j), neither of them a weight.

    Rows and columns made by a concrete matrix are new positions. Of two random factors, rows keep
    the axes of `left`; columns keep those of `right` unless the result has them already (queries
    and keys of the same tokens), when they are new.
    """
    a, b = axes(left), axes(right)
    if min(len(a), len(b)) < 2:
        raise AxisError("products with a vector are not known: write them as x * v and a sum")
    refuse((a[-1], b[-2]), ("batch",), "this product sums over the batch: it mixes the examples")
    _contract(a[-1], b[-2], axes.executed(left), axes.executed(right))
    lead = broadcast([a[:-2], b[:-2]]) if a[:-2] or b[:-2] else ()
    rows = _renewed(a[-2]) if axes.executed(left) else a[-2]
    taken = {id(axis) for dim in (*lead, rows) for axis in resolve(dim)}
    again = any(id(axis) in taken for axis in resolve(b[-1]))
    columns = _renewed(b[-1]) if axes.executed(right) or again else b[-1]
    kinds = [{axis.kind for axis in resolve(dim)} for dim in (rows, columns)]
    if all("width" in kind for kind in kinds):
        raise AxisError("the outer product of two widths has no infinite-width limit")
    return (*lead, rows, columns)


def _contract(a: Dim, b: Dim, left_executed: bool, right_executed: bool) -> None:
    if not left_executed and not right_executed:
        if "width" in {axis.kind for axis in resolve((*a, *b))}:
            identify(a, b)
    elif left_executed != right_executed:
        reason = "a fixed matrix along a width singles out coordinates that the limit makes alike"
        refuse([b if left_executed else a], ("width",), reason)


def _renewed(dim: Dim) -> Dim:
    """A new position dimension of the same size."""
    if any(axis.kind == "batch" for axis in resolve(dim)):
        return dim
    if any(axis.kind == "width" for axis in resolve(dim)):
        raise AxisError("a product of two widths of one layer has no infinite-width limit")
    return position(size_of(resolve(dim)))


@axis_rule("baddbmm")
def batched_sum(node: fx.Node, axes: Axes) -> Shape:
    summand, left, right = cast("tuple[fx.Node, fx.Node, fx.Node]", node.args[:3])
    return broadcast([axes(summand), product(left, right, axes)])


@axis_rule("scaled_dot_product_attention")
def attention(node: fx.Node, axes: Axes) -> Shape:
    """(.., L, d) queries, (.., S, d) keys, (.., S, e) values: (.., L, e)."""
    q, k, v = (axes(n) for n in cast("tuple[fx.Node, ...]", node.args[:3]))
    refuse((q[-2], k[-2], v[-2]), ("batch",), "attention over the batch mixes the examples")
    if all({axis.kind for axis in resolve(dim)} == {"width"} for dim in (q[-1], k[-1])):
        identify(q[-1], k[-1])
    grouped = bool(arguments(node).get("enable_gqa", False))
    shared = [q[:-2]] if grouped else [q[:-2], k[:-2], v[:-2]]
    return (*broadcast(shared), q[-2], v[-1])
