"""In which steps a slice is computed, and what is kept in memory between them.

Operations on numbers at one place are one loop over the slice; a window needs the whole slice of
its input first, so that it ends a loop. What depends on one side alone is not computed here but
once per example (`Array`), and what depends on both sides' arrays alone is computed where needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from tangency.infinite.fused.geometry import Geometry, Level
from tangency.infinite.fused.graph import Kind, Node, NotFusable, each, uses
from tangency.infinite.fused.two_gaussians import INPUTS

__all__ = ["Apply", "Array", "Fetch", "Gather", "Loop", "Schedule", "Slide", "schedule", "whole"]

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
class Fetch:
    """What a map over positions reads of slices in memory."""

    node: Node


@dataclass(frozen=True)
class Slide:
    """The sum over the taps of one window."""

    node: Node


@dataclass
class Apply:
    """The second moments of a function of two Gaussians: `nodes` of equal arguments."""

    level: Level
    nodes: list[Node]

    @property
    def stores(self) -> list[Node]:
        """All are kept."""
        return self.nodes


@dataclass
class Loop:
    """Operations at every place of a slice: `nodes` in order, of which `stores` are kept."""

    level: Level
    nodes: list[Node] = field(default_factory=list)
    stores: list[Node] = field(default_factory=list)


Step = Gather | Fetch | Slide | Apply | Loop


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
    users = uses(roots)
    operations = [n for n in nodes if n.kind == Kind.POINTWISE and "pair" in sides[n]]
    steps: list[Step] = []
    for part in _cut(_by_depth(operations), users):
        loop = Loop(())
        for node in part:
            loop.nodes += [n for n in _free_inputs(node, sides) if n not in loop.nodes]
            loop.nodes.append(node)
        inside = set(part)
        loop.stores = [n for n in part if n in roots or any(u not in inside for u in users[n])]
        steps.append(loop)
    return Schedule(steps, _arrays(steps, sides), [], _lifetimes(steps, roots))


def _by_depth(operations: list[Node]) -> list[Node]:
    """Operations in an order in which what belongs to one layer stands together."""
    depth: dict[Node, int] = {}
    for node in operations:
        depth[node] = 1 + max((depth[n] for n in node.inputs if n in depth), default=0)
    return sorted(operations, key=lambda n: depth[n])


def _cut(operations: list[Node], users: dict[Node, list[Node]]) -> list[list[Node]]:
    """Parts of about `LONGEST` operations, cut where few numbers have to be kept."""
    position = {node: k for k, node in enumerate(operations)}
    change = [0] * (len(operations) + 1)
    for node in operations:
        last = max((position[u] for u in users[node] if u in position), default=position[node])
        change[position[node] + 1] += 1
        change[last + 1] -= last > position[node]
        change[position[node] + 1] -= last == position[node]
    alive = list(itertools.accumulate(change))
    parts, start = [], 0
    while len(operations) - start > LONGEST * 3 // 2:
        end = min(range(start + LONGEST // 2, start + LONGEST * 3 // 2), key=lambda k: alive[k])
        parts.append(operations[start:end])
        start = end
    return [*parts, operations[start:]]


def _free_inputs(node: Node, sides: dict[Node, frozenset[str]]) -> list[Node]:
    """Inputs that depend on the arrays of both sides only, computed in the loop itself."""
    free: list[Node] = []
    for source in node.inputs:
        if sides[source] == {Kind.LEFT, Kind.RIGHT}:
            free += [*_free_inputs(source, sides), source]
    return free


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
        inputs = [n for node in self.nodes for n in _from_memory(node)]
        if any(node not in self.phase for node in (*roots, *inputs)):
            raise NotFusable("a covariance that does not depend on the data of both sides")

    def _phase(self, node: Node) -> int:
        phases = [self.phase[n] for n in node.inputs if n in self.phase]
        return max(phases, default=0) + bool(_from_memory(node))

    def level(self, node: Node) -> Level:
        """The level of a node that depends on the pair."""
        level = self.geometry.level(node)
        if level is None:
            raise NotFusable("a covariance that is the same along a position axis")
        return level

    def stored(self, node: Node) -> bool:
        """Whether a node is read elsewhere than in its own loop."""
        if node.kind != Kind.POINTWISE:
            return node.kind in (Kind.WINDOW, Kind.OF_TWO, Kind.DATA)
        later = [
            u for u in self.users[node] if _from_memory(u) or self.phase[u] != self.phase[node]
        ]
        return bool(later) or node in self.roots

    def steps(self) -> list[Step]:
        """Gathers and fetches, then phase by phase the windows and the loops."""
        ordered = [n for n in self.nodes if n in self.phase]
        steps: list[Step] = [Gather(n) for n in ordered if n.kind == Kind.DATA]
        dense = (n for n in ordered if n.kind == Kind.DENSE)
        steps += [Fetch(n) for n in dense if n.detail.kind == Kind.RESAMPLE]
        ordered.sort(key=lambda n: self.phase[n])
        for _, group in itertools.groupby(ordered, key=lambda n: self.phase[n]):
            steps.extend(self._phase_steps(list(group)))
        return steps

    def _phase_steps(self, group: list[Node]) -> Iterable[Step]:
        """Windows first, and functions of two; they read what earlier phases stored."""
        applied: dict[object, Apply] = {}
        for node in group:
            if node.kind == Kind.WINDOW:
                yield Slide(node)
            if node.kind == Kind.OF_TWO:
                key = node.arguments, replace(node.detail, output=0)
                applied.setdefault(key, Apply(self.level(node), [])).nodes.append(node)
        yield from applied.values()
        loops: dict[Level, Loop] = {}
        for node in group:
            if node.kind != Kind.POINTWISE:
                continue
            loop = loops.setdefault(self.level(node), Loop(self.level(node)))
            for free in _free_inputs(node, self.sides):
                if free not in loop.nodes:
                    loop.nodes.append(free)
            loop.nodes.append(node)
            if self.stored(node):
                loop.stores.append(node)
        yield from loops.values()


def _arrays(steps: list[Step], sides: dict[Node, frozenset[str]]) -> list[Array]:
    """One-sided nodes that loops read."""
    found: dict[Array, None] = {}
    for step in steps:
        if not isinstance(step, (Apply, Loop)):
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
        if isinstance(step, (Apply, Loop)):
            nodes, stores = step.nodes, step.stores
        else:
            nodes = stores = [step.node]
        born.update(dict.fromkeys(stores, index))
        for node in nodes:
            last.update({n: index for n in node.inputs if n in born})
    last.update({root: len(steps) for root in roots})
    return {node: (when, last.get(node, when)) for node, when in born.items()}


def _from_memory(node: Node) -> tuple[Node, ...]:
    """Inputs whose whole slice is read, after a loop over it has ended."""
    if node.kind == Kind.OF_TWO:
        return node.inputs[:INPUTS]
    return node.inputs if node.kind == Kind.WINDOW else ()


def _dependence(nodes: list[Node]) -> dict[Node, frozenset[str]]:
    """Whether a node depends on the left side, the right side, the pair."""
    sides: dict[Node, frozenset[str]] = {}
    for node in nodes:
        own: frozenset[str] = frozenset()
        if node.kind in (Kind.LEFT, Kind.RIGHT):
            own = frozenset({node.kind})
        elif node.kind in (Kind.DATA, Kind.DENSE, Kind.WINDOW, Kind.OF_TWO):
            own = frozenset({"pair"})
        sides[node] = own.union(*(sides[n] for n in node.inputs))
    return sides
