"""Dropout that is active, as in training."""

from __future__ import annotations

import math
from typing import cast

from torch import fx

from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.values.consistency import summed
from tangency.infinite.values.dropped import Dropped
from tangency.infinite.values.sources import One
from tangency.infinite.values.sum import Term
from tangency.infinite.values.value import Value
from tangency.program.operations import arguments, base_name

__all__ = ["keep_probability"]

SATURATION = 1.7580993408473766
"""The value to which SELU falls, with the opposite sign."""


@rule("dropout", "feature_dropout")
def dropout(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """u times a mask over 1 - p, with masks independent over coordinates, examples and positions
    (Srivastava et al. 2014); over coordinates and examples alone if whole channels are dropped.
    """
    source = lowering.strand(cast(fx.Node, node.args[0]), start, length)
    keep = _keep(lowering, node)
    if keep == 1:
        return source
    return Dropped(source, keep, (node.name, start, length), _masked(lowering, node))


@rule("alpha_dropout", "feature_alpha_dropout")
def alpha_dropout(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """a (u where it is kept, and -s elsewhere) + b, with s = `SATURATION`, and numbers a and b that
    keep mean zero and variance one (Klambauer et al. 2017, "Self-normalizing neural networks").

    That is a keep (m (u + s) / keep - s), with a mask m as of `dropout`.
    """
    source = lowering.strand(cast(fx.Node, node.args[0]), start, length)
    keep = _keep(lowering, node)
    if keep == 1:
        return source
    above = summed(source.positions, [Term(source), Term(One(), SATURATION)])
    dropped = Dropped(above, keep, (node.name, start, length), _masked(lowering, node))
    scale = math.sqrt(keep / (1 + SATURATION**2 * (1 - keep)))
    return summed(dropped.positions, [Term(dropped, scale), Term(One(), -scale * SATURATION)])


def _keep(lowering: Lowering, node: fx.Node) -> float:
    given = arguments(node)
    return keep_probability(lowering, node, cast(float, given["p"])) if given["train"] else 1.0


def keep_probability(lowering: Lowering, node: fx.Node, p: float) -> float:
    """1 - p.

    Raises:
        UnsupportedOperation: nothing is kept.
    """
    if p == 1:
        raise lowering.unsupported(node, "drops everything")
    return 1 - p


def _masked(lowering: Lowering, node: fx.Node) -> Positions:
    """The positions that have masks of their own."""
    whole = base_name(node).startswith("feature_")
    return () if whole else lowering.program.atoms(node, "position")
