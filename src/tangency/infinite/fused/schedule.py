"""In which steps a slice is computed, and what is kept in memory between them.

Operations on numbers at one place are one loop over the slice; a window needs the whole slice of
its input first, so that it ends a loop. What depends on one side alone is not computed here but
once per example (`Array`), and what depends on both sides' arrays alone is computed where needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

import torch

from tangency.infinite.fused.geometry import Geometry, Level
from tangency.infinite.fused.graph import Kind, Node, NotFusable, each, uses

__all__ = ["Array", "Gather", "Loop", "Schedule", "Slide", "schedule", "whole"]

LONGEST = 160
"""Operations of one loop over the pairs; longer ones run out of registers."""


@dataclass(frozen=True)
class Array:
    """A quantity of one side over all positions of a level."""

    side: str
    node: Node
    level: Level


@dataclass(frozen=True)
class Gather:
    """Products of the data of both sides."""

    node: Node


@dataclass(frozen=True)
class Slide:
    """The sum over the taps of one window."""

    node: Node


@dataclass
class Loop:
    """Operations at every place of a slice: `nodes` in order, of which `stores` are kept."""

    level: Level
    nodes: list[Node] = field(default_factory=list)
    stores: list[Node] = field(default_factory=list)


Step = Gather | Slide | Loop


@dataclass
class Schedule:
    """The steps of a slice.

    Attributes:
        steps: in order.
        arrays: what is known of one side, in the order of the tables that hold them.
        dense: leaves whose block is in memory.
        kept: nodes that occupy a buffer, with the indices of the steps that write and last read.
    """

    steps: list[Step]
    arrays: list[Array]
    dense: list[Node]
    kept: dict[Node, tuple[int, int]]

    def array(self, node: Node, level: Level) -> int | None:
        """The index of the array that a loop over `level` reads for a node."""
        for index, array in enumerate(self.arrays):
            if array.node is node and array.level == level:
                return index
        return None


def schedule(roots: tuple[Node, ...], geometry: Geometry) -> Schedule:
    """Plan the slices of what `roots` compute.

    Raises:
        NotFusable: a node that depends on the pair does not vary along all slots.
    """
    planner = _Planner(roots, geometry)
    steps = planner.steps()
    arrays = _arrays(steps, planner.sides)
    dense = [node for node in planner.nodes if node.kind == Kind.DENSE]
    return Schedule(steps, arrays, dense, _lifetimes(steps, roots))


def whole(roots: tuple[Node, ...]) -> Schedule:
    """Plan what depends on no position: loops over the pairs of examples, none too long."""
    nodes = list(each(roots))
    sides = _dependence(nodes)
    mixed = [n for n in nodes if "pair" in sides[n] or len(sides[n]) > 1]
    operations = [n for n in mixed if n.kind == Kind.POINTWISE]
    count = -(-len(operations) // LONGEST)
    loops = []
    for k in range(count):
        part = operations[k * len(operations) // count : (k + 1) * len(operations) // count]
        loops.append(Loop((), part))
    users = uses(roots)
    for loop in loops:
        inside = set(loop.nodes)
        for node in loop.nodes:
            if node in roots or any(user not in inside for user in users[node]):
                loop.stores.append(node)
    steps: list[Step] = list(loops)
    return Schedule(steps, _arrays(steps, sides), [], _lifetimes(steps, roots))


class _Planner:
    def __init__(self, roots: tuple[Node, ...], geometry: Geometry) -> None:
        self.roots = roots
        self.geometry = geometry
        self.nodes = list(each(roots))
        self.users = uses(roots)
        self.sides = _dependence(self.nodes)
        self.phase: dict[Node, int] = {}
        for node in self.nodes:
            if "pair" in self.sides[node]:
                self.phase[node] = self._phase(node)
        windows = [node for node in self.nodes if node.kind == Kind.WINDOW]
        if any(node not in self.phase for node in (*roots, *(w.inputs[0] for w in windows))):
            raise NotFusable("a covariance that does not depend on the data of both sides")

    def _phase(self, node: Node) -> int:
        phases = [self.phase[n] for n in node.inputs if n in self.phase]
        return max(phases, default=0) + (node.kind == Kind.WINDOW)

    def level(self, node: Node) -> Level:
        """The level of a node that depends on the pair."""
        level = self.geometry.level(node)
        if level is None:
            raise NotFusable("a covariance that is the same along a position axis")
        return level

    def stored(self, node: Node) -> bool:
        """Whether a node is read elsewhere than in its own loop."""
        if node.kind != Kind.POINTWISE:
            return node.kind in (Kind.WINDOW, Kind.DATA)
        later = [
            u
            for u in self.users[node]
            if u.kind == Kind.WINDOW or self.phase[u] != self.phase[node]
        ]
        return bool(later) or node in self.roots

    def steps(self) -> list[Step]:
        """Gathers, then phase by phase the windows and the loops."""
        ordered = [n for n in self.nodes if n in self.phase]
        steps: list[Step] = [Gather(n) for n in ordered if n.kind == Kind.DATA]
        ordered.sort(key=lambda n: self.phase[n])
        for _, group in groupby(ordered, key=lambda n: self.phase[n]):
            steps.extend(self._phase_steps(list(group)))
        return steps

    def _phase_steps(self, group: list[Node]) -> Iterable[Step]:
        """Windows first; they read what earlier phases stored."""
        for node in group:
            if node.kind == Kind.WINDOW:
                yield Slide(node)
        loops: dict[Level, Loop] = {}
        for node in group:
            if node.kind != Kind.POINTWISE:
                continue
            loop = loops.setdefault(self.level(node), Loop(self.level(node)))
            for free in self._free_inputs(node):
                if free not in loop.nodes:
                    loop.nodes.append(free)
            loop.nodes.append(node)
            if self.stored(node):
                loop.stores.append(node)
        yield from loops.values()

    def _free_inputs(self, node: Node) -> list[Node]:
        """Inputs that depend on the arrays of both sides only, computed in the loop itself."""
        free: list[Node] = []
        for source in node.inputs:
            if source not in self.phase and {Kind.LEFT, Kind.RIGHT} <= self.sides[source]:
                free += [*self._free_inputs(source), source]
        return free


def _arrays(steps: list[Step], sides: dict[Node, frozenset[str]]) -> list[Array]:
    """One-sided nodes that loops read."""
    found: dict[Array, None] = {}
    for step in steps:
        if not isinstance(step, Loop):
            continue
        for node in step.nodes:
            for source in node.inputs:
                if sides[source] in ({Kind.LEFT}, {Kind.RIGHT}):
                    if source.dtype == torch.bool:
                        raise NotFusable("a condition on one side")
                    found[Array(next(iter(sides[source])), source, step.level)] = None
    return list(found)


def _lifetimes(steps: list[Step], roots: tuple[Node, ...]) -> dict[Node, tuple[int, int]]:
    """When each stored node is written and read for the last time (roots: at the end)."""
    born: dict[Node, int] = {}
    last: dict[Node, int] = {}
    for index, step in enumerate(steps):
        made = step.stores if isinstance(step, Loop) else [step.node]
        born.update(dict.fromkeys(made, index))
        for node in step.nodes if isinstance(step, Loop) else [step.node]:
            last.update({n: index for n in node.inputs if n in born})
    last.update({root: len(steps) for root in roots})
    return {node: (when, last.get(node, when)) for node, when in born.items()}


def _dependence(nodes: list[Node]) -> dict[Node, frozenset[str]]:
    """Whether a node depends on the left side, the right side, the pair."""
    sides: dict[Node, frozenset[str]] = {}
    for node in nodes:
        own: frozenset[str] = frozenset()
        if node.kind in (Kind.LEFT, Kind.RIGHT):
            own = frozenset({node.kind})
        elif node.kind in (Kind.DATA, Kind.DENSE, Kind.WINDOW):
            own = frozenset({"pair"})
        sides[node] = own.union(*(sides[n] for n in node.inputs))
    return sides
