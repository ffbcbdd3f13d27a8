"""Dropout that is active, as in training."""

from __future__ import annotations

from typing import cast

from torch import fx

from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.values.dropped import Dropped
from tangency.infinite.values.value import Value
from tangency.program.operations import arguments, base_name


@rule("dropout", "feature_dropout")
def dropout(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """u times a mask over 1 - p, with masks independent over coordinates, examples and positions
    (Srivastava et al. 2014); over coordinates and examples alone if whole channels are dropped.
    """
    given = arguments(node)
    p = cast(float, given["p"])
    source = lowering.strand(cast(fx.Node, node.args[0]), start, length)
    if not given["train"] or p == 0:
        return source
    if p == 1:
        raise lowering.unsupported(node, "drops everything")
    whole = base_name(node) == "feature_dropout"
    masked = () if whole else lowering.program.atoms(node, "position")
    return Dropped(source, 1 - p, (node.name, start, length), masked)


@rule("alpha_dropout", "feature_alpha_dropout", "native_dropout")
def other_dropout(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Inactive, the value itself; active, without a rule."""
    if arguments(node)["train"]:
        raise lowering.unsupported(node, "is a dropout without a rule; `nn.Dropout` has one")
    return lowering.strand(cast(fx.Node, node.args[0]), start, length)
