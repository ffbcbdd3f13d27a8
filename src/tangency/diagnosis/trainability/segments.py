"""A stretch of a recorded computation as a module of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from tangency.program.trace import Trace

__all__ = ["Segment"]


class Segment(nn.Module):
    """The operations of a trace that lead from one value to another.

    Its parameters bear the qualified names that they have in the traced module, and share its
    numbers, but are parameters of their own: freezing them does not freeze those of the module.

    Args:
        trace: of the whole module.
        nodes: the operations, in order; the value of the last one is returned.
        sources: the values that the segment is called with.
    """

    def __init__(self, trace: Trace, nodes: Sequence[fx.Node], sources: Sequence[fx.Node]) -> None:
        super().__init__()
        self._trace = trace
        self._nodes = tuple(nodes)
        self._sources = tuple(sources)
        self._constants: dict[fx.Node, str] = {}
        for node in static_inputs(nodes, sources):
            if node in trace.parameters:
                own = nn.Parameter(trace.values[node].detach())
                _place(self, trace.parameters[node], own)
            elif node in trace.constants:
                name = f"_constant{len(self._constants)}"
                self.register_buffer(name, trace.constants[node], persistent=False)
                self._constants[node] = name

    def forward(self, *inputs: Tensor) -> Tensor:
        """The value of the last node, from those of the sources."""
        values: dict[fx.Node, Any] = dict(zip(self._sources, inputs, strict=True))
        count = inputs[0].shape[0]
        for node in self._nodes:
            self._value(node, values, count)
        return cast(Tensor, values[self._nodes[-1]])

    def renewed(self) -> Segment:
        """The same segment with parameters of its own, equal in value."""
        return Segment(self._trace, self._nodes, self._sources)

    def _value(self, node: fx.Node, values: dict[fx.Node, Any], count: int) -> Any:
        if node not in values:
            values[node] = self._compute(node, values, count)
        return values[node]

    def _compute(self, node: fx.Node, values: dict[fx.Node, Any], count: int) -> Any:
        if node in self._trace.parameters:
            return self.get_parameter(self._trace.parameters[node])
        if node in self._constants:
            return self.get_buffer(self._constants[node])
        if is_batch_size(node):
            return count

        def value(argument: fx.Node) -> Any:
            return self._value(argument, values, count)

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        return cast(Any, node.target)(*args, **kwargs)


def is_number(node: fx.Node) -> bool:
    """Whether a node is a size or computed from sizes."""
    return isinstance(node.meta.get("val"), (bool, int, float, torch.SymInt, torch.SymFloat))


def is_batch_size(node: fx.Node) -> bool:
    """Whether a node asks a tensor for its number of examples, the only size that is left free."""
    return is_number(node) and "sym_size" in str(node.target)


def static_inputs(nodes: Sequence[fx.Node], sources: Sequence[fx.Node]) -> list[fx.Node]:
    """The placeholders behind `nodes` that are not reached through `sources`, in graph order."""
    seen = set(sources)
    stack = [source for node in nodes for source in node.all_input_nodes]
    found = []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "placeholder":
            found.append(node)
        elif not is_batch_size(node):
            stack.extend(node.all_input_nodes)
    order = {node: place for place, node in enumerate(nodes[-1].graph.nodes)}
    return sorted(found, key=order.__getitem__)


def _place(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register `parameter` under a qualified name, with plain modules on the way."""
    *path, last = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = cast(nn.Module, owner._modules[part])
    owner.register_parameter(last, parameter)
