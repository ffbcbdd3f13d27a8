"""The scratch memory of a slice: which node lies where, and when its place is free again."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import torch

from tangency.infinite.fused.graph import Kind, Node
from tangency.infinite.fused.operations import c_type, times

if TYPE_CHECKING:
    from tangency.infinite.fused.run import Run

__all__ = ["Buffers"]

_LINE = 64
"""Bytes of a cache line, to which every buffer is aligned."""

_TYPES = (torch.float64, torch.float32)


class Buffers:
    """Places for the stored nodes of a run, and for the right example's quantities at one offset.

    Each place is surrounded by zeros that nobody writes: taps that leave the image read them
    before they are multiplied by zero. A place serves one type of number only, so that whatever
    was left there is a number.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        windows = [node.window for node in run.windows]
        reach = [w.taps * w.dilation + abs(w.padding) for w in windows]
        self.guard = -(-max(reach, default=0) // 16) * 16
        self._places: dict[Node, str] = {}
        self._counts = dict.fromkeys(_TYPES, 0)
        self._assign()

    def _assign(self) -> None:
        """Give every stored node a place that is free while it lives."""
        busy: dict[tuple[torch.dtype, int], int] = {}
        for node, (born, last) in sorted(self._run.schedule.kept.items(), key=lambda kv: kv[1]):
            place = 0
            while busy.get((node.dtype, place), -1) >= born:
                place += 1
            busy[node.dtype, place] = last
            self._counts[node.dtype] = max(self._counts[node.dtype], place + 1)
            self._places[node] = f"{c_type(node.dtype)[0]}{place}"

    def name(self, node: Node) -> str:
        """The pointer to a stored node's numbers, or to a slice of a block in memory."""
        if node in self._places:
            return self._places[node]
        return f"g{self._run.schedule.dense.index(node)}"

    def zeros(self, dtype: torch.dtype) -> str:
        """The pointer to a row of zeros."""
        return f"zero_{c_type(dtype)}"

    # -- sizes ---------------------------------------------------------------------------------

    def _elements(self, dtype: torch.dtype) -> int:
        """Numbers in one place of this type."""
        shapes = [self._run.shape(self._run.level(n)) for n in self._places if n.dtype == dtype]
        return max((rows * columns for rows, columns in shapes), default=0)

    def _row(self) -> int:
        return max(self._run.shape(self._run.level(n))[1] for n in self._run.schedule.kept)

    def _right(self) -> list[tuple[int, str, int, int, int, Fraction]]:
        """Index, type, channels, rows, columns and step of each quantity of the right side."""
        run, found = self._run, []
        for k, array in enumerate(run.schedule.arrays):
            if array.side == Kind.RIGHT:
                shape, step = run.shape(array.level), run.steps(array.level)[1]
                found.append((k, c_type(array.node.dtype), 1, *shape, step))
        for k, node in enumerate(run.data, len(run.schedule.arrays)):
            level = run.level(node)
            channels = node.detail.channels
            found.append((k, "double", channels, *run.shape(level), run.steps(level)[1]))
        return found

    def _layout(self) -> tuple[list[tuple[str, str, int]], int]:
        """Type, name and first byte of everything in the scratch memory; bytes in all."""
        laid, position = [], 0
        for dtype in _TYPES:
            kind, size = c_type(dtype), dtype.itemsize
            for place in range(self._counts[dtype]):
                laid.append((kind, f"{kind[0]}{place}", position + self.guard * size))
                position += _aligned((self._elements(dtype) + 2 * self.guard) * size)
            laid.append((kind, self.zeros(dtype), position))
            position += _aligned(self._row() * size)
        for k, kind, channels, rows, columns, _ in self._right():
            laid.append((kind, f"moved{k}", position))
            position += _aligned(channels * rows * columns * (8 if kind == "double" else 4))
        return laid, position

    @property
    def bytes(self) -> int:
        """Size of the scratch memory of one thread, which starts as zeros."""
        return self._layout()[1]

    # -- text ----------------------------------------------------------------------------------

    def declarations(self) -> list[str]:
        """Pointers into the scratch memory."""
        laid, _ = self._layout()
        lines = [f"{kind} *{name} = ({kind} *)(scratch + {at}L);" for kind, name, at in laid]
        for k, kind, *_ in self._right():
            lines.append(f"const {kind} *r{k} = 0;")
        return lines

    def assembly(self) -> list[str]:
        """Move the right example's columns by the offset, whenever that changes."""
        lines = ["if (at != seen) {", "seen = at;"]
        for k, kind, channels, rows, columns, step in self._right():
            size = channels * rows * columns
            lines += [
                "{",
                f"const {kind} *x = (const {kind} *)right[{k}] + j * {size}L;",
                f"const long by = {times('dx', step)};",
                f"r{k} = by ? moved{k} : x;",
                f"if (by) for (long y = 0; y < {channels * rows}; y++) {{",
                f"memcpy(moved{k} + y * {columns}L, x + y * {columns}L + by,"
                f" ({columns}L - by) * sizeof(*x));",
                f"memcpy(moved{k} + (y + 1) * {columns}L - by, x + y * {columns}L,"
                " by * sizeof(*x));",
                "}",
                "}",
            ]
        lines.append("}")
        for k, node in enumerate(self._run.schedule.dense):
            if node in self._places:  # gathered from several slices
                continue
            rows, columns = self._run.shape(self._run.level(node))
            kind, block = c_type(node.dtype), f"dense[{self._run.blocks[k]}]"
            lines.append(f"const {kind} *g{k} = (const {kind} *){block} + s * {rows * columns}L;")
        return lines


def _aligned(count: int) -> int:
    return -(-count // _LINE) * _LINE
