"""What it costs to multiply per-example gradients, by each path that there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tangency.empirical.gradients import Explicit, Gradients, Rows

__all__ = [
    "CACHED",
    "WORKING_SET",
    "WRITTEN",
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
Path = Literal["gram", "cotangents", "gradients"]

WORKING_SET = 2**24
"""Bytes of one intermediate of a contraction (16 MiB: larger ones only leave the cache)."""

WRITTEN = 2**25
"""Bytes of gradients that are written out at a time: the more, the less often their factors are
read."""

CACHED = 2**20
"""Bytes that stay in the cache of one core until they are read again."""

HALF = 0.7
"""What the half of a symmetric product takes of the whole, in bands (few vectors are multiplied
whole, which this leaves out)."""

# Multiply-adds of a matrix product that take the time of ..., fitted to `benchmarks/paths.py`:

TOUCHED = 60
"""one number of a factor, moved to where it is multiplied"""

ENTRY = 50
"""one entry of a gradient that is written out and read"""

TABLE_ENTRY = 20
"""one entry of the gradient of a table, most of which are zero"""

TABLE_COLD = 15
"""further ones of one entry of tables that do not fit the cache together"""

WEIGHTED = 80
"""one entry of a Gram matrix over positions, weighted and summed"""

TABLE_WEIGHTED = 20
"""the same where indices are compared"""

EQUAL = 80
"""one comparison of two indices"""

GROUPED = 1.5
"""one in the small products of groups"""

CALLS = 3e6
"""the further calls of Gram matrices over positions"""

MADE = 2.1e6
"""the further calls of gradients that are written out"""

MATRIX = 1.5e4
"""one more matrix, however small, among those that are written out"""

PAIR = 2.4e6
"""the calls for the pairs of examples that stay in the cache together"""


@dataclass(frozen=True)
class Term:
    """Sizes of one term of one example's gradient.

    Attributes:
        kind: in factors, rows of a table, or written out.
        positions: places at which the parameter meets the example.
        inputs: length of the input's vector at a place (rows of the table).
        width: length of the cotangent's vector at a place.
        groups: of channels, each with a matrix of its own (of columns of a table).
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
    *_, groups, positions, width = gradients.cotangents.shape
    if isinstance(gradients, Rows):
        entries = gradients.rows * groups * width
        fixed = gradients.indices.nbytes // (b * n)
        return Term("rows", positions, gradients.rows, width, groups, entries, fixed, each)
    inputs = gradients.inputs_length
    fixed = gradients.inputs.nbytes // (b * n)
    entries = groups * inputs * width
    return Term("factors", positions, inputs, width, groups, entries, fixed, each)


def costs(
    term: Term, rows: int, columns: int, out: int, layout: Layout, *, same: bool = False
) -> dict[Path, float]:
    """Multiply-adds of each path for a tile of `rows` x `columns` examples; of a tile of `same`
    examples gradients are made once and one half is computed.

    gram: sum_pp' (a_p . a'_p') (g_p . g'_p'), two Gram matrices over (example, position); for a
    table the first one is that of equal rows.
    cotangents: sum_p g_p . sum_p' (a_p . a'_p') g'_p', where many outputs share the inner sum.
    gradients: J = sum_p g_p a_p^T for each example, then one matrix product of Jacobians.
    """
    pairs = rows * columns * (HALF if same else 1.0)
    outputs = out**2 if layout == "full" else out
    made = rows if same else rows + columns
    gradients = made * making(term, out) + pairs * outputs * term.entries
    if term.kind == "written out":
        return {"gradients": gradients}
    gradients += MADE + made * term.groups * MATRIX
    if term.kind == "rows" and made * term.written_bytes(out) > WORKING_SET:
        gradients += made * out * term.entries * TABLE_COLD
    products = 1 if layout == "trace" else outputs
    places = pairs * term.groups * term.positions**2
    if term.kind == "rows":
        gram = places * (outputs * term.width + EQUAL + TABLE_WEIGHTED * products) + CALLS
        return {"gram": gram, "gradients": gradients}
    touched = made * _touched(term, out)
    small = GROUPED if term.groups > 1 else 1.0
    gram = places * (small * (term.inputs + outputs * term.width) + WEIGHTED * products) + touched
    gram += CALLS
    found: dict[Path, float] = {"gram": gram, "gradients": gradients}
    if layout == "full":
        each = out * term.width
        together = max(1, min(rows, CACHED // (4 * term.positions * each)))
        calls = PAIR / together
        summed = pairs * term.groups * (calls + term.positions * each * (out + TOUCHED))
        moved = made * _touched(term, out, copies=3)
        found["cotangents"] = places * (term.inputs + each) + summed + moved
    return found


def making(term: Term, out: int) -> float:
    """Multiply-adds of writing out the gradients of one example."""
    if term.kind == "written out":
        return 0.0
    if term.kind == "rows":
        touched = TOUCHED * term.groups * term.positions * term.width
        return out * (TABLE_ENTRY * term.entries + touched)
    return out * term.entries * (term.positions + ENTRY) + _touched(term, out)


def _touched(term: Term, out: int, copies: int = 1) -> int:
    """Multiply-adds of moving the factors of one example, its cotangents so often."""
    return TOUCHED * term.groups * term.positions * (term.inputs + copies * out * term.width)


def multiplying(
    term: Term,
    rows: int,
    columns: int,
    out: int,
    layout: Layout,
    *,
    written: bool,
    same: bool = False,
) -> float:
    """Multiply-adds for a tile by the cheapest path; of gradients `written` out, their products."""
    found = costs(term, rows, columns, out, layout, same=same)
    if written:
        return found["gradients"] - (rows if same else rows + columns) * making(term, out)
    return min(found.values())


def cheapest(
    term: Term, rows: int, columns: int, out: int, layout: Layout, *, same: bool = False
) -> Path:
    """The path with the lowest cost."""
    found = costs(term, rows, columns, out, layout, same=same)
    return min(found, key=lambda path: found[path])
