"""The statements of one loop over numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tangency.infinite.fused.functions import constant
from tangency.infinite.fused.graph import Kind, Node
from tangency.infinite.fused.operations import c_type, expression, literal
from tangency.infinite.fused.schedule import Loop

__all__ = ["PRELUDE", "Body", "statements"]

PRELUDE = """\
#include <math.h>
#include <string.h>
"""


@dataclass(frozen=True)
class Body:
    """What a loop computes for one number.

    Attributes:
        loop: the loop.
        reads: what it reads from memory, in order.
        lines: statements, in which `{k}` stands for what is read k-th and constants are open.
        names: of the stored nodes.
        constants: types and literals of the constants.
    """

    loop: Loop
    reads: list[Node]
    lines: list[str]
    names: dict[Node, str]
    constants: tuple[tuple[str, str], ...]

    def text(self, reads: Mapping[Node, str], stores: Mapping[Node, str]) -> list[str]:
        """The statements, given where to read and where to store."""
        lines = [
            f"const {c_type(node.dtype)} x{k} = {reads[node]};" for k, node in enumerate(self.reads)
        ]
        lines += self.lines
        return lines + [f"{stores[node]} = {self.names[node]};" for node in self.loop.stores]


def statements(loop: Loop) -> Body:
    """The statements of a loop."""
    writer = _Statements(loop)
    for node in loop.nodes:
        writer.add(node)
    return Body(loop, writer.reads, writer.lines, writer.names, tuple(writer.constants))


class _Statements:
    def __init__(self, loop: Loop) -> None:
        self.inside = set(loop.nodes)
        self.reads: list[Node] = []
        self.lines: list[str] = []
        self.names: dict[Node, str] = {}
        self.constants: list[tuple[str, str]] = []

    def add(self, node: Node) -> None:
        """The statement that computes a node."""
        computed = _computed(node)
        assert node.function is not None
        packet: str = node.function.overloadpacket.__name__  # type: ignore[attr-defined]
        operands = [self._argument(a, computed, packet) for a in node.arguments]
        name = f"v{len(self.names)}"
        self.names[node] = name
        text = expression(node, operands, packet, computed)
        self.lines.append(f"const {c_type(node.dtype)} {name} = {text};")

    def _argument(self, argument: object, computed: torch.dtype, packet: str) -> str | None:
        """An argument, converted to the type in which the operation computes."""
        if argument is None:
            return None
        if isinstance(argument, Node) and argument.kind != Kind.CONSTANT:
            text = self._name(argument)
            return (
                text if argument.dtype in (computed, torch.bool) else f"({c_type(computed)}){text}"
            )
        number = argument.detail if isinstance(argument, Node) else float(argument)  # type: ignore[arg-type]
        text = literal(number, computed)
        if packet == "pow" or computed == torch.bool:
            return text
        self.constants.append((c_type(computed), text))
        return constant(len(self.constants) - 1)

    def _name(self, node: Node) -> str:
        if node in self.names:
            return self.names[node]
        assert node not in self.inside
        if node not in self.reads:
            self.reads.append(node)
        return f"x{self.reads.index(node)}"


def _computed(node: Node) -> torch.dtype:
    """The type in which the operands are compared or combined."""
    if node.dtype != torch.bool:
        return node.dtype
    types = [n.dtype for n in node.inputs if n.dtype != torch.bool]
    return torch.float64 if torch.float64 in types else (types[0] if types else torch.bool)
