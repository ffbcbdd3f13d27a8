"""Where the numbers of a slice lie: axes in slots, offsets on a torus, and which taps are inside.

All position axes of a run fall into *slots* (rows and columns of an image, say). In every slot the
offset of the right position from the left one is `step * offset`, where `step` is the product of
the strides between an axis and the result of the run. Offsets live on a torus: with modulus
`m * step` at least the size of the axis, the pairs (p, (p + step * offset) mod (m * step)) of all
offsets 0 .. m - 1 are all pairs of positions, each once, and pairs that a window's tap joins have
the same offset unless the tap leaves one of the two images. Where `m * step` is the size of the
axis, that holds for windows that wrap around its ends too.

Where a transposed convolution puts inputs apart, the step of its input is a fraction, and only
every other offset joins inputs. At the rest its slice holds numbers that no tap reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tangency.infinite.fused.graph import Kind, Node, NotFusable, each
from tangency.infinite.fused.trace import Tracer
from tangency.infinite.values.window import Window
from tangency.program.axes import Axis

__all__ = ["Extent", "Geometry", "Level"]


@dataclass(frozen=True)
class Extent:
    """One axis in its slot: how many positions it has, and how far the next offset takes it."""

    slot: int
    size: int
    step: Fraction = Fraction(1)

    def whole(self, modulus: int) -> int:
        """Positions on the torus."""
        return int(modulus * self.step)

    def moved(self, offset: int) -> int:
        """How far the right position is from the left one."""
        return math.floor(offset * self.step)


Level = tuple[Extent, ...]
"""The extents of a matrix of numbers, one per slot."""


class Geometry:
    """Slots and extents of all axes of one run.

    Args:
        tracer: knows which axes are the same.
        roots: what the run computes.
        order: position axes of the result, one per slot.

    Raises:
        NotFusable: the axes do not fall into slots, or strides do not agree.
    """

    def __init__(self, tracer: Tracer, roots: tuple[Node, ...], order: Sequence[Axis]) -> None:
        self._tracer = tracer
        self.rank = len(order)
        self._extents: dict[Axis, Extent] = {}
        for slot, axis in enumerate(order):
            self._place(axis, Extent(slot, axis.size))
        nodes = list(each(roots))
        self._follow(nodes)
        self._check(nodes)
        self._windows = [node.window for node in nodes if node.kind == Kind.WINDOW]
        self.least = tuple(self._least(slot) for slot in range(self.rank))

    def _place(self, axis: Axis, extent: Extent) -> bool:
        """Give an axis its extent; whether that is news."""
        axis = self._tracer.representative(axis)
        known = self._extents.setdefault(axis, extent)
        if known != extent:
            raise NotFusable("branches whose strides differ meet in one value")
        return known is extent

    def _follow(self, nodes: list[Node]) -> None:
        """Carry slots and steps from the results of windows to their inputs."""
        windows = [node.window for node in reversed(nodes) if node.kind == Kind.WINDOW]
        news = True
        while news:
            news = False
            for window in windows:
                target = self._tracer.representative(window.target)
                if target in self._extents:
                    there = self._extents[target]
                    step = there.step * window.stride / window.insert
                    news |= self._place(window.source, Extent(there.slot, window.source.size, step))

    def _check(self, nodes: list[Node]) -> None:
        for node in nodes:
            slots = [self.extent(axis).slot for axis in self.axes(node)]
            if len(set(slots)) != len(slots):
                raise NotFusable("a value with two positions of one kind: not a slice")

    def _least(self, slot: int) -> int:
        extents = [e for e in self._extents.values() if e.slot == slot]
        return self.rounded(slot, max(math.ceil(e.size / e.step) for e in extents))

    def rounded(self, slot: int, modulus: int) -> int:
        """The next modulus with which the torus of every axis has a whole number of positions."""
        extents = [e for e in self._extents.values() if e.slot == slot]
        unit = math.lcm(*(e.step.denominator for e in extents))
        return -(-modulus // unit) * unit

    def check(self, moduli: Sequence[int]) -> None:
        """Refuse moduli that do not suit all axes.

        Raises:
            NotFusable: an axis is no whole number of positions, or a window wraps around one which
                is not the whole torus.
        """
        if any(self.rounded(slot, modulus) != modulus for slot, modulus in enumerate(moduli)):
            raise NotFusable("windows of a pooling that cut those of a transposed convolution")
        for window in self._windows:
            extents = self.windowed(window) if window.wraps else ()
            if any(moduli[e.slot] * e.step != e.size for e in extents):
                raise NotFusable("a window that wraps around only some of the positions")

    def axes(self, node: Node) -> frozenset[Axis]:
        """The axes of a node, each by its representative."""
        return frozenset(self._tracer.representative(axis) for axis in node.axes)

    def extent(self, axis: Axis) -> Extent:
        """The extent of an axis."""
        axis = self._tracer.representative(axis)
        if axis not in self._extents:
            raise NotFusable("an axis on which the result does not depend position by position")
        return self._extents[axis]

    def level(self, node: Node) -> Level | None:
        """The extents of a node; None if it does not vary along all slots."""
        extents = sorted((self.extent(a) for a in self.axes(node)), key=lambda e: e.slot)
        return tuple(extents) if len(extents) == self.rank else None

    def windowed(self, window: Window) -> tuple[Extent, Extent]:
        """Extents of a window's input and result."""
        return self.extent(window.source), self.extent(window.target)


def right(extent: Extent, modulus: int, offset: int) -> NDArray[np.int64]:
    """The right position of every left position 0 .. modulus * step - 1 at one offset."""
    whole = extent.whole(modulus)
    moved: NDArray[np.int64] = (np.arange(whole) + extent.moved(offset)) % whole
    return moved


def inside(extent: Extent, modulus: int, offset: int) -> NDArray[np.bool_]:
    """Where both the left and the right position exist."""
    left = np.arange(extent.whole(modulus))
    both: NDArray[np.bool_] = (left < extent.size) & (right(extent, modulus, offset) < extent.size)
    return both


def reached(
    window: Window, source: Extent, target: Extent, modulus: int, offset: int
) -> NDArray[np.bool_]:
    """Which taps lie inside both images, shape `(taps, positions of the result)`.

    Of a window that wraps, those that need not do so on the left.
    """
    left = np.arange(target.whole(modulus))
    there = right(target, modulus, offset)
    size, apart = source.size * window.insert, window.insert
    fits = [
        (read >= 0) & (read < size) & (read % apart == 0)
        for read in (reads(window, positions) for positions in (left, there))
    ]
    result: NDArray[np.bool_] = fits[0]
    if not window.wraps:
        result = fits[0] & fits[1] & inside(target, modulus, offset)
    return result


def reads(window: Window, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which position of the input each tap reads, `(taps, positions)`; it may lie outside.

    Inputs that are put apart are `window.insert` positions from each other.
    """
    shift = np.arange(window.taps)[:, None] * window.dilation - window.padding
    found: NDArray[np.int64] = positions * window.stride + shift
    return found
