"""How each ATen operation maps the axes of its arguments to those of its result.

One small function per operation, in a registry keyed by the operation's base name (`add` for
`aten.add.Tensor`). Operations on data and constants alone need no rule: they are executed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from torch import fx

from tangency.program.axes import (
    Axis,
    AxisError,
    Dim,
    Shape,
    identify,
    position,
    rebracket,
    resolve,
    shape_of,
    width,
)
from tangency.program.operations import POINTWISE, argument, base_name

__all__ = ["PRODUCTS", "RULES", "axis_rule"]

Axes: TypeAlias = Callable[[fx.Node], Shape]
"""Gives the axes of an argument node."""

AxisRule: TypeAlias = Callable[[fx.Node, Axes], Shape | tuple[Shape, ...]]
"""Axes of the result (one shape per tensor where the operation returns several)."""

RULES: dict[str, AxisRule] = {}


def axis_rule(*names: str) -> Callable[[AxisRule], AxisRule]:
    """Register the decorated function for the operations `names`."""

    def register(rule: AxisRule) -> AxisRule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _first(node: fx.Node) -> fx.Node:
    return cast(fx.Node, node.args[0])


def _dimension(node: fx.Node, index: int, name: str, default: int | None = None) -> int:
    rank = len(_first(node).meta["val"].shape)
    value = argument(node, index, name, default)
    if not isinstance(value, int):
        raise AxisError(f"{name}={value} is not one dimension")
    return value % rank if rank else 0


@axis_rule("clone", "contiguous", "alias", "dropout", "_to_copy", "to", "layer_norm", "rms_norm")
def unchanged(node: fx.Node, axes: Axes) -> Shape:
    return axes(_first(node))


@axis_rule("native_dropout")
def with_mask(node: fx.Node, axes: Axes) -> tuple[Shape, ...]:
    shape = axes(_first(node))
    return shape, shape


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Axes of an elementwise result; aligned dimensions of the arguments are identified."""
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = []
    for i in range(rank):
        aligned = [shape[i - rank] for shape in shapes if rank - i <= len(shape)]
        filled = [dim for dim in aligned if dim]
        for other in filled[1:]:
            identify(filled[0], other)
        result.append(resolve(filled[0]) if filled else ())
    return tuple(result)


@axis_rule(*POINTWISE)
def pointwise(node: fx.Node, axes: Axes) -> Shape:
    tensors = [n for n in node.all_input_nodes if hasattr(n.meta["val"], "shape")]
    return broadcast([axes(n) for n in tensors])


PRODUCTS = ("linear", "matmul", "mm", "addmm")
"""Operations that are known as products with one weight matrix only."""


@axis_rule(*PRODUCTS)
def affine(node: fx.Node, axes: Axes) -> Shape:
    first = 1 if base_name(node) == "addmm" else 0
    x, weight = cast("tuple[fx.Node, fx.Node]", node.args[first : first + 2])
    shape = shape_of(node)
    if len(shape) != len(axes(x)):
        raise AxisError("only products with one weight matrix are known")
    return (*axes(x)[:-1], _rows(weight, shape[-1]))


def _rows(weight: fx.Node, size: int) -> Dim:
    """The width that a weight makes: the same one at every use, so that coordinates line up."""
    while weight.all_input_nodes:
        weight = weight.all_input_nodes[0]
    known: dict[int, Dim] = weight.meta.setdefault("tangency_rows", {})
    return known.setdefault(size, width(size))


@axis_rule("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
def reshape(node: fx.Node, axes: Axes) -> Shape:
    return rebracket([a for dim in axes(_first(node)) for a in dim], shape_of(node))


@axis_rule("permute")
def permute(node: fx.Node, axes: Axes) -> Shape:
    shape = axes(_first(node))
    order = cast(Sequence[int], argument(node, 1, "dims"))
    return tuple(shape[d] for d in order)


@axis_rule("transpose")
def transpose(node: fx.Node, axes: Axes) -> Shape:
    shape = list(axes(_first(node)))
    a, b = _dimension(node, 1, "dim0"), _dimension(node, 2, "dim1")
    shape[a], shape[b] = shape[b], shape[a]
    return tuple(shape)


@axis_rule("t", "numpy_T")
def reverse(node: fx.Node, axes: Axes) -> Shape:
    return tuple(reversed(axes(_first(node))))


@axis_rule("expand")
def expand(node: fx.Node, axes: Axes) -> Shape:
    sizes = shape_of(node)
    shape = axes(_first(node))
    padded = (((),) * (len(sizes) - len(shape))) + tuple(shape)
    for dim, size in zip(padded, sizes, strict=True):
        if not resolve(dim) and size > 1:
            raise AxisError("expanding a dimension of size 1 is not known")
    return padded


def single(dim: Dim) -> Axis:
    """The one atom of a dimension that is to be indexed."""
    atoms = resolve(dim)
    if len(atoms) != 1:
        raise AxisError("indexing a dimension that was made by merging several axes is not known")
    if atoms[0].kind == "batch":
        raise AxisError("indexing the batch mixes examples")
    return atoms[0]


@axis_rule("select")
def select(node: fx.Node, axes: Axes) -> Shape:
    shape, d = axes(_first(node)), _dimension(node, 1, "dim")
    if resolve(shape[d]):
        single(shape[d])
    return (*shape[:d], *shape[d + 1 :])


def cut(dim: Dim, part: range) -> Dim:
    """A part of a dimension; equal parts of one axis are the same axis."""
    axis = single(dim)
    make = width if axis.kind == "width" else position
    return axis.cuts.setdefault(part, make(len(part)))


@axis_rule("slice")
def slice_(node: fx.Node, axes: Axes) -> Shape:
    shape, d = list(axes(_first(node))), _dimension(node, 1, "dim", 0)
    before = shape_of(_first(node))[d]
    if shape_of(node)[d] != before:
        shape[d] = cut(shape[d], sliced(node, before))
    return tuple(shape)


def sliced(node: fx.Node, size: int) -> range:
    """The indices that a `slice` node takes of a dimension."""
    first, last = argument(node, 2, "start"), argument(node, 3, "end")
    step = argument(node, 4, "step", 1)
    return range(*slice(first, last, step).indices(size))


@axis_rule("split", "split_with_sizes", "chunk")
def split(node: fx.Node, axes: Axes) -> tuple[Shape, ...]:
    shape, d = axes(_first(node)), _dimension(node, 2, "dim", 0)
    edges = [0, *itertools.accumulate(int(piece.shape[d]) for piece in node.meta["val"])]
    parts = [range(start, stop) for start, stop in itertools.pairwise(edges)]
    return tuple((*shape[:d], cut(shape[d], part), *shape[d + 1 :]) for part in parts)


@axis_rule("unbind")
def unbind(node: fx.Node, axes: Axes) -> tuple[Shape, ...]:
    shape, d = axes(_first(node)), _dimension(node, 1, "dim", 0)
    single(shape[d])
    return ((*shape[:d], *shape[d + 1 :]),) * len(node.meta["val"])


@axis_rule("cat")
def cat(node: fx.Node, axes: Axes) -> Shape:
    pieces = [axes(n) for n in cast(Sequence[fx.Node], node.args[0])]
    rank = len(pieces[0])
    d = cast(int, argument(node, 1, "dim", 0)) % rank
    kinds = {axis.kind for piece in pieces for axis in resolve(piece[d])}
    if "batch" in kinds:
        raise AxisError("concatenating along the batch mixes examples")
    shape = list(broadcast([(*p[:d], (), *p[d + 1 :]) for p in pieces]))
    size = shape_of(node)[d]
    shape[d] = width(size) if "width" in kinds else position(size)
    return tuple(shape)


@axis_rule("stack")
def stack(node: fx.Node, axes: Axes) -> Shape:
    pieces = [axes(n) for n in cast(Sequence[fx.Node], node.args[0])]
    shape = list(broadcast(pieces))
    d = cast(int, argument(node, 1, "dim", 0)) % (len(shape) + 1)
    shape.insert(d, position(len(pieces)))
    return tuple(shape)


@axis_rule("mean", "sum")
def reduce(node: fx.Node, axes: Axes) -> Shape:
    shape = axes(_first(node))
    dims = reduced_dimensions(node)
    if any(axis.kind == "batch" for d in dims for axis in resolve(shape[d])):
        raise AxisError("reducing over the batch couples the examples")
    keep = bool(argument(node, 2, "keepdim", False))
    kept = [() if d in dims else dim for d, dim in enumerate(shape)]
    return tuple(dim for d, dim in enumerate(kept) if keep or d not in dims)


def reduced_dimensions(node: fx.Node) -> list[int]:
    """The dimensions that a `mean` or `sum` node reduces."""
    rank = len(_first(node).meta["val"].shape)
    dims = argument(node, 1, "dim")
    if dims is None:
        return list(range(rank))
    listed = [dims] if isinstance(dims, int) else cast(Sequence[int], dims)
    return [d % rank for d in listed]
