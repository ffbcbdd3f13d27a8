"""One token of many, taken early: a network that is read at its class token computes only that.

`f(x)[:, i]` is `f(x[:, i:i+1])[:, 0]` where f acts on every position along an axis by itself. Back
from such a selection, the operations of which nothing else is used are recorded for that position
alone: in the last block of a transformer, one query instead of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import fx
from torch.fx.node import map_arg

from tangency.program.axes import Axis, resolve
from tangency.program.operations import POINTWISE, arguments, base_name
from tangency.program.trace import Trace

if TYPE_CHECKING:
    from tangency.program.capture import Program

__all__ = ["selected_early"]

_VIEWS = frozenset({"view", "reshape", "_unsafe_view"})
_ANY_DIMENSION = frozenset(
    {"transpose", "permute", "flatten", "unsqueeze", "expand"}
    | {"contiguous", "clone", "to", "_to_copy", "detach", "alias", "dropout"}
)
_OTHER_DIMENSION = frozenset({"select", "slice", "unflatten", "squeeze"})


def selected_early(program: Program) -> Trace | None:
    """The trace with one more selection taken early, or None where there is none to take.

    The graph is rewritten in place, so that `program` no longer describes it.
    """
    for node in reversed(list(program.trace.graph.nodes)):
        if base_name(node) == "select" and program.nature.get(node) == "random":
            region = _Region(program, node)
            if region.nodes:
                return region.rewritten()
    return None


class _Region:
    """What is computed for one selection only, position by position along its axis."""

    def __init__(self, program: Program, selection: fx.Node) -> None:
        self.program = program
        self.selection = selection
        source, dim, index = cast(tuple[fx.Node, int, int], selection.args)
        atoms = resolve(program.axes[source][dim])
        self.axis: Axis | None = atoms[0] if len(atoms) == 1 else None
        self.dim, self.index = dim, index
        self.nodes: set[fx.Node] = set()
        if self.axis is not None and self.axis.kind == "position":
            self._grow(source)

    def _grow(self, source: fx.Node) -> None:
        nodes = list(self.program.trace.graph.nodes)
        allowed = {n for n in nodes if self._has(n) and self._by_position(n)}
        while True:
            self.nodes = set()
            for node in reversed(nodes[: nodes.index(source) + 1]):
                used = all(self._is_cut_in(user, node) for user in node.users)
                if node in allowed and used and node.users:
                    self.nodes.add(node)
            stuck = {n for n in self.nodes if not all(map(self._can_be_cut, self._outside(n)))}
            if not stuck:
                break
            allowed -= stuck

    def _has(self, node: fx.Node) -> bool:
        if node not in self.program.axes:
            return False
        return any(a is self.axis for a in self.program.atoms(node))

    def _is_cut_in(self, user: fx.Node, node: fx.Node) -> bool:
        """Whether a user needs a node at the selected position only."""
        return user is self.selection or (user in self.nodes and node in self._inputs(user))

    def _inputs(self, node: fx.Node) -> list[fx.Node]:
        """Inputs that vary along the axis: of attention the queries, not the keys and values."""
        if base_name(node) == "scaled_dot_product_attention":
            return [cast(fx.Node, arguments(node)["query"])]
        return [n for n in node.all_input_nodes if self._has(n)]

    def _outside(self, node: fx.Node) -> Iterator[fx.Node]:
        """Of these inputs, those that stay as they are."""
        return (n for n in self._inputs(node) if n not in self.nodes)

    def _place(self, node: fx.Node) -> int:
        """The dimension of a node in which the axis is."""
        dims = self.program.axes[node]
        return next(k for k, dim in enumerate(dims) if any(a is self.axis for a in resolve(dim)))

    def _can_be_cut(self, node: fx.Node) -> bool:
        return len(resolve(self.program.axes[node][self._place(node)])) == 1

    def _by_position(self, node: fx.Node) -> bool:
        """Whether a node does the same at every position along the axis, and nothing else."""
        name = base_name(node)
        if self.program.nature[node] != "random" or node.op != "call_function":
            return False
        if name in POINTWISE or name in _ANY_DIMENSION:
            return True
        source = cast(fx.Node, node.args[0])
        if not isinstance(source, fx.Node) or not self._has(source):
            return False
        behind = len(self.program.axes[source]) - self._place(source)
        if name == "linear":
            return behind > 1
        if name == "layer_norm":
            return behind > len(cast("list[int]", node.args[1]))
        if name in _VIEWS:
            return -1 not in cast("list[Any]", node.args[1])
        if name in _OTHER_DIMENSION:
            return len(node.args) > 1 and node.args[1] in self._other_dimensions(source)
        return name == "scaled_dot_product_attention" and self._is_query(node)

    def _other_dimensions(self, source: fx.Node) -> set[object]:
        """The numbers of the dimensions in which the axis is not."""
        rank = len(self.program.axes[source])
        others = {k for k in range(rank) if k != self._place(source)}
        return {*others, *(k - rank for k in others)}

    def _is_query(self, node: fx.Node) -> bool:
        """Whether the axis is that of the queries alone, in attention without a mask."""
        given = arguments(node)
        query, others = cast(fx.Node, given["query"]), (given["key"], given["value"])
        if given.get("attn_mask") is not None or given.get("is_causal"):
            return False
        behind = len(self.program.axes[query]) - self._place(query)
        return behind == 2 and query not in others and not given.get("enable_gqa")

    # -- the new graph -------------------------------------------------------------------------

    def rewritten(self) -> Trace:
        """The trace with the region recorded for the selected position alone."""
        graph, made = self.program.trace.graph, dict[fx.Node, fx.Node]()
        with graph.inserting_before(self.selection):
            for node in [n for n in graph.nodes if n in self.nodes]:
                for source in self._outside(node):
                    if source not in made:
                        made[source] = self._cut(graph, source)
                cut = {n: made[n] for n in self._inputs(node)}
                args, kwargs = map_arg((node.args, node.kwargs), partial(_replaced, cut))
                made[node] = _call(graph, node, self._sizes(node, args), kwargs)
            source = made[cast(fx.Node, self.selection.args[0])]
            last = _call(graph, self.selection, (source, self.dim, 0), {})
        self.selection.replace_all_uses_with(last)
        trace = self.program.trace
        if trace.output is self.selection:
            trace = replace(trace, output=last)
        graph.erase_node(self.selection)
        for node in [n for n in reversed(graph.nodes) if n in self.nodes]:
            graph.erase_node(node)  # attention counts as random, and would stay otherwise
        return trace

    def _cut(self, graph: fx.Graph, source: fx.Node) -> fx.Node:
        """The selected position of a value, with a dimension of size one."""
        assert self.axis is not None
        start = self.index % self.axis.size
        node = graph.call_function(
            torch.ops.aten.slice.Tensor, (source, self._place(source), start, start + 1)
        )
        node.meta = {**self.selection.meta, "val": _value(node)}
        return node

    def _sizes(self, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a view, or of an expansion, with one position along the axis."""
        if base_name(node) not in (*_VIEWS, "expand"):
            return args
        place = self._place(node)
        alone = len(resolve(self.program.axes[node][place])) == 1
        sizes = list(args[1])
        sizes[place] = 1 if alone else -1
        return (args[0], sizes, *args[2:])


def _replaced(by: Mapping[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    return by.get(node, node)


def _call(graph: fx.Graph, like: fx.Node, args: Any, kwargs: Any) -> fx.Node:
    """A node like another, with other arguments."""
    node = graph.call_function(cast(Any, like.target), args, kwargs)
    node.meta = {**like.meta, "val": _value(node)}
    return node


def _value(node: fx.Node) -> Any:
    """What a node gives, from the sizes and types of its arguments."""
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    return cast(Any, node.target)(*args, **kwargs)
