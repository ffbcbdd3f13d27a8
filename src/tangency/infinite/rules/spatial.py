"""What rules that act along a tensor dimension share: it may have several axes, or none."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from tangency.infinite.lowering import Lowering
from tangency.infinite.values.position import Take
from tangency.infinite.values.regroup import Regroup
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value
from tangency.program.axes import Axis, Dim, Shape, resolve, size_of

__all__ = ["along", "check_positions", "grouped", "one_axis", "spread", "ungrouped"]


def one_axis(dim: Dim, other_than: Dim = ()) -> Axis:
    """The atom of a dimension, or a new axis that stands for all (or none) of its atoms.

    Where positions before and after an operation were identified (they are added up later), the
    atom is among `other_than`, and a new axis tells the two apart.
    """
    atoms = resolve(dim)
    alone = len(atoms) == 1 and atoms[0] not in resolve(other_than)
    return atoms[0] if alone else Axis("position", size_of(atoms))


def spread(value: Value, axes: Dim) -> Value:
    """A value that has all the positions `axes`, constant along those that it lacks."""
    missing = tuple(a for a in axes if a not in value.positions)
    return Sum((*missing, *value.positions), [Term(value)]) if missing else value


def grouped(value: Value, dim: Dim, axis: Axis) -> Value:
    """A value with the one axis `axis` in place of the atoms of `dim`."""
    atoms = resolve(dim)
    if not atoms:
        return spread(value, (axis,))
    whole = spread(value, atoms)
    return whole if atoms == (axis,) else Regroup(whole, atoms, (axis,))


def ungrouped(value: Value, axis: Axis, dim: Dim) -> Value:
    """A value with the atoms of `dim` in place of `axis`."""
    atoms = resolve(dim)
    if atoms == (axis,) or axis not in value.positions:
        return value
    return Regroup(value, (axis,), atoms) if atoms else Take(value, axis, None, (0,))


def along(
    value: Value, before: Dim, after: Dim, apply: Callable[[Value, Axis, Axis], Value]
) -> Value:
    """Replace a dimension's axes `before` by `after`.

    `apply(value, old, new)` gives the value with an axis `new` in place of its axis `old`.
    """
    old, new = one_axis(before, after), one_axis(after)
    return ungrouped(apply(grouped(value, before, old), old, new), new, after)


def check_positions(lowering: Lowering, node: fx.Node, shape: Shape) -> None:
    """Refuse to act along a width."""
    if any(axis.kind == "width" for dim in shape for axis in resolve(dim)):
        raise lowering.unsupported(
            node, "acts along a width, whose coordinates are alike in the infinite-width limit"
        )
