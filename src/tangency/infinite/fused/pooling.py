"""What a value is of the positions of another one: means over all of them, pooling, resampling.

All join different offsets: a mean takes all of them, pooling with windows that do not overlap
joins those of the pairs of positions in two windows, and other maps gather what they read
(`resampling.py`). Only what reads one position at a time, at equal distances, does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.infinite.fused.graph import NotFusable
from tangency.infinite.fused.resampling import Resampling, one_tap, sparse_rows
from tangency.infinite.values.position import OUTSIDE, Average, Mapped, Take
from tangency.infinite.values.regroup import Regroup
from tangency.infinite.values.value import Value
from tangency.infinite.values.window import Window
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

    @property
    def gathers(self) -> bool:
        """Whether it is none of the other kinds: no sum over positions, no windows, no pooling."""
        if None in self.targets or self.windows is not None:
            return False
        return any(_blocks(matrix) is None for matrix in self.matrices)

    @property
    def windows(self) -> tuple[Window | None, ...] | None:
        """Windows of one tap, or None along axes that stay, if that is all."""
        found: list[Window | None] = []
        for axis, target, matrix in zip(self._axes, self.targets, self.matrices, strict=True):
            window = None if target is None else one_tap(matrix, axis, target)
            if window is None:
                return None
            found.append(None if target is axis else window)
        return tuple(found)

    @property
    def _axes(self) -> tuple[Axis, ...]:
        return self.source.positions

    @property
    def _all_targets(self) -> tuple[Axis, ...]:
        """The axes that replace those of the source.

        Raises:
            NotFusable: some are gone.
        """
        targets = tuple(target for target in self.targets if target is not None)
        if len(targets) != len(self.targets):
            raise NotFusable("a mean over some of the positions")
        return targets

    def pooling(self, value: Value, *, moment: bool) -> Pooling | None:
        """The pooling of blocks that `value` is, if it is one."""
        targets, widths, factor = self._all_targets, [], 1.0
        for matrix in self.matrices:
            block = _blocks(matrix)
            if block is None:
                return None
            widths.append(block[0])
            factor *= block[1] ** 2
        return Pooling(value, moment, factor, self._axes, targets, tuple(widths))

    def resampling(self, value: Value, *, moment: bool) -> Resampling:
        """What the positions of `value` read.

        Raises:
            NotFusable: too many positions.
        """
        rows = tuple(sparse_rows(matrix) for matrix in self.matrices)
        return Resampling(value, moment, self._axes, self._all_targets, rows)


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


def _blocks(matrix: Tensor) -> tuple[int, float] | None:
    """Width and weight of the windows of a pooling matrix `(new, old)`; None if it is none."""
    width, weight = int((matrix[0] != 0).sum()), float(matrix[0, 0])
    new, old = matrix.shape
    expected = torch.zeros_like(matrix)
    if width * new <= old:
        for k in range(new):
            expected[k, k * width : (k + 1) * width] = weight
    return None if width == 0 or not torch.equal(expected, matrix) else (width, weight)


def mapping(value: Value) -> Map | None:
    """What `value` is of a value that is no map over positions itself; None if it is none.

    Maps that follow on each other are one, unless that would make a gathering of what pools.
    """
    if not isinstance(value, (Average, Mapped, Take)):
        return None
    source = _joined_source(value) or value.source
    known = mapping(source)
    whole = None if known is None else _made(value, known)
    if whole is not None and known is not None and (known.gathers or not whole.gathers):
        return whole
    ones = tuple(torch.eye(a.size, dtype=torch.float64) for a in source.positions)
    return _made(value, Map(source, source.positions, ones))


def _joined_source(value: Average | Mapped | Take) -> Value | None:
    """Whose positions a mean (or multiple of the sum) over several axes counted as one is of."""
    source = value.source
    if not isinstance(source, Regroup) or len(source.new) != 1 or isinstance(value, Take):
        return None
    if isinstance(value, Mapped):
        alike = torch.full_like(value.matrix[:1], float(value.matrix[0, 0]))
        if not torch.equal(value.matrix, alike):
            return None
    axes = value.axes if isinstance(value, Average) else (value.axis,)
    return source.source if axes == source.new else None


def _made(value: Average | Mapped | Take, inner: Map) -> Map | None:
    """What `value` is, given what its source is; None for what has no such form."""
    if _joined_source(value) is not None and not isinstance(value, Take):
        return _joined(value, inner)
    if isinstance(value, Average):
        return _averaged(value, inner)
    if isinstance(value, Mapped):
        return _replaced(value, inner, value.new, value.matrix)
    if value.new is None and value.axis.size > 1:
        return None
    return _replaced(value, inner, value.new, _selection(value))


def _selection(value: Take) -> Tensor:
    """The matrix of zeros and ones that takes the positions, `(new, old)`."""
    matrix = torch.zeros(len(value.indices), value.axis.size, dtype=torch.float64)
    for new, old in enumerate(value.indices):
        if old != OUTSIDE:
            matrix[new, old] = 1
    return matrix


def _joined(value: Average | Mapped, inner: Map) -> Map:
    source = value.source
    assert isinstance(source, Regroup)
    weight, new = 1 / source.new[0].size, None
    if isinstance(value, Mapped):
        weight, new = float(value.matrix[0, 0]), value.new
    targets, matrices = list(inner.targets), list(inner.matrices)
    for number, axis in enumerate(source.old):
        k = targets.index(axis)
        factor = weight if number == 0 else 1.0
        targets[k] = new if number == 0 else None
        matrices[k] = factor * matrices[k].sum(dim=0, keepdim=True)
    return Map(inner.source, tuple(targets), tuple(matrices))


def _averaged(value: Average, inner: Map) -> Map:
    targets, matrices = list(inner.targets), list(inner.matrices)
    for axis in value.axes:
        k = targets.index(axis)
        targets[k], matrices[k] = None, matrices[k].mean(dim=0, keepdim=True)
    return Map(inner.source, tuple(targets), tuple(matrices))


def _replaced(value: Mapped | Take, inner: Map, new: Axis | None, matrix: Tensor) -> Map:
    targets, matrices = list(inner.targets), list(inner.matrices)
    k = targets.index(value.axis)
    targets[k], matrices[k] = new, matrix @ matrices[k]
    return Map(inner.source, tuple(targets), tuple(matrices))
