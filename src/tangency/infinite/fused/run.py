"""Runs of layers that are local in the offset, and chains of runs joined by pooling."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from tangency.infinite.fused.geometry import Geometry, Level
from tangency.infinite.fused.graph import Node
from tangency.infinite.fused.pooling import Pooling
from tangency.infinite.fused.resampling import Resampling
from tangency.infinite.fused.schedule import Fetch, Gather, Schedule, Slide

__all__ = ["Chain", "Run"]


@dataclass(frozen=True)
class Run:
    """A run of layers that is local in the offset.

    Attributes:
        roots: what the slices give: moments, NTKs.
        geometry: of all axes.
        moduli: of the offsets, one per slot (columns come last).
        schedule: the steps of a slice.
        blocks: for each leaf in memory, the number of the block.
        first: number of the first block that the run makes, one per root.
        widths: of the windows, per slot, that its results are summed over; empty for the last run
            of a chain, whose results are summed over all positions.
        stored: whether its slices are kept in memory as they are; the widths are one then.
    """

    roots: tuple[Node, ...]
    geometry: Geometry
    moduli: tuple[int, ...]
    schedule: Schedule
    blocks: tuple[int, ...] = ()
    first: int = 0
    widths: tuple[int, ...] = ()
    stored: bool = False

    def shape(self, level: Level) -> tuple[int, int]:
        """Rows and columns of a slice's matrix at a level."""
        sizes = (1, *(e.whole(m) for m, e in zip(self.moduli, level, strict=True)))
        return sizes[-2], sizes[-1]

    def steps(self, level: Level) -> tuple[Fraction, Fraction]:
        """By how many rows and columns one more offset moves the right position."""
        steps = (Fraction(0), *(e.step for e in level))
        return steps[-2], steps[-1]

    def level(self, node: Node) -> Level:
        """The level of a node that varies along all slots."""
        level = self.geometry.level(node)
        assert level is not None
        return level

    @property
    def result(self) -> Level:
        """The level of the roots."""
        return self.level(self.roots[0])

    @property
    def windowed(self) -> tuple[int, int]:
        """Rows and columns of a window that the results are summed over."""
        widths = (1, *self.widths)
        return widths[-2], widths[-1]

    @property
    def pools(self) -> bool:
        """Whether its results are added up in windows, in memory."""
        return bool(self.widths) and not self.stored

    @property
    def data(self) -> list[Node]:
        """Leaves made of the data of both sides."""
        return [step.node for step in self.schedule.steps if isinstance(step, Gather)]

    @property
    def windows(self) -> list[Node]:
        """Sums over taps, in the order of the tables."""
        return [step.node for step in self.schedule.steps if isinstance(step, Slide)]

    @property
    def fetched(self) -> list[Node]:
        """What is gathered from blocks in memory, in the order of the tables."""
        return [step.node for step in self.schedule.steps if isinstance(step, Fetch)]

    def block(self, leaf: Node) -> int:
        """The number of the block that a leaf in memory is read from."""
        return self.blocks[self.schedule.dense.index(leaf)]


@dataclass(frozen=True)
class Chain:
    """Runs that lead to sums over positions, each after those whose blocks it reads.

    Attributes:
        runs: in order; the last one's results are summed over all positions.
        maps: the sums over windows, or resampled slices, that are made of each run's roots but
            the last one's.
        weights: of the positions along each axis, or None for a sum over equal positions.
        leaves: of the head, that this chain gives, by the index of their root in the last run.
    """

    runs: list[Run]
    maps: list[list[Node]]
    weights: tuple[tuple[float, ...], ...] | None
    leaves: list[tuple[Node, int]]

    def following(self, index: int) -> Pooling | Resampling:
        """The map over positions that follows on a run."""
        detail = self.maps[index][0].detail
        assert isinstance(detail, (Pooling, Resampling))
        return detail

    def resampling(self, index: int) -> Resampling:
        """The gathering that follows on a run whose slices are kept."""
        detail = self.following(index)
        assert isinstance(detail, Resampling)
        return detail

    def maker(self, block: int) -> int:
        """The run that makes a block."""
        return max(k for k, run in enumerate(self.runs) if run.first <= block)

    def reader(self, index: int) -> tuple[int, Level]:
        """The run that reads the blocks of a run, and the level at which it does."""
        first = self.runs[index].first
        last = first + len(self.runs[index].roots)
        for k, run in enumerate(self.runs):
            for block, leaf in zip(run.blocks, run.schedule.dense, strict=True):
                if first <= block < last:
                    return k, run.level(leaf)
        raise AssertionError("a block that nobody reads")
