"""Linear maps over positions that end a run: means over all positions, and pooling.

Both join different offsets: a mean takes all of them, pooling with windows that do not overlap
joins those of the pairs of positions in two windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.infinite.fused.graph import NotFusable
from tangency.infinite.values.position import Average, Mapped, Take
from tangency.infinite.values.regroup import Regroup
from tangency.infinite.values.value import Value
from tangency.program.axes import Axis

__all__ = ["Map", "Pooling", "mapping"]


@dataclass(frozen=True)
class Map:
    """What a value is of the positions of another one.

    Attributes:
        source: that other value.
        targets: for each of its position axes, the axis that replaces it, or None.
        matrices: for each, `(new, old)`.
    """

    source: Value
    targets: tuple[Axis | None, ...]
    matrices: tuple[Tensor, ...]

    @property
    def weights(self) -> tuple[tuple[float, ...], ...] | None:
        """Weights of the positions along each axis, if all positions are summed over."""
        if any(target is not None for target in self.targets):
            return None
        return tuple(tuple(matrix[0].tolist()) for matrix in self.matrices)

    def pooling(self, value: Value, *, moment: bool) -> Pooling:
        """The pooling of blocks that `value` is.

        Raises:
            NotFusable: windows that overlap, or differ in size or weight.
        """
        targets = [target for target in self.targets if target is not None]
        if len(targets) != len(self.targets):
            raise NotFusable("a mean over some of the positions")
        widths, factor = [], 1.0
        for matrix in self.matrices:
            width, weight = _blocks(matrix)
            widths.append(width)
            factor *= weight**2
        return Pooling(value, moment, factor, self.source.positions, tuple(targets), tuple(widths))


@dataclass(frozen=True)
class Pooling:
    """Sums over windows that lie side by side.

    Attributes:
        value: the pooled value.
        moment: whether its moment is meant, and not its NTK.
        factor: of the sums in its second moments.
        axes: position axes of the source.
        targets: the axes that count the windows.
        widths: how many positions a window has along each.
    """

    value: Value
    moment: bool
    factor: float
    axes: tuple[Axis, ...]
    targets: tuple[Axis, ...]
    widths: tuple[int, ...]


def _blocks(matrix: Tensor) -> tuple[int, float]:
    """Width and weight of the windows of a pooling matrix `(new, old)`."""
    width, weight = int((matrix[0] != 0).sum()), float(matrix[0, 0])
    new, old = matrix.shape
    expected = torch.zeros_like(matrix)
    if width * new <= old:
        for k in range(new):
            expected[k, k * width : (k + 1) * width] = weight
    if width == 0 or not torch.equal(expected, matrix):
        raise NotFusable("a map over positions other than pooling with windows side by side")
    return width, weight


def mapping(value: Value) -> Map | None:
    """What `value` is of a value that is no map over positions itself; None if it is none."""
    if isinstance(value, (Average, Mapped)):
        joined = _joined(value)
        if joined is not None:
            return joined
    if isinstance(value, Average):
        return _averaged(value)
    if isinstance(value, Mapped):
        return _replaced(value, value.new, value.matrix)
    if isinstance(value, Take) and value.new is None and value.axis.size == 1:
        return _replaced(value, None, torch.ones(1, 1, dtype=torch.float64))
    return None


def _joined(value: Average | Mapped) -> Map | None:
    """A mean (or another constant multiple of the sum) over several axes counted as one."""
    source = value.source
    if not isinstance(source, Regroup) or len(source.new) != 1:
        return None
    if isinstance(value, Average):
        axes, weight, new = value.axes, 1 / source.new[0].size, None
    else:
        axes, weight, new = (value.axis,), float(value.matrix[0, 0]), value.new
        if not torch.equal(value.matrix, torch.full_like(value.matrix[:1], weight)):
            return None
    if axes != source.new:
        return None
    inner = _inner(source.source)
    targets, matrices = list(inner.targets), list(inner.matrices)
    for number, axis in enumerate(source.old):
        k = targets.index(axis)
        factor = weight if number == 0 else 1.0
        targets[k] = new if number == 0 else None
        matrices[k] = factor * matrices[k].sum(dim=0, keepdim=True)
    return Map(inner.source, tuple(targets), tuple(matrices))


def _inner(source: Value) -> Map:
    """The map that a source is already, or none."""
    known = mapping(source)
    if known is not None:
        return known
    ones = tuple(torch.eye(a.size, dtype=torch.float64) for a in source.positions)
    return Map(source, source.positions, ones)


def _averaged(value: Average) -> Map:
    inner = _inner(value.source)
    targets, matrices = list(inner.targets), list(inner.matrices)
    for axis in value.axes:
        k = targets.index(axis)
        targets[k], matrices[k] = None, matrices[k].mean(dim=0, keepdim=True)
    return Map(inner.source, tuple(targets), tuple(matrices))


def _replaced(value: Mapped | Take, new: Axis | None, matrix: Tensor) -> Map:
    inner = _inner(value.source)
    targets, matrices = list(inner.targets), list(inner.matrices)
    k = targets.index(value.axis)
    targets[k], matrices[k] = new, matrix @ matrices[k]
    return Map(inner.source, tuple(targets), tuple(matrices))
