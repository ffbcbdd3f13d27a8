"""How each ATen operation maps the axes of its arguments to those of its result.

One small function per operation, in a registry keyed by the operation's base name (`add` for
`aten.add.Tensor`); one file per family. Operations on data and constants alone need no rule: they
are executed.
"""

from tangency.program.axis_rules.affine import PRODUCTS, WEIGHTED
from tangency.program.axis_rules.reductions import reduced_dimensions
from tangency.program.axis_rules.registry import RULES, axis_rule
from tangency.program.axis_rules.structure import sliced

__all__ = ["PRODUCTS", "RULES", "WEIGHTED", "axis_rule", "reduced_dimensions", "sliced"]
