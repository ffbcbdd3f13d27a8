"""C text that gathers what a map over positions reads of slices in memory."""

from __future__ import annotations

from tangency.infinite.fused.fetching import NOTHING
from tangency.infinite.fused.functions import Piece
from tangency.infinite.fused.graph import Node
from tangency.infinite.fused.operations import c_type
from tangency.infinite.fused.resampling import Resampling
from tangency.infinite.fused.run import Run

__all__ = ["TABLES", "fetch"]

SHORT = 6
"""Columns of stretches that are copied row after row in each, and not the other way round."""

TABLES = 4
"""Tables of a gathered node: rows, their weights, columns, their weights (see `fetching.py`)."""


def fetch(run: Run, node: Node, tables: int, buffer: str) -> Piece:
    """Fill a buffer with a gathered node's slice.

    Args:
        tables: number of the first of its tables.
        buffer: the pointer.
    """
    if _runs_on(run, node):
        return _stretches(run, node, tables, buffer)
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


def _stretches(run: Run, node: Node, tables: int, buffer: str) -> Piece:
    """Copy stretches of columns, as `fetching.Fetched.tables` lists them."""
    kind = c_type(node.dtype)
    rows, columns = run.shape(run.level(node))
    arguments = (
        f"(const int *)tables[{tables}] + down * {rows}L",
        f"(const double *)tables[{tables + 1}] + down * {rows}L",
        f"(const int *)tables[{tables + 2}]",
        f"(const {kind} *)dense[{run.block(node)}]",
        buffer,
        "at",
    )
    ints = "const int *restrict"
    kinds = (ints, "const double *restrict", ints, f"const {kind} *", f"{kind} *restrict", "long")
    text = [
        "const int *stretch = p2 + 1 + p5 * 3 * p2[0];",
        "for (int k = 0; k < p2[0]; k++, stretch += 3) {",
        "const long begin = stretch[0], end = stretch[1], shift = stretch[2];",
        f"if (end - begin < {SHORT} || shift == {NOTHING})",
        "for (long c = begin; c < end; c++)",
        f"for (long y = 0; y < {rows}; y++) {{",
        f"const int real = p1[y] != 0 && shift != {NOTHING};",
        f"p4[y * {columns}L + c] = real ? p3[p0[y] + shift + c] : 0;",
        "}",
        f"else for (long y = 0; y < {rows}; y++) {{",
        f"{kind} *restrict z = p4 + y * {columns}L;",
        f"const {kind} *restrict x = p3 + p0[y] + shift;",
        "if (p1[y] == 0) for (long c = begin; c < end; c++) z[c] = 0;",
        "else for (long c = begin; c < end; c++) z[c] = x[c];",
        "}",
        "}",
    ]
    return Piece(kinds, "\n".join(text), arguments)


def _runs_on(run: Run, node: Node) -> bool:
    """Whether the columns of a gathered node are copied in stretches."""
    resampling = node.detail.detail
    assert isinstance(resampling, Resampling)
    slots = [run.geometry.extent(target).slot for target in resampling.targets]
    return resampling.runs_on(slots.index(run.geometry.rank - 1))


def _reads(run: Run, node: Node) -> tuple[int, int]:
    """Pairs of positions that a pair of rows, or of columns, reads at most."""
    resampling = node.detail.detail
    assert isinstance(resampling, Resampling)
    reads = [1] * (run.geometry.rank + 1)
    for k, target in enumerate(resampling.targets):
        most = resampling.of_axis(k)[0].shape[1]
        reads[1 + run.geometry.extent(target).slot] = most**2
    return reads[-2], reads[-1]
