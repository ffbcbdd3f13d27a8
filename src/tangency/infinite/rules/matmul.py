"""Matrix products, by what their factors are."""

from __future__ import annotations

from typing import cast

from torch import fx

from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.rules import aggregation, attention
from tangency.infinite.rules.affine import affine
from tangency.infinite.rules.pointwise import operand_terms
from tangency.infinite.rules.unshared import unshared
from tangency.infinite.values.consistency import summed
from tangency.infinite.values.sum import Term
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
        return attention.product(lowering, node, (left, right), start, length)
    return aggregation.product(lowering, node, start, length)


@rule("baddbmm")
def masked_product(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """beta * mask + alpha * q @ k.T: masked logits."""
    left, right = cast("tuple[fx.Node, fx.Node]", node.args[1:3])
    if not (lowering.random(left) and lowering.random(right)):
        raise lowering.unsupported(node, "has no rule unless both factors depend on parameters")
    alpha, beta = (cast(float, node.kwargs.get(name, 1.0)) for name in ("alpha", "beta"))
    product = attention.product(lowering, node, (left, right), start, length)
    terms = operand_terms(lowering, node, 0, beta, start, length)
    return summed(lowering.program.atoms(node, "position"), [Term(product, alpha), *terms])
