"""C text that gathers what a map over positions reads of slices in memory."""

from __future__ import annotations

from tangency.infinite.fused.functions import Piece
from tangency.infinite.fused.graph import Node
from tangency.infinite.fused.operations import c_type
from tangency.infinite.fused.resampling import Resampling
from tangency.infinite.fused.run import Run

__all__ = ["TABLES", "fetch"]

TABLES = 4
"""Tables of a gathered node: rows, their weights, columns, their weights (see `fetching.py`)."""


def fetch(run: Run, node: Node, tables: int, buffer: str) -> Piece:
    """Fill a buffer with a gathered node's slice.

    Args:
        tables: number of the first of its tables.
        buffer: the pointer.
    """
    kind = c_type(node.dtype)
    rows, columns = run.shape(run.level(node))
    down, across = _reads(run, node)
    arguments = (
        f"(const int *)tables[{tables}] + down * {rows * down}L",
        f"(const double *)tables[{tables + 1}] + down * {rows * down}L",
        f"(const int *)tables[{tables + 2}] + at * {columns * across}L",
        f"(const double *)tables[{tables + 3}] + at * {columns * across}L",
        f"(const {kind} *)dense[{run.block(node)}]",
        buffer,
    )
    ints, doubles = "const int *restrict", "const double *restrict"
    kinds = (ints, doubles, ints, doubles, f"const {kind} *", f"{kind} *restrict")
    cast = "" if kind == "double" else "(float)"
    terms = [f"{cast}p3[c + {k * columns}] * x[p2[c + {k * columns}]]" for k in range(across)]
    text = [
        f"for (long y = 0; y < {rows}; y++) {{",
        f"{kind} *restrict z = p5 + y * {columns}L;",
        f"for (long c = 0; c < {columns}; c++) z[c] = 0;",
        f"for (long k = y * {down}; k < (y + 1) * {down}; k++) {{",
        f"const {kind} w = {cast}p1[k];",
        "if (w == 0) continue;",
        f"const {kind} *restrict x = p4 + p0[k];",
        "#pragma GCC ivdep",
        f"for (long c = 0; c < {columns}; c++) z[c] += w * ({' + '.join(terms)});",
        "}",
        "}",
    ]
    return Piece(kinds, "\n".join(text), arguments)


def _reads(run: Run, node: Node) -> tuple[int, int]:
    """Pairs of positions that a pair of rows, or of columns, reads at most."""
    resampling = node.detail.detail
    assert isinstance(resampling, Resampling)
    reads = [1] * (run.geometry.rank + 1)
    for k, target in enumerate(resampling.targets):
        most = resampling.of_axis(k)[0].shape[1]
        reads[1 + run.geometry.extent(target).slot] = most**2
    return reads[-2], reads[-1]
