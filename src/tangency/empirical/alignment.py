"""What a recorded graph does with the examples of a batch: keeps them apart, in their order?

Three examples on which every path is confirmed do not show all of that. Where the data say which
rows are taken (tokens sorted by the expert that they go to, padding left out), rows may be in order
by chance; where a value is made of all examples (the largest entry of a batch), it may matter for
others alone.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from tangency.program.operations import arguments, base_name
from tangency.program.reach import ancestors, descendants
from tangency.program.trace import Trace

__all__ = ["common", "misaligned"]

_TAKING = {"index": "self", "index_select": "self", "gather": "self", "embedding": "weight"}
"""Operations that take rows -> what they take them from."""

_PUTTING = {"index_add": "source", "index_copy": "source", "index_put": "values"}
_PUTTING |= dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), "src")
"""Operations that put rows -> what they put."""


def common(trace: Trace) -> fx.Node | None:
    """A value that is made of the data of all examples and that meets single ones on the way to the
    output; None where there is none, but to say which rows are taken (of an expert's, how many).
    """
    of_data, wanted = _of_data(trace), ancestors(trace.output)
    shared = {n for n in of_data & wanted if not _has_examples(n)}
    for node in trace.graph.nodes:
        met = [n for n in node.all_input_nodes if n in shared and n not in _indices(node)]
        if node in wanted and node not in shared and met:
            # The first one that it is made of.
            made_of = shared & ancestors(met[0])
            first: fx.Node = next(n for n in trace.graph.nodes if n in made_of)
            return first
    return None


def misaligned(trace: Trace) -> frozenset[fx.Node]:
    """The values whose rows the data arrange, or whose number of rows depends on the data.

    Rows in an arrangement that are taken or put by the data once more are back in their order: so
    is the sum over experts. (Where they are not, the three examples will hardly fit.)
    """
    of_data = _of_data(trace)
    found: set[fx.Node] = set()
    for node in trace.graph.nodes:
        if _arranges(node, of_data):
            source = arguments(node).get((_TAKING | _PUTTING)[base_name(node)])
            lost = source not in found
        else:
            lost = any(n in found for n in node.all_input_nodes)
        if lost or any(bool(free_unbacked_symbols(value)) for value in _tensors(node)):
            found.add(node)
    return frozenset(found)


def _of_data(trace: Trace) -> set[fx.Node]:
    """What depends on the data, and not only on their sizes."""
    return descendants(trace.graph, trace.inputs, without=_reads_sizes)


def _reads_sizes(node: fx.Node) -> bool:
    name = base_name(node)
    return name.startswith(("sym_", "new_", "empty_", "zeros_", "ones_", "full_"))


def _has_examples(node: fx.Node) -> bool:
    """Whether a dimension of each tensor of a value grows with the number of examples."""
    found = _tensors(node)
    return bool(found) and all(any(not isinstance(s, int) for s in v.shape) for v in found)


def _tensors(node: fx.Node) -> list[Tensor]:
    return [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]


def _arranges(node: fx.Node, of_data: set[fx.Node]) -> bool:
    """Whether data say which rows are taken, or where they are put, along the examples."""
    name = base_name(node)
    if node.op != "call_function" or name not in _TAKING | _PUTTING:
        return False
    along = cast(fx.Node, arguments(node)[_TAKING.get(name, "self")])
    sizes = along.meta["val"].shape
    return any(n in of_data and not isinstance(sizes[dim], int) for dim, n in _indexed(node))


def _indices(node: fx.Node) -> list[fx.Node]:
    """Those of the arguments that only say which rows are meant."""
    if not isinstance(node.target, OpOverload):
        return []
    if base_name(node) in _TAKING | _PUTTING:
        return [index for _, index in _indexed(node)]
    ends = arguments(node).get("offs")  # of the rows that one matrix of a grouped product is for
    return [ends] if isinstance(ends, fx.Node) else []


def _indexed(node: fx.Node) -> list[tuple[int, fx.Node]]:
    """The dimensions along which rows are taken or put, each with its index."""
    given = arguments(node)
    if "index" in given:
        return [(cast(int, given["dim"]), cast(fx.Node, given["index"]))]
    indices = given["indices"]
    several = indices if isinstance(indices, (list, tuple)) else [indices]
    return [(dim, n) for dim, n in enumerate(several) if isinstance(n, fx.Node)]
