"""Positions chosen by integers: `x[:, index]`, `x[arange(n), index]`, `index_select`; scatters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.rules.spatial import check_positions, grouped, one_axis, ungrouped
from tangency.infinite.side import Side
from tangency.infinite.values.aggregated import Aggregated
from tangency.infinite.values.position import Take
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value, to_positions
from tangency.program.axes import Axis, Dim, resolve
from tangency.program.axis_rules.gathering import indexes_examples
from tangency.program.operations import argument, base_name

_ZEROS = frozenset({"zeros", "zeros_like", "new_zeros"})


@rule("index")
def index(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """`x[..., index, ...]` along one dimension; `x[arange(n), index]` differs from example to
    example.
    """
    source, indices = cast("tuple[fx.Node, Sequence[fx.Node | None]]", node.args[:2])
    own = [
        d
        for d, chosen in enumerate(indices)
        if chosen is not None and not (d == 0 and indexes_examples(chosen))
    ]
    if len(own) != 1:
        raise lowering.unsupported(node, "indexes several dimensions at once")
    chosen = cast(fx.Node, indices[own[0]])
    value = lowering.strand(source, start, length)
    return _chosen(lowering, node, value, lowering.program.axes[source][own[0]], chosen)


@rule("index_select")
def index_select(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """The positions of one dimension that a list names."""
    source = cast(fx.Node, node.args[0])
    shape = lowering.program.axes[source]
    dim = cast(int, argument(node, 1, "dim")) % len(shape)
    chosen = cast(fx.Node, argument(node, 2, "index"))
    return _chosen(lowering, node, lowering.strand(source, start, length), shape[dim], chosen)


@rule("gather")
def gather(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """`x.gather(dim, index)` where the index is expanded along all dimensions but `dim`."""
    source = cast(fx.Node, node.args[0])
    shape = lowering.program.axes[source]
    dim = cast(int, argument(node, 1, "dim")) % len(shape)
    chosen = cast(fx.Node, argument(node, 2, "index"))
    while base_name(chosen) == "expand":
        chosen = cast(fx.Node, chosen.args[0])
    kinds = [{axis.kind for axis in resolve(d)} for d in lowering.program.axes[chosen]]
    rest = [kind for d, kind in enumerate(kinds) if d - len(kinds) != dim - len(shape)]
    if any(kind - {"batch"} for kind in rest):
        raise lowering.unsupported(node, "gathers other positions at every place of the rest")
    return _chosen(lowering, node, lowering.strand(source, start, length), shape[dim], chosen)


def _chosen(lowering: Lowering, node: fx.Node, value: Value, before: Dim, chosen: fx.Node) -> Value:
    """The positions `chosen` of a dimension: constant ones, or others for every example."""
    new = lowering.program.atoms(chosen, "position")
    check_positions(lowering, node, (before,))
    old = one_axis(before, new)
    whole = grouped(value, before, old)
    constant = _constant(lowering, chosen)
    if constant is not None:
        merged = one_axis(new)
        indices = (constant % old.size).flatten().tolist()
        return ungrouped(Take(whole, old, merged, indices), merged, new)
    return Aggregated(whole, (old,), new, _one_hot(chosen, old, new, (*new, *whole.positions)))


def _one_hot(
    chosen: fx.Node, old: Axis, new: Positions, target: Positions
) -> Callable[[Side], Tensor]:
    """One where an old position is the chosen one, `(*target, n)`."""

    def evaluate(side: Side) -> Tensor:
        indices = side.features(chosen, new, ())[..., 0].double() % old.size
        places = torch.arange(old.size, device=indices.device)
        hits = (indices[..., None, :] == places[:, None]).double()
        return to_positions(hits, (*new, old), target)

    return evaluate


@rule("index_add")
def scatter(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Sums of entries by index: messages along the edges of a graph, added up at its nodes."""
    target, chosen, source = (cast(fx.Node, node.args[k]) for k in (0, 2, 3))
    axes = lowering.program.axes
    dim = cast(int, argument(node, 1, "dim")) % len(axes[node])
    if not lowering.random(source):
        raise lowering.unsupported(node, "adds data to random values by index")
    check_positions(lowering, node, (axes[source][dim],))
    old, new = one_axis(axes[source][dim], axes[node][dim]), one_axis(axes[node][dim])
    value = grouped(lowering.strand(source, start, length), axes[source][dim], old)
    evaluate = _incidence(chosen, lowering.program.atoms(chosen, "position"), (new, old), value)
    summed = ungrouped(Aggregated(value, (old,), (new,), evaluate), new, axes[node][dim])
    terms = [Term(summed, float(cast(float, argument(node, 4, "alpha", 1.0))))]
    if base_name(target) not in _ZEROS:
        terms.append(Term(lowering.strand(target, start, length)))
    return Sum(max((term.value.positions for term in terms), key=len), terms)


def _incidence(
    chosen: fx.Node, along: Positions, axes: tuple[Axis, Axis], value: Value
) -> Callable[[Side], Tensor]:
    """One where an entry (an edge) belongs to a position (a node), `(new, *positions, n)`."""
    new, old = axes

    def evaluate(side: Side) -> Tensor:
        indices = side.features(chosen, along, ())[..., 0].reshape(old.size, side.count)
        places = torch.arange(new.size, device=indices.device)
        hits = (indices == places[:, None, None]).double()
        return to_positions(hits, (new, old), (new, *value.positions))

    return evaluate


def _constant(lowering: Lowering, node: fx.Node) -> Tensor | None:
    """The value of a node that does not depend on data; None if it does."""
    constants = lowering.program.trace.constants

    def value(n: fx.Node) -> Any:
        if n in constants:
            return constants[n]
        if n.op != "call_function" or any(isinstance(s, torch.SymInt) for s in _sizes(n)):
            raise LookupError
        args, kwargs = map_arg((n.args, n.kwargs), value)
        return cast(Callable[..., Any], n.target)(*args, **kwargs)

    try:
        return cast(Tensor, value(node))
    except LookupError:
        return None


def _sizes(node: fx.Node) -> Sequence[object]:
    value = node.meta["val"]
    return tuple(value.shape) if isinstance(value, Tensor) else (value,)
