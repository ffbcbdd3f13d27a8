"""C text that computes the slices of one run.

A generated function takes tables of pointers: quantities of the left and of the right examples,
and what depends on the offset alone (`tables.py`). It computes slices one after another in buffers
that stay in the first-level cache, and adds up the results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tangency.infinite.fused.buffers import Buffers
from tangency.infinite.fused.fetches import TABLES, fetch
from tangency.infinite.fused.functions import Call, Functions, Piece
from tangency.infinite.fused.geometry import Level, reads
from tangency.infinite.fused.graph import Kind, Node
from tangency.infinite.fused.loops import statements
from tangency.infinite.fused.operations import c_type, times
from tangency.infinite.fused.run import Run
from tangency.infinite.fused.schedule import Apply, Fetch, Loop, Slide, Step
from tangency.infinite.fused.two_gaussians import text_of_two
from tangency.infinite.values.window import Window

__all__ = ["RESULTS", "chain_source", "slices_source"]

SIGNATURE = (
    "void {name}(const void *const *left, const void *const *right,"
    " const void *const *tables, char *scratch, void *const *dense, long i, long j,"
    " long first, long last, double *out)"
)

RESULTS = 5
"""Number of the tables that every run has; two per window follow, two for a pooling, and four for
each node that is gathered from memory."""

NEAR = 1e-2
"""Versines of data below this are computed from differences, as `input_angles` does."""


def slices_source(name: str, run: Run, functions: Functions) -> list[str | Call]:
    """The function that computes the slices `first` to `last` of one pair of examples.

    It adds the sums over the positions of these slices to `out`, one number per root, or those
    over windows to the blocks in memory.
    """
    writer = _Writer(run, functions)
    lines: list[str | Call] = [SIGNATURE.format(name=name), "{"]
    lines += writer.buffers.declarations()
    lines.append("const long rows = ((const long *)tables[0])[0];")
    lines += writer.left()
    lines += [
        "long seen = -1;",
        "for (long s = first; s < last; s++) {",
        "const long at = s / rows, down = s % rows;",
        "const long dx = ((const long *)tables[1])[at], dy = ((const long *)tables[2])[down];",
    ]
    lines += writer.buffers.assembly()
    for step in run.schedule.steps:
        lines += writer.step(step)
    return [*lines, *writer.results(), "}", "}"]


class _Writer:
    def __init__(self, run: Run, functions: Functions) -> None:
        self.run = run
        self.functions = functions
        self.buffers = Buffers(run)

    def left(self) -> list[str]:
        """Pointers to the left example's quantities and data."""
        lines = []
        for k, array in enumerate(self.run.schedule.arrays):
            if array.side == Kind.LEFT:
                rows, columns = self.run.shape(array.level)
                kind, size = c_type(array.node.dtype), rows * columns
                lines.append(f"const {kind} *l{k} = (const {kind} *)left[{k}] + i * {size}L;")
        for k, node in enumerate(self.run.data, len(self.run.schedule.arrays)):
            rows, columns = self.run.shape(self.run.level(node))
            size = rows * columns * node.detail.channels
            lines.append(f"const double *l{k} = (const double *)left[{k}] + i * {size}L;")
        return lines

    def step(self, step: Step) -> Sequence[str | Call]:
        """One step of a slice."""
        if isinstance(step, Loop):
            return self._loop(step)
        if isinstance(step, Apply):
            return self._apply(step)
        if isinstance(step, Fetch):
            return [self.functions.add(self._fetch(step.node))]
        return self._slide(step.node) if isinstance(step, Slide) else self._gather(step.node)

    def _parts(self, level: Level, piece: Piece, shifted: Sequence[int]) -> list[str | Call]:
        """A loop in two parts, before and after the right rows start again from the first.

        The first parameters of the piece are the first and last element; those in `shifted`
        point at right quantities.
        """
        rows, columns = self.run.shape(level)
        size, step = rows * columns, self.run.steps(level)[0]
        if step == 0:
            return [self._part(piece, shifted, "0", f"{size}L", "0")]
        moved = f"{times('dy', step)} * {columns}L"
        return [
            self._part(piece, shifted, "0", f"{size}L - {moved}", moved),
            self._part(piece, shifted, f"{size}L - {moved}", f"{size}L", f"{moved} - {size}L"),
        ]

    def _part(self, piece: Piece, shifted: Sequence[int], a: str, b: str, by: str) -> Call:
        arguments = [
            f"{text} + ({by})" if k in shifted else text for k, text in enumerate(piece.arguments)
        ]
        arguments[:2] = a, b
        return self.functions.add(
            Piece(piece.parameters, piece.text, tuple(arguments), piece.constants)
        )

    def _loop(self, loop: Loop) -> list[str | Call]:
        body = statements(loop)
        kinds, arguments, shifted = ["long", "long"], ["", ""], []
        names: dict[Node, str] = {}
        for node in body.reads:
            names[node] = f"p{len(kinds)}[e]"
            kinds.append(f"const {c_type(node.dtype)} *restrict")
            index = self.run.schedule.array(node, loop.level)
            if index is None:
                arguments.append(self.buffers.name(node))
            elif self.run.schedule.arrays[index].side == Kind.LEFT:
                arguments.append(f"l{index}")
            else:
                shifted.append(len(arguments))
                arguments.append(f"r{index}")
        stores = {}
        for node in loop.stores:
            stores[node] = f"p{len(kinds)}[e]"
            kinds.append(f"{c_type(node.dtype)} *restrict")
            arguments.append(self.buffers.name(node))
        text = ["#pragma GCC ivdep", "for (long e = p0; e < p1; e++) {"]
        text += [*body.text(names, stores), "}"]
        piece = Piece(tuple(kinds), "\n".join(text), tuple(arguments), body.constants)
        return self._parts(loop.level, piece, shifted)

    def _gather(self, node: Node) -> list[str | Call]:
        """Products of the data, or versines between them, channel by channel in float64."""
        level = self.run.level(node)
        rows, columns = self.run.shape(level)
        index = len(self.run.schedule.arrays) + self.run.data.index(node)
        size, channels, kind = rows * columns, node.detail.channels, c_type(node.dtype)
        text = [
            "#pragma GCC ivdep",
            "for (long e = p0; e < p1; e++) {",
            "double product = 0, distance = 0;",
            f"for (int c = 0; c < {channels}; c++) {{",
            f"const double x = p2[c * {size}L + e], y = p3[c * {size}L + e];",
            "product += x * y;",
        ]
        if node.detail.versine:
            text += ["distance += (x - y) * (x - y);", "}", "const double versine = 1 - product;"]
            text.append(f"p4[e] = ({kind})(versine < {NEAR} ? 0.5 * distance : versine);")
        else:
            text += ["}", f"p4[e] = ({kind})(product / {channels});"]
        kinds = ("long", "long", *["const double *restrict"] * 2, f"{kind} *restrict")
        arguments = ("", "", f"l{index}", f"r{index}", self.buffers.name(node))
        return self._parts(level, Piece(kinds, "\n".join([*text, "}"]), arguments), (3,))

    def _slide(self, node: Node) -> list[str | Call]:
        source, _ = self.run.geometry.windowed(node.window)
        along_columns = source.slot == self.run.geometry.rank - 1
        index = RESULTS + 2 * self.run.windows.index(node)
        piece = self._columns(node, index) if along_columns else self._rows(node, index)
        return [self.functions.add(piece)]

    def _columns(self, node: Node, index: int) -> Piece:
        """Taps along a row; those that leave an image are multiplied by zero, or read the other
        end of the row.
        """
        window, kind = node.window, c_type(node.dtype)
        rows, columns = self.run.shape(self.run.level(node))
        _, width = self.run.shape(self.run.level(node.inputs[0]))
        table = index if node.dtype == torch.float64 else index + 1
        text = [
            f"for (long y = 0; y < {rows}; y++) {{",
            f"const {kind} *restrict x = p1 + y * {width}L;",
            f"{kind} *restrict z = p2 + y * {columns}L;",
            *_sums_of_taps(window, columns),
            *_ends(window, columns, width),
            "}",
        ]
        masks = f"(const {kind} *)tables[{table}] + at * {window.taps * columns}L"
        arguments = (masks, self.buffers.name(node.inputs[0]), self.buffers.name(node))
        kinds = (*[f"const {kind} *restrict"] * 2, f"{kind} *restrict")
        return Piece(kinds, "\n".join(text), arguments)

    def _rows(self, node: Node, index: int) -> Piece:
        """Taps across rows; those that leave an image read a row of zeros."""
        window, kind = node.window, c_type(node.dtype)
        rows, columns = self.run.shape(self.run.level(node))
        text = [f"for (long y = 0; y < {rows}; y++, p0 += {window.taps}) {{"]
        for t in range(window.taps):
            row = f"p0[{t}] < 0 ? p1 : p2 + p0[{t}] * {columns}L"
            text.append(f"const {kind} *x{t} = {row};")
        text += [
            f"{kind} *restrict z = p3 + y * {columns}L;",
            "#pragma GCC ivdep",
            f"for (long c = 0; c < {columns}; c++)"
            f" z[c] = {' + '.join(f'x{t}[c]' for t in range(window.taps))};",
            "}",
        ]
        where = f"(const int *)tables[{index}] + down * {rows * window.taps}L"
        zeros, source = self.buffers.zeros(node.dtype), self.buffers.name(node.inputs[0])
        kinds = ("const int *", *[f"const {kind} *"] * 2, f"{kind} *")
        return Piece(kinds, "\n".join(text), (where, zeros, source, self.buffers.name(node)))

    def _apply(self, step: Apply) -> list[str | Call]:
        """Second moments of a function of two Gaussians."""
        first, inputs = step.nodes[0], step.nodes[0].inputs
        kind = c_type(first.dtype)
        kinds, arguments, shifted = ["long", "long"], ["", ""], []
        for node in inputs:
            kinds.append(f"const {c_type(node.dtype)} *restrict")
            index = self.run.schedule.array(node, step.level)
            if index is None:
                arguments.append(self.buffers.name(node))
            elif self.run.schedule.arrays[index].side == Kind.LEFT:
                arguments.append(f"l{index}")
            else:
                shifted.append(len(arguments))
                arguments.append(f"r{index}")
        kinds += [f"{kind} *restrict"] * len(step.nodes)
        arguments += [self.buffers.name(node) for node in step.nodes]
        lines = text_of_two(first.detail, [node.detail.output for node in step.nodes])
        piece = Piece(tuple(kinds), "\n".join(lines), tuple(arguments))
        return self._parts(step.level, piece, shifted)

    def _fetch(self, node: Node) -> Piece:
        """What a map over positions reads of the slices of the run before."""
        tables = RESULTS + 2 * len(self.run.windows) + 2 * self.run.pools
        tables += TABLES * self.run.fetched.index(node)
        return fetch(self.run, node, tables, self.buffers.name(node))

    def results(self) -> list[str | Call]:
        """What becomes of the roots."""
        if self.run.stored:
            return self.stores()
        return self.pools() if self.run.widths else self.sums()

    def stores(self) -> list[str | Call]:
        """Keep each root's slice."""
        rows, columns = self.run.shape(self.run.result)
        lines: list[str | Call] = []
        for k, root in enumerate(self.run.roots):
            kind, size = c_type(root.dtype), rows * columns
            block = f"({kind} *)dense[{self.run.first + k}] + s * {size}L"
            source = self.buffers.name(root)
            lines.append(f"memcpy({block}, {source}, {size} * sizeof({kind}));")
        return lines

    def sums(self) -> list[str | Call]:
        """Add up each root over the positions that exist."""
        rows, columns = self.run.shape(self.run.level(self.run.roots[0]))
        lines: list[str | Call] = [
            f"const double *down_in = (const double *)tables[3] + down * {rows}L;",
            f"const double *across_in = (const double *)tables[4] + at * {columns}L;",
        ]
        for k, root in enumerate(self.run.roots):
            kind = c_type(root.dtype)
            text = [
                f"for (long y = 0; y < {rows}; y++) if (p0[y] != 0) {{",
                "double total = 0;",
                "#pragma omp simd reduction(+:total)",
                f"for (long c = 0; c < {columns}; c++) total += p1[c] * p2[y * {columns}L + c];",
                "*p3 += p0[y] * total;",
                "}",
            ]
            kinds = (*["const double *"] * 2, f"const {kind} *", "double *")
            place = f"out + {k}"
            arguments = ("down_in", "across_in", self.buffers.name(root), place)
            lines.append(self.functions.add(Piece(kinds, "\n".join(text), arguments)))
        return lines

    def pools(self) -> list[str | Call]:
        """Add each root to the blocks of sums over windows.

        In a window, phase r of the left position joins the coarse offset (r + offset) / width.
        """
        rows, columns = self.run.shape(self.run.result)
        high, wide = self.run.windowed
        tables = RESULTS + 2 * len(self.run.windows)
        size = rows * columns // (high * wide)
        lines: list[str | Call] = []
        for k, root in enumerate(self.run.roots):
            kind = c_type(root.dtype)
            text = [
                f"for (long y = 0; y < {rows}; y++) {{",
                f"const int d = p0[y % {high}];",
                "if (d < 0 || p2[y] == 0) continue;",
                f"for (long r = 0; r < {wide}; r++) {{",
                "const int a = p1[r];",
                "if (a < 0) continue;",
                f"const {kind} *restrict x = p4 + y * {columns}L + r;",
                f"{kind} *restrict z = p5 + (a * p6 + d) * {size}L"
                f" + y / {high} * {columns // wide}L;",
                "#pragma GCC ivdep",
                f"for (long c = 0; c < {columns // wide}; c++)"
                f" z[c] += {'' if kind == 'double' else '(float)'}p3[c * {wide} + r]"
                f" * x[c * {wide}];",
                "}",
                "}",
            ]
            tables_of = (*["const int *"] * 2, *["const double *"] * 2)
            kinds = (*tables_of, f"const {kind} *", f"{kind} *", "long")
            arguments = (
                f"(const int *)tables[{tables}] + down * {high}L",
                f"(const int *)tables[{tables + 1}] + at * {wide}L",
                f"(const double *)tables[3] + down * {rows}L",
                f"(const double *)tables[4] + at * {columns}L",
                self.buffers.name(root),
                f"({kind} *)dense[{self.run.first + k}]",
                "((const long *)tables[0])[1]",
            )
            lines.append(self.functions.add(Piece(kinds, "\n".join(text), arguments)))
        return lines


def _sums_of_taps(window: Window, columns: int) -> list[str]:
    """Loops over a row; where inputs are put apart, each reads the taps that meet one."""
    apart, lines = window.insert, []
    for phase in range(apart):
        terms = []
        for t in range(window.taps):
            steps, rest = divmod(phase + t * window.dilation - window.padding, apart)
            if rest == 0:
                place = f"c * {apart} + {phase}"
                terms.append(f"p0[{t * columns} + {place}] * x[c * {window.stride} + {steps}]")
        count = -(-(columns - phase) // apart)
        lines += [
            "#pragma GCC ivdep",
            f"for (long c = 0; c < {count}; c++) z[c * {apart} + {phase}] ="
            f" {' + '.join(terms) or '0'};",
        ]
    return lines


def _ends(window: Window, columns: int, width: int) -> list[str]:
    """What taps beyond the ends of a row add, if the window wraps."""
    if not window.wraps:
        return []
    rows = reads(window, np.arange(columns)).tolist()
    beyond = [(c, at) for row in rows for c, at in enumerate(row) if not 0 <= at < width]
    return [f"z[{c}] += x[{at % width}];" for c, at in beyond]


def chain_source(name: str, runs: Sequence[Run]) -> str:
    """The function that computes a list of pairs of examples, run after run.

    To `out` it adds the last run's sums, one number per root and pair. `bytes` are the sizes of
    the blocks, `counts` the numbers of slices.
    """
    lines = [
        f"void {name}(const void *const *const *left, const void *const *const *right,"
        " const void *const *const *tables, char *const *scratch, void *const *dense,"
        " const long *bytes, const long *counts, const long *pairs, long count, double *out)",
        "{",
        "for (long pair = 0; pair < count; pair++) {",
    ]
    for k, run in enumerate(runs):
        made = range(run.first, run.first + len(run.roots)) if run.pools else range(0)
        lines += [f"memset(dense[{block}], 0, bytes[{block}]);" for block in made]
        lines.append(
            f"{name}_{k}(left[{k}], right[{k}], tables[{k}], scratch[{k}], dense, pairs[2 * pair],"
            f" pairs[2 * pair + 1], 0, counts[{k}], out + pair * {len(runs[-1].roots)});"
        )
    return "\n".join([*lines, "}", "}"])
