"""Between the order `(*positions, n)` and the shape that a node's tensor has in the module."""

from __future__ import annotations

from torch import Tensor, fx

from tangency.program.axes import Axis, Dim, resolve
from tangency.program.capture import Program

__all__ = ["as_in_module", "by_positions"]


def _sizes(dim: Dim, count: int) -> list[int]:
    """Sizes of the atoms of a dimension for `count` examples; those of the width are left out."""
    return [count if axis.kind == "batch" else axis.size for axis in dim if axis.kind != "width"]


def _atoms(program: Program, node: fx.Node) -> list[Axis]:
    return [a for dim in program.axes[node] for a in resolve(dim) if a.kind != "width"]


def _order(program: Program, node: fx.Node) -> list[int]:
    """For each atom of the module's order, its place in `(*positions, n)`."""
    positions = program.atoms(node, "position")
    return [
        len(positions) if axis.kind == "batch" else positions.index(axis)
        for axis in _atoms(program, node)
    ]


def as_in_module(program: Program, node: fx.Node, values: Tensor, count: int) -> Tensor:
    """`(*positions, n)` in the shape of the node, with a width of one."""
    sizes = []
    for dim in program.axes[node]:
        size = 1
        for part in _sizes(resolve(dim), count):
            size *= part
        sizes.append(size)
    return values.permute(_order(program, node)).reshape(sizes)


def by_positions(program: Program, node: fx.Node, values: Tensor, count: int) -> Tensor:
    """A tensor in the shape of the node, with a width of one, as `(*positions, n)`."""
    sizes = [size for dim in program.axes[node] for size in _sizes(resolve(dim), count)]
    order = _order(program, node)
    back = sorted(range(len(order)), key=lambda k: order[k])
    return values.reshape(sizes).permute(back)
