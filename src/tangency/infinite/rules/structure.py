"""Reshaping, selecting, joining and averaging."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

from torch import fx

from tangency.infinite.lowering import RULES, Lowering, cut_rule, rule
from tangency.infinite.rules.spatial import along, grouped, one_axis, ungrouped
from tangency.infinite.values.consistency import consistent
from tangency.infinite.values.join import Join
from tangency.infinite.values.position import Average, Take
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value
from tangency.program.axes import Axis, Dim, resolve, size_of
from tangency.program.axis_rules import reduced_dimensions, sliced
from tangency.program.operations import argument, base_name


def _input(node: fx.Node) -> fx.Node:
    return cast(fx.Node, node.args[0])


def _atoms(lowering: Lowering, node: fx.Node, dim: int) -> Dim:
    """The atoms of a dimension; none for a dimension of size 1."""
    return resolve(lowering.program.axes[node][dim])


def _is_width(atoms: Dim) -> bool:
    return any(axis.kind == "width" for axis in atoms)


def _dim(node: fx.Node, index: int, default: int | None = None) -> int:
    value = cast(int, argument(node, index, "dim", default))
    return value % len(_input(node).meta["val"].shape)


@rule(
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose",
    "t", "numpy_T", "expand", "clone", "contiguous", "alias",
)  # fmt: skip
def unchanged(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Re-bracketing and reordering axes changes no random variable."""
    return lowering.strand(_input(node), start, length)


@rule("getitem")
def getitem(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """One result of `split`, `chunk` or `unbind`."""
    source, index = cast(tuple[fx.Node, int], node.args)
    name = base_name(source)
    if name == "unbind":
        return _select(lowering, _input(source), _dim(source, 1, 0), index, start, length)
    if name in ("split", "split_with_sizes", "chunk"):
        dim = _dim(source, 2, 0)
        begin, size = _piece(source, dim, index)
        return _narrow(
            lowering, node, _input(source), dim, range(begin, begin + size), start, length
        )
    if name in RULES:  # the rule of an operation with several results is given one of them
        return RULES[name](lowering, node, start, length)
    raise lowering.unsupported(source, "has no rule in the infinite-width limit")


def _piece(source: fx.Node, dim: int, index: int) -> tuple[int, int]:
    sizes = [int(piece.shape[dim]) for piece in source.meta["val"]]
    return sum(sizes[:index]), sizes[index]


@rule("select")
def select(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """One position."""
    index = cast(int, argument(node, 2, "index"))
    return _select(lowering, _input(node), _dim(node, 1), index, start, length)


def _select(
    lowering: Lowering, source: fx.Node, dim: int, index: int, start: int, length: int
) -> Value:
    atoms = _atoms(lowering, source, dim)
    index %= size_of(atoms)
    if _is_width(atoms):
        rest = _inner_width(lowering, source, atoms)
        if rest is None:
            raise lowering.unsupported(source, "is indexed along an inner part of its width")
        return lowering.strand(source, index * rest + start, length)
    value = lowering.strand(source, start, length)
    if not set(atoms) & set(value.positions):
        return value
    axis = one_axis(atoms)
    return Take(grouped(value, atoms, axis), axis, None, (index,))


def _inner_width(lowering: Lowering, source: fx.Node, atoms: Dim) -> int | None:
    """The width behind the outermost axes `atoms` of a width; None if they are not outermost."""
    whole = lowering.program.atoms(source, "width")
    if whole[: len(atoms)] != atoms:
        return None
    return size_of(whole[len(atoms) :])


@rule("slice")
def slice_(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """A range of positions or of the width."""
    dim = _dim(node, 1, 0)
    atoms = _atoms(lowering, _input(node), dim)
    if _atoms(lowering, node, dim) == atoms:
        return lowering.strand(_input(node), start, length)
    return _narrow(lowering, node, _input(node), dim, sliced(node, size_of(atoms)), start, length)


def _narrow(
    lowering: Lowering,
    node: fx.Node,
    source: fx.Node,
    dim: int,
    indices: range,
    start: int,
    length: int,
) -> Value:
    atoms = _atoms(lowering, source, dim)
    if _is_width(atoms):
        if indices.step != 1 or lowering.width(source) != size_of(atoms):
            raise lowering.unsupported(node, "takes a part of a width in steps or from inside")
        return lowering.strand(source, indices[0] + start, length)
    value = lowering.strand(source, start, length)
    if not set(atoms) & set(value.positions):
        return value
    return along(value, atoms, _atoms(lowering, node, dim), partial(Take, indices=indices))


@cut_rule("slice")
def slice_cuts(lowering: Lowering, node: fx.Node) -> frozenset[int]:
    dim = _dim(node, 1, 0)
    atoms = _atoms(lowering, _input(node), dim)
    whole = _atoms(lowering, node, dim) == atoms or not _is_width(atoms)
    begin = 0 if whole else sliced(node, size_of(atoms))[0]
    return _shifted(lowering, node, _input(node), begin)


@cut_rule("getitem")
def getitem_cuts(lowering: Lowering, node: fx.Node) -> frozenset[int]:
    source, index = cast(tuple[fx.Node, int], node.args)
    begin = 0
    if base_name(source) in ("split", "split_with_sizes", "chunk"):
        dim = _dim(source, 2, 0)
        if _is_width(_atoms(lowering, _input(source), dim)):
            begin = _piece(source, dim, index)[0]
    return _shifted(lowering, node, _input(source), begin)


@cut_rule("select")
def select_cuts(lowering: Lowering, node: fx.Node) -> frozenset[int]:
    atoms = _atoms(lowering, _input(node), _dim(node, 1))
    if not _is_width(atoms):
        return lowering.cuts(_input(node))
    index = cast(int, argument(node, 2, "index")) % size_of(atoms)
    return _shifted(lowering, node, _input(node), index * lowering.width(node))


def _shifted(lowering: Lowering, node: fx.Node, source: fx.Node, begin: int) -> frozenset[int]:
    size = lowering.width(node)
    return frozenset(c - begin for c in lowering.cuts(source) if 0 < c - begin < size)


def _joined(node: fx.Node) -> Sequence[fx.Node]:
    return cast(Sequence[fx.Node], node.args[0])


def _along_width(lowering: Lowering, node: fx.Node) -> bool:
    dim = cast(int, argument(node, 1, "dim", 0)) % len(node.meta["val"].shape)
    return _is_width(_atoms(lowering, node, dim))


@rule("cat")
def cat(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Concatenation along the width (a strand lies in one part) or along positions."""
    dim = cast(int, argument(node, 1, "dim", 0)) % len(node.meta["val"].shape)
    if _along_width(lowering, node):
        return _part(lowering, node, dim, start, length)
    atoms = _atoms(lowering, node, dim)
    axis = one_axis(atoms)
    pieces: list[tuple[Value, Axis | None]] = []
    values = consistent([lowering.strand(part, start, length) for part in _joined(node)])
    for value, part in zip(values, _joined(node), strict=True):
        own = _atoms(lowering, part, dim)
        whole = one_axis(own)
        pieces.append((grouped(value, own, whole), whole) if own else (value, None))
    return ungrouped(Join(pieces, axis), axis, atoms)


def _part(lowering: Lowering, node: fx.Node, dim: int, start: int, length: int) -> Value:
    begin = 0
    for part in _joined(node):
        size = int(part.meta["val"].shape[dim])
        if begin <= start and start + length <= begin + size:
            if lowering.program.nature[part] in ("random", "parameter"):
                return lowering.strand(part, start - begin, length)
            return lowering.data(
                part, resolve(lowering.program.axes[part][dim]), start - begin, length
            )
        begin += size
    raise lowering.unsupported(node, "is asked for a strand that lies across its parts")


@cut_rule("cat")
def cat_cuts(lowering: Lowering, node: fx.Node) -> frozenset[int]:
    if not _along_width(lowering, node):
        return frozenset[int]().union(*(lowering.cuts(part) for part in _joined(node)))
    dim = cast(int, argument(node, 1, "dim", 0)) % len(node.meta["val"].shape)
    cuts: set[int] = set()
    begin = 0
    for part in _joined(node):
        cuts |= {begin + c for c in lowering.cuts(part)} | {begin}
        begin += int(part.meta["val"].shape[dim])
    return frozenset(cuts - {0})


@rule("stack")
def stack(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Values side by side along a new position axis."""
    parts = consistent([lowering.strand(part, start, length) for part in _joined(node)])
    dim = cast(int, argument(node, 1, "dim", 0)) % len(node.meta["val"].shape)
    atoms = _atoms(lowering, node, dim)
    axis = one_axis(atoms)
    return ungrouped(Join([(value, None) for value in parts], axis), axis, atoms)


@cut_rule("stack")
def stack_cuts(lowering: Lowering, node: fx.Node) -> frozenset[int]:
    return frozenset[int]().union(*(lowering.cuts(part) for part in _joined(node)))


@rule("mean", "sum")
def reduce(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Mean or sum over positions (over the width, it is a limit statistic)."""
    shape = lowering.program.axes[_input(node)]
    atoms = [a for dim in reduced_dimensions(node) for a in resolve(shape[dim])]
    if any(axis.kind == "width" for axis in atoms):
        raise lowering.unsupported(node, "sums over a part of a width")
    value = lowering.strand(_input(node), start, length)
    axes = tuple(axis for axis in atoms if axis in value.positions)
    average = Average(value, axes) if axes else value
    if base_name(node) == "mean":
        return average
    return Sum(average.positions, [Term(average, float(size_of(atoms)))])
