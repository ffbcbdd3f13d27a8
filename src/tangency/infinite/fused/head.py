"""C text of the head: loops over pairs of examples, number by number."""

from __future__ import annotations

import torch

from tangency.infinite.fused.functions import Call, Functions, Piece
from tangency.infinite.fused.graph import Kind, Node
from tangency.infinite.fused.loops import statements
from tangency.infinite.fused.operations import c_type
from tangency.infinite.fused.plan import Head
from tangency.infinite.fused.schedule import Loop

__all__ = ["CHUNK", "head_bytes", "head_source"]

CHUNK = 512
"""Columns that are computed at a time, in buffers that stay in cache."""

_SIGNATURE = (
    "void head(const void *const *left, const void *const *right, const void *const *matrices,"
    " void *const *out, char *scratch, long first, long last, long begin, long end, long width)"
)


def _places(head: Head) -> dict[Node, int]:
    """Buffers of a chunk of columns for what one loop leaves to the next."""
    inner = [node for node in head.schedule.kept if node not in head.roots]
    return {node: k for k, node in enumerate(inner)}


def head_bytes(head: Head) -> int:
    """Size of the scratch memory of one thread."""
    return max(1, len(_places(head))) * CHUNK * torch.float64.itemsize


def head_source(head: Head, functions: Functions) -> list[str | Call]:
    """The function `head`, which fills rows `first` to `last` and columns `begin` to `end`.

    Rows and columns are numbered from the first of the matrices, whose rows are `width` apart;
    `left` and `right` point at the first row's and column's quantities.
    """
    places = _places(head)
    lines: list[str | Call] = [_SIGNATURE, "{"]
    for node, k in places.items():
        kind = c_type(node.dtype)
        lines.append(f"{kind} *b{k} = ({kind} *)(scratch + {k * CHUNK * 8}L);")
    lines.append("for (long i = first; i < last; i++) {")
    for k, array in enumerate(head.schedule.arrays):
        if array.side == Kind.LEFT:
            kind = c_type(array.node.dtype)
            lines.append(f"const {kind} l{k} = ((const {kind} *)left[{k}])[i];")
    lines.append(f"for (long j = begin; j < end; j += {CHUNK}) {{")
    lines.append(f"const long count = end - j < {CHUNK} ? end - j : {CHUNK};")
    lines += _pointers(head)
    for step in head.schedule.steps:
        assert isinstance(step, Loop)
        lines.append(_loop(step, head, places, functions))
    return [*lines, "}", "}", "}"]


def _pointers(head: Head) -> list[str]:
    lines = []
    for k, array in enumerate(head.schedule.arrays):
        if array.side == Kind.RIGHT:
            kind = c_type(array.node.dtype)
            lines.append(f"const {kind} *r{k} = (const {kind} *)right[{k}] + j;")
    for k, node in enumerate(head.matrices):
        kind = c_type(node.dtype)
        lines.append(f"const {kind} *m{k} = (const {kind} *)matrices[{k}] + i * width + j;")
    for k, node in enumerate(head.roots):
        kind = c_type(node.dtype)
        lines.append(f"{kind} *o{k} = ({kind} *)out[{k}] + i * width + j;")
    return lines


def _loop(loop: Loop, head: Head, places: dict[Node, int], functions: Functions) -> Call:
    body = statements(loop)
    kinds, arguments = ["long"], ["count"]
    reads: dict[Node, str] = {}
    for node in body.reads:
        name = _source(node, head, places)
        if name.startswith("l"):  # the same number for all columns
            reads[node] = f"p{len(kinds)}"
            kinds.append(f"const {c_type(node.dtype)}")
        else:
            reads[node] = f"p{len(kinds)}[e]"
            kinds.append(f"const {c_type(node.dtype)} *restrict")
        arguments.append(name)
    stores: dict[Node, str] = {}
    for node in loop.stores:
        stores[node] = f"p{len(kinds)}[e]"
        kinds.append(f"{c_type(node.dtype)} *restrict")
        arguments.append(_source(node, head, places))
    text = ["#pragma GCC ivdep", "for (long e = 0; e < p0; e++) {", *body.text(reads, stores), "}"]
    return functions.add(Piece(tuple(kinds), "\n".join(text), tuple(arguments), body.constants))


def _source(node: Node, head: Head, places: dict[Node, int]) -> str:
    """Where a node's numbers are."""
    index = head.schedule.array(node, ())
    if index is not None:
        return ("l" if head.schedule.arrays[index].side == Kind.LEFT else "r") + str(index)
    if node in head.matrices:
        return f"m{head.matrices.index(node)}"
    return f"o{head.roots.index(node)}" if node in head.roots else f"b{places[node]}"
