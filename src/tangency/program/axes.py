"""Axes: every tensor dimension is an ordered tuple of atomic axes.

An atomic axis is the batch, a position (pixel, token, time step, head) or a width (what goes to
infinity). Reshaping re-brackets atomic axes, splitting one where it must; broadcasting identifies
axes. An axis may be split or identified with another *after* it was attached to a tensor, so
tensors hold axes unresolved and `resolve` yields today's atoms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, fx

__all__ = [
    "BATCH",
    "Axis",
    "AxisError",
    "Dim",
    "Kind",
    "Shape",
    "batch",
    "identify",
    "position",
    "rebracket",
    "resolve",
    "shape_of",
    "size_of",
    "sizes_of",
    "width",
]

BATCH = 1_000_003
"""Stands for the unknown batch size: a prime larger than any real dimension, so that arithmetic on
sizes keeps it apart and no reshape can split it."""

Kind: TypeAlias = Literal["batch", "position", "width"]


class AxisError(Exception):
    """Axes that do not fit; the caller turns it into an `UnsupportedOperation` with a location."""


@dataclass(eq=False)
class Axis:
    """One atomic axis, until it is split into `parts` or identified with `same`.

    `cuts` are the dimensions that indexing has made of it and the inner axes merged with it, by the
    indices taken and those axes.
    """

    kind: Kind
    size: int
    parts: tuple[Axis, ...] | None = None
    same: Axis | None = None
    cuts: dict[tuple[range | Axis, ...], tuple[Axis, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "n" if self.kind == "batch" else f"{self.kind[0]}{self.size}"


Dim: TypeAlias = tuple[Axis, ...]
"""The atomic axes of one tensor dimension, outermost first; empty for a dimension of size 1."""

Shape: TypeAlias = tuple[Dim, ...]


def batch() -> Axis:
    """The batch axis."""
    return Axis("batch", BATCH)


def position(size: int) -> Dim:
    """A dimension that is one new position axis (none where the size is 1)."""
    return (Axis("position", size),) if size > 1 else ()


def width(size: int) -> Dim:
    """A dimension that is one new width axis (none where the size is 1)."""
    return (Axis("width", size),) if size > 1 else ()


def resolve(axes: Iterable[Axis]) -> Dim:
    """Today's atoms of `axes`."""
    atoms: list[Axis] = []
    for axis in axes:
        if axis.same is not None:
            atoms.extend(resolve((axis.same,)))
        elif axis.parts is not None:
            atoms.extend(resolve(axis.parts))
        else:
            atoms.append(axis)
    return tuple(atoms)


def size_of(axes: Iterable[Axis]) -> int:
    """Product of the sizes (with `BATCH` for the batch)."""
    return math.prod(axis.size for axis in axes)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a tensor node with `BATCH` in place of the free batch size."""
    return sizes_of(node.meta["val"])


def sizes_of(value: Tensor) -> tuple[int, ...]:
    """Sizes of a tensor recorded by `torch.export`, with `BATCH` for the free batch size."""
    return tuple(_size(size) for size in value.shape)


def _size(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, BATCH)))


def _split(axis: Axis, outer: int) -> tuple[Axis, Axis]:
    if axis.kind == "batch" or axis.size % outer:
        raise AxisError(f"an axis of size {axis.size} cannot be split into {outer} x the rest")
    pair = (Axis(axis.kind, outer), Axis(axis.kind, axis.size // outer))
    axis.parts = pair
    return pair


def rebracket(axes: Sequence[Axis], sizes: Sequence[int]) -> Shape:
    """The same atoms, in the same order, bracketed into dimensions of the given sizes."""
    queue = list(resolve(axes))
    shape: list[Dim] = []
    for size in sizes:
        dim: list[Axis] = []
        missing = size
        while missing > 1:
            if not queue:
                raise AxisError("the sizes do not multiply to the same number")
            axis = queue.pop(0)
            if missing % axis.size == 0:
                dim.append(axis)
                missing //= axis.size
            elif axis.size % missing == 0 and axis.kind != "batch":
                head, tail = _split(axis, missing)
                dim.append(head)
                queue.insert(0, tail)
                missing = 1
            else:
                raise AxisError(f"axes {list(axes)} cannot be viewed as {list(sizes)}")
        shape.append(tuple(dim))
    return tuple(shape)


def identify(first: Sequence[Axis], second: Sequence[Axis]) -> None:
    """Declare two dimensions of equal size the same (elementwise operations align them)."""
    left, right = list(resolve(first)), list(resolve(second))
    while left and right:
        a, b = left.pop(0), right.pop(0)
        if a is b:
            continue
        if a.size == b.size:
            _merge(a, b)
        elif a.size > b.size:
            left[:0] = _split(a, b.size)
            right.insert(0, b)
        else:
            left.insert(0, a)
            right[:0] = _split(b, a.size)
    if left or right:
        raise AxisError(f"dimensions {list(first)} and {list(second)} do not align")


def _merge(a: Axis, b: Axis) -> None:
    if "batch" in (a.kind, b.kind) and a.kind != b.kind:
        raise AxisError("the batch cannot be aligned with another axis")
    keep, drop = (a, b) if a.kind in ("width", "batch") else (b, a)
    drop.same = keep
