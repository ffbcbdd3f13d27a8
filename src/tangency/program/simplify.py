"""Small rewritings after which a graph says the same with fewer kinds of nodes.

- `batch_norm` and `dropout` are one node, however the export spells them;
- constants shaped like a random value (`zeros_like(h)`) depend on its sizes alone;
- a broadcast before a pointwise operation is left to that operation;
- products with zeros and sums with zeros (initial states of recurrent networks) vanish.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from tangency.program.axes import sizes_of
from tangency.program.operations import POINTWISE, argument, base_name

__all__ = ["simplify"]

_aten = torch.ops.aten


def simplify(graph: fx.Graph) -> None:
    """Apply all rewritings to `graph`, in place."""
    for rewriting in (_join_pieces, _detach_constants, _leave_broadcasts, _drop_zeros):
        for node in list(graph.nodes):
            if node.op == "call_function":
                rewriting(graph, node)
        graph.eliminate_dead_code()


def _inserted(graph: fx.Graph, like: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """A new node before `like`, with its shape and its place in the source."""
    with graph.inserting_before(like):
        node = graph.call_function(target, args)
    node.meta = dict(like.meta)
    return node


def _join_pieces(graph: fx.Graph, node: fx.Node) -> None:
    """The first result of a native batch normalisation or dropout is what modules call."""
    if base_name(node) != "getitem" or node.args[1] != 0:
        return
    source = cast(fx.Node, node.args[0])
    if base_name(source) == "_native_batch_norm_legit_no_training":
        *tensors, momentum, eps = source.args
        args = (*tensors, False, momentum, eps, False)
        node.replace_all_uses_with(_inserted(graph, node, _aten.batch_norm.default, args))
    elif base_name(source) == "native_dropout":
        args = tuple(source.args)
        node.replace_all_uses_with(_inserted(graph, node, _aten.dropout.default, args))


_FILLED: dict[str, float | None] = {
    "zeros_like": 0,
    "ones_like": 1,
    "full_like": None,
    "new_zeros": 0,
    "new_ones": 1,
}
"""Operations that take no more of their first argument than its sizes and type."""


def _detach_constants(graph: fx.Graph, node: fx.Node) -> None:
    """A constant tensor with the sizes of another tensor, made from the sizes alone."""
    if base_name(node) not in _FILLED:
        return
    value = cast(Tensor, node.meta["val"])
    fill = _FILLED[base_name(node)]
    fill = cast(float, argument(node, 1, "fill_value")) if fill is None else fill
    sizes = _sizes(graph, node)
    if sizes is None:
        return
    made = _inserted(graph, node, _aten.full.default, (sizes, fill))
    made.kwargs = {"dtype": value.dtype, "device": value.device}
    node.replace_all_uses_with(made)


def _sizes(graph: fx.Graph, node: fx.Node) -> list[int | fx.Node] | None:
    """The sizes of a node, the batch as a node that reads it; None where another size is free."""
    sizes: list[int | fx.Node] = []
    for size in node.meta["val"].shape:
        known = size if isinstance(size, int) else _reader(graph, node, size)
        if known is None:
            return None
        sizes.append(known)
    return sizes


def _reader(graph: fx.Graph, before: fx.Node, size: torch.SymInt) -> fx.Node | None:
    """A new node that reads a free size off an input; None where no input has it."""
    for source in graph.nodes:
        value = source.meta.get("val")
        if source.op != "placeholder" or not isinstance(value, Tensor):
            continue
        for dim, own in enumerate(cast("Sequence[int | torch.SymInt]", value.shape)):
            if isinstance(own, torch.SymInt) and own.node.expr == size.node.expr:
                reader = _inserted(graph, before, _aten.sym_size.int, (source, dim))
                reader.meta["val"] = size
                return reader
    return None


def _leave_broadcasts(graph: fx.Graph, node: fx.Node) -> None:
    """`f(x, s.expand(sizes))` is `f(x, s)` where x has the sizes already."""
    if base_name(node) not in POINTWISE:
        return
    for source in node.all_input_nodes:
        if base_name(source) != "expand":
            continue
        inner = cast(fx.Node, source.args[0])
        others = [n for n in node.all_input_nodes if n is not source]
        if _broadcast([inner, *others]) == sizes_of(node.meta["val"]):
            node.replace_input_with(source, inner)


def _broadcast(nodes: Sequence[fx.Node]) -> tuple[int, ...]:
    """Sizes of the elementwise result of tensors."""
    shapes = [sizes_of(n.meta["val"]) for n in nodes if isinstance(n.meta.get("val"), Tensor)]
    return tuple(torch.broadcast_shapes(*shapes)) if shapes else ()


_SAME_ENTRIES = frozenset(
    {"select", "slice", "view", "reshape", "expand", "squeeze", "unsqueeze", "flatten"}
    | {"transpose", "permute", "t", "clone", "contiguous", "_to_copy", "to", "detach"}
)


def _is_zero(node: object) -> bool:
    """Whether a node is a tensor of zeros, by its construction."""
    if not isinstance(node, fx.Node):
        return False
    name = base_name(node)
    if name == "full":
        return bool(node.args[1] == 0)
    return name == "zeros" or (name in _SAME_ENTRIES and _is_zero(node.args[0]))


def _drop_zeros(graph: fx.Graph, node: fx.Node) -> None:
    name = base_name(node)
    if name not in ("mul", "add") or node.kwargs:
        return
    for zero, other in (node.args[:2], node.args[1::-1]):
        if not _is_zero(zero) or not isinstance(other, fx.Node):
            continue
        sizes = _sizes(graph, node) if name == "mul" else None
        if sizes is not None:
            made = _inserted(graph, node, _aten.zeros.default, (sizes,))
            made.kwargs = {"dtype": node.meta["val"].dtype, "device": node.meta["val"].device}
            node.replace_all_uses_with(made)
        elif name == "add" and _same(other, node):
            node.replace_all_uses_with(other)
        return


def _same(a: fx.Node, b: fx.Node) -> bool:
    first: Tensor = a.meta["val"]
    second: Tensor = b.meta["val"]
    return first.dtype is second.dtype and sizes_of(first) == sizes_of(second)
