"""Tensors made of parameters alone, which is how parameters meet the data.

A weight may be normalised, split in three, transposed or merged with an adapter before it is used.
What meets the data is called *derived* here; a parameter used as it is, is derived from itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from tangency.empirical.batching import each
from tangency.program.trace import Trace

__all__ = ["Derivations"]

_PULLED_BYTES = 2**28
"""Bytes of gradients that go through a derivation at a time."""

_CHOICES = """
    alias chunk clone contiguous embedding flatten flip index index_select mT movedim narrow numpy_T
    permute reshape roll select slice split split_with_sizes squeeze t transpose unbind unflatten
    unsqueeze view
"""
_VIEWS = frozenset(f"aten::{name}" for name in _CHOICES.split())
"""Operations whose result holds entries of their first input and nothing else."""


class Derivations:
    """The parameter-only part of a graph.

    Attributes:
        derived: tensors of parameters that meet data -> names of the parameters behind each.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._behind = _behind(trace)
        self.derived = {
            node: names
            for node, names in self._behind.items()
            if names
            and not _holds_several(node)
            and any(user not in self._behind for user in node.users)
        }

    def of(self, name: str) -> list[fx.Node]:
        """The derived tensors that depend on a parameter."""
        return [node for node, names in self.derived.items() if name in names]

    def uses(self, node: fx.Node) -> list[fx.Node]:
        """The calls in which a derived tensor meets data."""
        return [user for user in node.users if user not in self._behind]

    def entries(self, node: fx.Node, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """Which entries of its one parameter a derived tensor holds, in order; None if it is
        computed in any other way.
        """
        names = self._behind[node]
        if len(names) != 1 or not all(map(_is_view, self._operations(node))):
            return None
        (name,) = names
        shape = parameters[name].shape
        numbers = torch.arange(shape.numel(), device=parameters[name].device).view(shape)
        index = self._evaluate(node, {name: numbers}).flatten()
        return index if len(index.unique()) == len(index) else None

    def pull(
        self, node: fx.Node, name: str, parameters: Mapping[str, Tensor], gradients: Tensor
    ) -> Tensor:
        """Gradients (rows, size of `node`) as gradients (rows, size) of the parameter `name`."""

        def derive(parameter: Tensor) -> Tensor:
            return self._evaluate(node, {**parameters, name: parameter})

        results = torch.func.vjp(derive, parameters[name])
        value, back = results[0], results[1]

        def pulled(gradient: Tensor) -> Tensor:
            result: Tensor = back(gradient.view(value.shape).to(value.dtype))[0]
            return result.flatten()

        step = max(1, _PULLED_BYTES // max(1, value.nbytes + parameters[name].nbytes))
        return torch.cat([each(pulled, part) for part in gradients.split(step)])

    def _operations(self, node: fx.Node) -> list[fx.Node]:
        """The calls that lead from parameters to `node`."""
        found: dict[fx.Node, None] = {}
        waiting = [node]
        while waiting:
            current = waiting.pop()
            if self._behind[current] and current.op == "call_function" and current not in found:
                found[current] = None
                waiting.extend(current.all_input_nodes)
        return list(found)

    def _evaluate(self, node: fx.Node, parameters: Mapping[str, Tensor]) -> Tensor:
        known: dict[fx.Node, Any] = dict(self._trace.constants)
        named = self._trace.parameters.items()
        known.update({n: parameters[name] for n, name in named if name in parameters})

        def value(wanted: fx.Node) -> Any:
            if wanted not in known:
                args, kwargs = fx.map_arg((wanted.args, wanted.kwargs), value)
                known[wanted] = _call(wanted, args, kwargs)
            return known[wanted]

        result: Tensor = value(node)
        return result


def _call(node: fx.Node, args: Any, kwargs: Any) -> Any:
    assert callable(node.target), f"{node} is neither a call nor a constant"
    return node.target(*args, **kwargs)


def _behind(trace: Trace) -> dict[fx.Node, frozenset[str]]:
    """Nodes that depend on parameters and constants only -> the parameters."""
    behind: dict[fx.Node, frozenset[str]] = dict.fromkeys(trace.constants, frozenset())
    for node in trace.graph.nodes:
        if node in trace.parameters:
            behind[node] = frozenset({trace.parameters[node]})
        elif node.op == "call_function" and all(n in behind for n in node.all_input_nodes):
            behind[node] = frozenset[str]().union(*(behind[n] for n in node.all_input_nodes))
    return behind


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # the choice of one of several results
        return getattr(node.target, "__name__", "") == "getitem"
    return schema.name in _VIEWS


def _holds_several(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("val"), Tensor)
