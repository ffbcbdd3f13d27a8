"""Blocks of operations inside one node: `torch.no_grad()`, autocasting, `torch.cond`.

A block without gradients that acts on data and constants alone (the angles of rotary positions,
say) computes what its operations compute: it is copied into the graph. Others are refused, because
gradients stop at them or because which branch is taken depends on the data.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from torch import fx
from torch.export import ExportedProgram

__all__ = ["first_block", "inline_blocks"]

_GRADIENT_MODE = "wrap_with_set_grad_enabled"
_AUTOCAST = "wrap_with_autocast"


def inline_blocks(exported: ExportedProgram, parameters: Collection[fx.Node]) -> None:
    """Copy the blocks that change nothing for data and constants into the graph of `exported`."""
    module = exported.graph_module
    while True:
        node = _next(module.graph, _dependent(module.graph, parameters))
        if node is None:
            return
        _inline(module, node)


def first_block(graph: fx.Graph) -> fx.Node | None:
    """A node that runs a block of operations, if there is any."""
    for node in graph.nodes:
        if node.op == "get_attr":
            return next(iter(node.users), cast(fx.Node, node))
    return None


def _dependent(graph: fx.Graph, parameters: Collection[fx.Node]) -> set[fx.Node]:
    """All nodes that depend on a parameter."""
    found = set(parameters)
    for node in graph.nodes:
        if found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _next(graph: fx.Graph, dependent: Collection[fx.Node]) -> fx.Node | None:
    for node in graph.nodes:
        name = getattr(node.target, "__name__", "")
        if name == _GRADIENT_MODE and node not in dependent:
            return cast(fx.Node, node)
        if name == _AUTOCAST and node.args[2] is False:
            return cast(fx.Node, node)
    return None


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    """Replace a node and the `getitem`s of its results by the operations of its block."""
    settings = 4 if getattr(node.target, "__name__", "") == _AUTOCAST else 1
    body, *arguments = cast("tuple[fx.Node, ...]", node.args[settings:])
    block = cast(fx.GraphModule, module.get_submodule(cast(str, body.target)))
    inner = block.graph
    placeholders = [n for n in inner.nodes if n.op == "placeholder"]
    copies: dict[fx.Node, fx.Node] = dict(zip(placeholders, arguments, strict=True))
    with module.graph.inserting_before(node):
        for own in inner.nodes:
            if own.op == "get_attr":  # a block inside this one
                name = f"{body.target}_{own.target}"
                module.add_submodule(name, block.get_submodule(own.target))
                copies[own] = module.graph.get_attr(name)
            elif own.op == "call_function":
                copies[own] = module.graph.node_copy(own, lambda n: copies[n])
    results = cast("tuple[fx.Node, ...]", next(n for n in inner.nodes if n.op == "output").args[0])
    for user in list(node.users):
        user.replace_all_uses_with(copies[results[cast(int, user.args[1])]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    if not body.users:
        module.graph.erase_node(body)
