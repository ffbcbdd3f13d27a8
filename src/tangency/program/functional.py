"""In-place operations of a graph as functional ones, where no other tensor sees the change.

`ExportedProgram.run_decompositions` makes any graph functional, but takes apart what the rules read
as one node (batch normalisation, dropout). Most modules are in place in a simple way,
`nn.ReLU(inplace=True)` or `out += identity`: for those it is enough to exchange nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from tangency.program.operations import base_name

__all__ = ["drop_inactive_dropouts", "make_functional"]

_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
_MAY_ALIAS = _DROPOUTS | {
    "reshape",
    "flatten",
    "unflatten",
    "contiguous",
    "to",
    "type_as",
    "einsum",
    "getitem",
    "expand_as",
    "view_as",
    "reshape_as",
    "ravel",
}
"""Operations whose result may be their argument though their schema does not say so."""


def _is_mutable(node: fx.Node) -> bool:
    """Whether a node writes into one of its arguments."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def make_functional(graph: fx.Graph) -> bool:
    """Exchange the in-place operations of `graph`; False (half done) where one is not simple.

    An operation is simple if it writes into its first argument only, has a functional twin, and no
    other tensor that may share the memory is read afterwards.
    """
    order = {node: k for k, node in enumerate(graph.nodes)}
    for node in [n for n in graph.nodes if _is_mutable(n)]:
        twin = _twin(node)
        if twin is None or _seen_later(node, order):
            return False
        target = cast(fx.Node, node.args[0])
        node.target = twin
        later = [user for user in target.users if order[user] > order[node]]
        for user in later:
            user.replace_input_with(target, node)
    return True


def drop_inactive_dropouts(graph: fx.Graph) -> None:
    """Inactive dropout is its argument itself (a decomposition would take it for a copy)."""
    for node in list(graph.nodes):
        if base_name(node) in _DROPOUTS and node.args[2] is False:
            node.replace_all_uses_with(cast(fx.Node, node.args[0]))
            graph.erase_node(node)


def _twin(node: fx.Node) -> OpOverload | None:
    """The functional operation that computes the same, or None."""
    target = cast(OpOverload, node.target)
    namespace, _, name = target._schema.name.partition("::")
    written = [a for a in target._schema.arguments if a.alias_info and a.alias_info.is_write]
    if namespace != "aten" or not name.endswith("_") or written != target._schema.arguments[:1]:
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    twin = getattr(packet, target._overloadname, None)
    return twin if isinstance(twin, OpOverload) and _one_dtype(node) else None


def _one_dtype(node: fx.Node) -> bool:
    """Writing converts to the type of the target; a functional operation would promote it."""
    values = [n.meta.get("val") for n in node.all_input_nodes]
    dtypes = {value.dtype for value in values if isinstance(value, Tensor) and value.dim()}
    return len(dtypes - {torch.bool}) <= 1


def _seen_later(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether something reads memory that `node` writes, by another name, after it."""
    target = cast(fx.Node, node.args[0])
    return any(
        order[user] > order[node]
        for alias in _aliases(target, node)
        if alias is not target
        for user in alias.users
    )


def _aliases(node: fx.Node, result: fx.Node) -> set[fx.Node]:
    """All nodes that may share memory with `node`, but for `result` and what is a view of that."""
    found: set[fx.Node] = {result}
    stack = [node]
    while stack:
        current = stack.pop()
        if current not in found:
            found.add(current)
            stack.extend(_neighbours(current))
    return found - {result}


def _neighbours(node: fx.Node) -> Iterator[fx.Node]:
    """Nodes that `node` is a view of, and views of it."""
    if _may_alias(node):
        yield from node.all_input_nodes
    yield from (user for user in node.users if _may_alias(user))


def _may_alias(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return node.op == "call_function" and base_name(node) in _MAY_ALIAS
    if node.target._schema.is_mutable:
        return True
    returned = node.target._schema.returns
    return base_name(node) in _MAY_ALIAS or any(r.alias_info is not None for r in returned)
