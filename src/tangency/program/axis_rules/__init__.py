"""How each ATen operation maps the axes of its arguments to those of its result.

One small function per operation, in a registry keyed by the operation's base name (`add` for
`aten.add.Tensor`); one file per family. Operations on data and constants alone need no rule: they
are executed.
"""

from tangency.program.axis_rules import (
    gathering,
    joining,
    normalization,
    pooling,
    resampling,
    structure,
)
from tangency.program.axis_rules.affine import PRODUCTS, WEIGHTED
from tangency.program.axis_rules.indexing import sliced
from tangency.program.axis_rules.reductions import reduced_dimensions
from tangency.program.axis_rules.registry import RULES, Axes, axis_rule

__all__ = [
    "PRODUCTS",
    "RULES",
    "WEIGHTED",
    "Axes",
    "axis_rule",
    "gathering",
    "joining",
    "normalization",
    "pooling",
    "reduced_dimensions",
    "resampling",
    "sliced",
    "structure",
]
