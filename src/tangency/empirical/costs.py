"""What it costs to multiply per-example gradients, by each path that there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tangency.empirical.gradients import Explicit, Gradients, Rows

__all__ = [
    "WORKING_SET",
    "Layout",
    "Path",
    "Term",
    "cheapest",
    "costs",
    "making",
    "multiplying",
    "term",
]

Layout = Literal["full", "trace", "diagonal"]
Path = Literal["gram", "gradients"]

WORKING_SET = 2**25
"""Bytes of one intermediate of a contraction (32 MiB: larger ones only leave the cache)."""

ELEMENTWISE = 8
"""Multiply-adds of a matrix product that take the time of one elementwise multiply-add (memory
traffic)."""

WEIGHTED = 32
"""Multiply-adds of a matrix product that take the time of one entry of a Gram matrix over positions
being made, weighted and summed (short strided rows), measured by `benchmarks/paths.py`."""


@dataclass(frozen=True)
class Term:
    """Sizes of one term of one example's gradient.

    Attributes:
        kind: in factors, rows of a table, or written out.
        positions: places at which the parameter meets the example.
        inputs: length of the input's vector at a place (rows of the table).
        width: length of the cotangent's vector at a place.
        groups: of channels, each with a matrix of its own.
        entries: of the tensor of parameters.
        fixed_bytes: memory, whatever the number of outputs.
        output_bytes: memory for each output.
    """

    kind: Literal["factors", "rows", "written out"]
    positions: int
    inputs: int
    width: int
    groups: int
    entries: int
    fixed_bytes: int
    output_bytes: int

    def held_bytes(self, out: int) -> int:
        """Memory for `out` outputs."""
        return self.fixed_bytes + out * self.output_bytes

    def written_bytes(self, out: int) -> int:
        """Memory for `out` outputs, written out."""
        if self.kind == "written out":
            return self.held_bytes(out)
        itemsize = self.output_bytes // max(1, self.groups * self.positions * self.width)
        return out * self.entries * itemsize

    @property
    def applied(self) -> int:
        """Multiply-adds of applying the parameter to one example."""
        return self.positions * self.inputs * self.width * self.groups if self.positions else 0


def term(gradients: Gradients) -> Term:
    """The sizes of a term."""
    b, n, out = gradients.lead
    if isinstance(gradients, Explicit):
        each = gradients.values.nbytes // (b * n * out)
        entries = gradients.values.shape[3]
        return Term("written out", 0, 0, 0, 1, entries, 0, each)
    each = gradients.cotangents.nbytes // (b * n * out)
    if isinstance(gradients, Rows):
        *_, positions, width = gradients.cotangents.shape
        entries = gradients.rows * width
        fixed = gradients.indices.nbytes // (b * n)
        return Term("rows", positions, gradients.rows, width, 1, entries, fixed, each)
    *_, groups, positions, width = gradients.cotangents.shape
    inputs = gradients.inputs_length
    fixed = gradients.inputs.nbytes // (b * n)
    entries = groups * inputs * width
    return Term("factors", positions, inputs, width, groups, entries, fixed, each)


def costs(term: Term, rows: int, columns: int, out: int, layout: Layout) -> dict[Path, float]:
    """Multiply-adds of each path for a tile of `rows` x `columns` examples.

    gram: sum_pp' (a_p . a'_p') (g_p . g'_p'), two Gram matrices over (example, position); for a
    table the first one is that of equal rows.
    gradients: J = sum_p g_p a_p^T for each example, then one matrix product of Jacobians.
    """
    pairs = rows * columns
    outputs = out**2 if layout == "full" else out
    products = 1 if layout == "trace" else outputs
    gradients = (rows + columns) * making(term, out) + pairs * outputs * term.entries
    if term.kind == "written out" or term.groups > 1:
        return {"gradients": gradients}
    if term.kind == "rows":
        same = pairs * term.positions**2 * WEIGHTED
        gram = same + pairs * term.positions**2 * (outputs * term.width + WEIGHTED * products)
        return {"gram": gram, "gradients": gradients}
    each = term.inputs + outputs * term.width + WEIGHTED * products
    return {"gram": float(pairs * term.positions**2 * each), "gradients": gradients}


def making(term: Term, out: int) -> float:
    """Multiply-adds of writing out the gradients of one example."""
    if term.kind == "written out":
        return 0.0
    if term.kind == "rows":
        return out * ELEMENTWISE * term.width * (term.positions + term.inputs)
    return out * term.entries * (term.positions + ELEMENTWISE)


def multiplying(
    term: Term, rows: int, columns: int, out: int, layout: Layout, *, written: bool
) -> float:
    """Multiply-adds for a tile by the cheapest path; of gradients `written` out, their products."""
    found = costs(term, rows, columns, out, layout)
    if written:
        return found["gradients"] - (rows + columns) * making(term, out)
    return min(found.values())


def cheapest(term: Term, rows: int, columns: int, out: int, layout: Layout) -> Path:
    """The path with the lowest cost."""
    found = costs(term, rows, columns, out, layout)
    return min(found, key=lambda path: found[path])
