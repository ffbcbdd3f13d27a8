"""Selection by data: `torch.where(mask, a, b)`, `x.masked_fill(mask, number)`."""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, fx

from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.rules.pointwise import composite, operand_terms
from tangency.infinite.values.consistency import summed
from tangency.infinite.values.sources import One
from tangency.infinite.values.sum import Coefficient, Term
from tangency.infinite.values.value import Value


@rule("where")
def where(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """mask * a + (1 - mask) * b where the mask is data; a comparison of random values otherwise."""
    masks = _masks(lowering, node.args[0])
    if masks is None or any(_infinite(operand) for operand in node.args[1:]):
        return composite(lowering, node, start, length)
    terms = [
        term.scaled(1.0, mask)
        for index, mask in enumerate(masks, start=1)
        for term in operand_terms(lowering, node, index, 1.0, start, length)
        if term.number != 0.0
    ]
    return summed(lowering.program.atoms(node, "position"), terms)


@rule("masked_fill")
def masked_fill(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """(1 - mask) * u + mask * number."""
    masks, number = _masks(lowering, node.args[1]), node.args[2]
    if masks is None or not isinstance(number, (int, float)) or _infinite(number):
        return composite(lowering, node, start, length)
    filled, kept = masks
    terms = operand_terms(lowering, node, 0, 1.0, start, length)
    terms = [term.scaled(1.0, kept) for term in terms]
    if number != 0:
        terms.append(Term(One(), float(number), (filled,)))
    return summed(lowering.program.atoms(node, "position"), terms)


def _infinite(operand: object) -> bool:
    return isinstance(operand, (int, float)) and not math.isfinite(operand)


def _masks(lowering: Lowering, operand: object) -> tuple[Coefficient, Coefficient] | None:
    """A mask of data without width, as a factor one or zero, and its complement."""
    mask = cast(fx.Node, operand)
    if lowering.program.nature[mask] != "concrete" or lowering.width(mask) != 1:
        return None
    return lowering.coefficient(mask), lowering.coefficient(mask, _complement)


def _complement(values: Tensor) -> Tensor:
    return 1 - values
