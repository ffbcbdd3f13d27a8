"""How a covariance between two values is laid out over their positions and the batch.

A block between a left value u and a right value v has the dimensions
`(*positions of u, *positions of v that are not tied, n1, n2)`. A *tie* `(a, b)` asks for equal
indices along axis a of u and axis b of v only: the two share one dimension. The batch comes last,
so pairs of examples are contiguous in memory. In a coincident block, both values are taken on the
same example and the batch is `(n,)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tangency.program.axes import Axis

__all__ = ["Block", "Layout", "Moments", "Positions", "Ties", "Which", "place"]

Positions: TypeAlias = tuple[Axis, ...]
Ties: TypeAlias = frozenset[tuple[Axis, Axis]]
Which: TypeAlias = Literal["left", "right"]


class Block(NamedTuple):
    """Covariance of two values, as `K = sd_u sd_v (1 - versine)`, and their NTK.

    The versine 1 - cos(angle) is what keeps its relative accuracy for near-duplicate inputs.
    `ntk` is None where it is zero because no parameter is shared.
    """

    versine: Tensor
    ntk: Tensor | None


class Moments(NamedTuple):
    """Covariance of two values as their second moment E[u v], in float64, and their NTK.

    Linear maps over positions act on moments; float64 keeps in a sum what a versine tells of two
    values that nearly coincide. `ntk` is None where it is zero because no parameter is shared.
    """

    moment: Tensor
    ntk: Tensor | None


@dataclass(frozen=True)
class Layout:
    """The dimensions of one block."""

    left: Positions
    right: Positions
    ties: Ties = frozenset()

    @property
    def free_right(self) -> Positions:
        """Positions of the right value that have a dimension of their own."""
        tied = {b for _, b in self.ties}
        return tuple(b for b in self.right if b not in tied)

    @property
    def rank(self) -> int:
        """Number of position dimensions."""
        return len(self.left) + len(self.free_right)

    def index(self, which: Which, axis: Axis) -> int:
        """The dimension of `axis`, a position of the left or right value."""
        if which == "left":
            return self.left.index(axis)
        for a, b in self.ties:
            if b is axis:
                return self.left.index(a)
        return len(self.left) + self.free_right.index(axis)

    def positions(self, which: Which) -> Positions:
        """Positions of one of the two values."""
        return self.left if which == "left" else self.right

    def within(self, left: Positions, right: Positions) -> Layout:
        """The layout of a part of this block: other values, the same ties where both axes exist."""
        ties = frozenset((a, b) for a, b in self.ties if a in left and b in right)
        return Layout(left, right, ties)

    def tied(self, axis: Axis) -> Axis | None:
        """The right axis to which a left axis is tied."""
        return next((b for a, b in self.ties if a is axis), None)

    def swap(self, which: Which, positions: Positions) -> Layout:
        """This layout with the positions of one value replaced."""
        if which == "left":
            return self.within(positions, self.right)
        return self.within(self.left, positions)

    def embed(self, part: Tensor, layout: Layout) -> Tensor:
        """A block laid out by `layout` as one that broadcasts in this layout."""
        indices = [self.index("left", a) for a in layout.left]
        indices += [self.index("right", b) for b in layout.free_right]
        return place(part, indices, self.rank)

    @property
    def mirrored(self) -> Layout:
        """The layout with left and right exchanged."""
        return Layout(self.right, self.left, frozenset((b, a) for a, b in self.ties))

    def embed_mirrored(self, part: Tensor, there: Layout) -> Tensor:
        """A block laid out by `there`, the mirror of this layout, as one of this layout."""
        indices = [self.index("right", a) for a in there.left]
        indices += [self.index("left", b) for b in there.free_right]
        return place(part, indices, self.rank)

    def equal(self, a: Axis, b: Axis, like: Tensor) -> Tensor:
        """Whether a left and a right position are equal, to broadcast with a block `like`."""
        i, j = self.index("left", a), self.index("right", b)
        if i == j:
            return torch.ones((1,) * like.dim(), dtype=torch.bool, device=like.device)
        eye = torch.eye(a.size, dtype=torch.bool, device=like.device)
        return place(eye[(...,) + (None,) * (like.dim() - self.rank)], [i, j], self.rank)

    def side(self, values: Tensor, which: Which) -> Tensor:
        """A quantity `(*lead, *positions, n)` of one value over the block's position dimensions."""
        indices = [self.index(which, a) for a in self.positions(which)]
        lead = values.dim() - 1 - len(indices)
        return place(values, indices, self.rank, lead=lead)


def place(values: Tensor, indices: Sequence[int], rank: int, *, lead: int = 0) -> Tensor:
    """Move dimension `lead + k` to `lead + indices[k]` among `rank`, with 1s in between.

    Leading dimensions and the trailing (batch) dimensions stay where they are.
    """
    order = sorted(range(len(indices)), key=lambda k: indices[k])
    trailing = range(lead + len(indices), values.dim())
    moved = values.permute(*range(lead), *(lead + k for k in order), *trailing)
    shape = list(values.shape[:lead]) + [1] * rank
    for k in order:
        shape[lead + indices[k]] = values.shape[lead + k]
    return moved.reshape(*shape, *(values.shape[d] for d in trailing))
