"""The quantities of single examples, laid out as the generated code reads them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import cast

import torch
from torch import Tensor

from tangency.infinite.fused.geometry import Geometry, Level
from tangency.infinite.fused.graph import Kind, Node
from tangency.infinite.fused.run import Run
from tangency.infinite.fused.schedule import Array
from tangency.infinite.layout import place
from tangency.infinite.side import Side
from tangency.program.axes import Axis

__all__ = ["SideArrays", "form"]


def form(node: Node) -> Hashable:
    """Equal for two nodes that are the same quantity, if of different sides."""
    if node.kind in Kind.LEAVES:
        return ("leaf", node.detail)
    arguments = (form(a) if isinstance(a, Node) else a for a in node.arguments)
    return (node.kind, node.dtype, node.function, tuple(arguments), str(node.keywords), node.detail)


class SideArrays:
    """What generated code reads of one side.

    Args:
        side: the data set.
        kind: `Kind.LEFT` or `Kind.RIGHT`.
        geometry: of the run's axes; None for quantities without positions.
    """

    def __init__(self, side: Side, kind: str, geometry: Geometry | None = None) -> None:
        self._side = side
        self._kind = kind
        self._geometry = geometry
        self._known: dict[Node, Tensor] = {}

    def vector(self, array: Array) -> Tensor:
        """A quantity without positions, shape `(n,)`."""
        return self._number(array.node, 0).expand(self._side.count).contiguous()

    def matrix(self, array: Array, run: Run) -> Tensor:
        """A quantity over the slice of a level, `(n, rows, columns)`."""
        values = self._number(array.node, len(array.level))
        sizes = [extent.size for extent in array.level]
        return self._padded(values.expand(*sizes, self._side.count), array.level, run)

    def data(self, node: Node, run: Run) -> Tensor:
        """The data of a node, `(n, channels, rows, columns)`, float64."""
        assert self._geometry is not None
        detail, level = node.detail, run.level(node)
        value = detail.left if self._kind == Kind.LEFT else detail.right
        array = self._side.quantity(value, "unit" if detail.versine else "array").double()
        slots = self._slots(value.positions)
        ordered = array.movedim(-1, 0)  # features first
        ordered = place(ordered, slots, len(level), lead=1)
        return self._padded(ordered, level, run)

    def _slots(self, axes: Sequence[Axis | None]) -> list[int]:
        assert self._geometry is not None
        return [self._geometry.extent(a).slot for a in axes if a is not None]

    def _padded(self, values: Tensor, level: Level, run: Run) -> Tensor:
        """From `(*lead, *positions, n)` to `(n, *lead, rows, columns)`.

        Where nothing is, the last position is repeated: what is computed there has no meaning, but
        has to be a number.
        """
        lead = values.shape[: values.dim() - 1 - len(level)]
        sizes = (1, *(extent.size for extent in level))[-2:]
        out = values.movedim(-1, 0).reshape(-1, *lead, *sizes)
        for dim, whole in zip((-2, -1), run.shape(level), strict=True):
            if whole > out.shape[dim]:
                places = torch.arange(whole, device=out.device).clamp(max=out.shape[dim] - 1)
                out = out.index_select(dim, places)
        return out.contiguous()

    def _number(self, node: Node, rank: int) -> Tensor:
        """A one-sided node over the slots, `(*slots, n)`, of size one where it does not vary."""
        if node not in self._known:
            leaf = node.kind in Kind.LEAVES
            self._known[node] = (self._leaf if leaf else self._operation)(node, rank)
        return self._known[node]

    def _leaf(self, node: Node, rank: int) -> Tensor:
        value, name, args, wide = node.detail
        if name == "mean":
            real = cast(Tensor, self._side.mean(value))
        else:
            real = self._side.quantity(value, name, *args, wide=wide)
        kept = [k for k, axis in enumerate(node.order) if axis is not None]
        sizes = [real.shape[k] for k in kept]
        real = real.expand(*real.shape[:-1], self._side.count).reshape(*sizes, self._side.count)
        slots = self._slots(node.order) if rank else []
        return place(real, slots, rank)

    def _operation(self, node: Node, rank: int) -> Tensor:
        assert node.function is not None
        arguments = [self._argument(a, rank) if isinstance(a, Node) else a for a in node.arguments]
        return cast(Tensor, node.function(*arguments, **node.keywords))

    def _argument(self, node: Node, rank: int) -> Tensor:
        if node.kind == Kind.CONSTANT:
            return torch.tensor(node.detail, dtype=node.dtype)
        return self._number(node, rank)
