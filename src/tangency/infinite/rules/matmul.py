"""Matrix products, by what their factors are."""

from __future__ import annotations

from typing import cast

from torch import fx

from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.rules import aggregation, attention
from tangency.infinite.rules.affine import affine
from tangency.infinite.rules.unshared import unshared
from tangency.infinite.values.value import Value


@rule("matmul", "mm", "bmm")
def matmul(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """With a weight; with a matrix of data or constants; or of two random values (attention)."""
    if node in lowering.program.sites:
        own = lowering.program.sites[node].role == "unshared"
        return (unshared if own else affine)(lowering, node, start, length)
    left, right = cast("tuple[fx.Node, fx.Node]", node.args[:2])
    natures = {lowering.program.nature[left], lowering.program.nature[right]}
    if "parameter" in natures:
        raise lowering.unsupported(node, "multiplies a parameter that is not a layer's weight")
    if natures == {"random"}:
        return attention.product(lowering, node, start, length)
    return aggregation.product(lowering, node, start, length)
