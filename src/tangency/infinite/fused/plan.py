"""Cuts the graph of a network's output into chains of runs and a head without positions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from tangency.infinite.fused.geometry import Geometry
from tangency.infinite.fused.graph import Kind, Node, NotFusable, deduplicated, each
from tangency.infinite.fused.pooling import Pooling
from tangency.infinite.fused.resampling import Resampling
from tangency.infinite.fused.run import Chain, Run
from tangency.infinite.fused.schedule import Schedule, schedule, whole
from tangency.infinite.fused.trace import Tracer, multiple
from tangency.program.axes import Axis

__all__ = ["Head", "Plan", "plan"]


@dataclass(frozen=True)
class Head:
    """What follows on the last sum over positions, number by number.

    Attributes:
        roots: NNGP and NTK.
        matrices: leaves that are known for all pairs: sums over positions, angles of the data.
        schedule: loops over the pairs.
    """

    roots: tuple[Node, ...]
    matrices: list[Node]
    schedule: Schedule


@dataclass(frozen=True)
class Plan:
    """How NNGP and NTK of a network are computed.

    Attributes:
        tracer: knows which axes are the same.
        chains: give the sums over positions.
        head: the rest.
    """

    tracer: Tracer
    chains: list[Chain]
    head: Head


def plan(tracer: Tracer, roots: tuple[Node, ...]) -> Plan:
    """Plan the computation of `roots`, which have no positions.

    Raises:
        NotFusable: it is not local in the offset.
    """
    merged = tuple(_operation(root) for root in deduplicated(roots))
    cut, sums = _cut(merged, (Kind.REDUCE,))
    groups: dict[object, list[Node]] = {}
    for leaf in sums:
        detail = leaf.detail.detail
        axes = tuple(tracer.representative(a) for a in detail.axes)
        groups.setdefault((axes, detail.weights), []).append(leaf)
    chains = [_chain(tracer, leaves) for leaves in groups.values()]
    return Plan(tracer, chains, _head(cut))


def _operation(root: Node) -> Node:
    """A root that is computed by the head, if only as a copy."""
    return root if root.kind == Kind.POINTWISE else multiple(root, 1.0, always=True)


def _cut(roots: tuple[Node, ...], kinds: tuple[str, ...]) -> tuple[tuple[Node, ...], list[Node]]:
    """The graph above the nodes of these kinds, which become leaves that are in memory."""
    above: dict[Node, Node] = {}
    found: list[Node] = []
    for node in each(roots):
        if node.kind in kinds:
            above[node] = Node(Kind.DENSE, node.dtype, node.axes, detail=node)
            found.append(above[node])
        else:
            arguments = tuple(above[a] if isinstance(a, Node) else a for a in node.arguments)
            same = all(new is old for new, old in zip(arguments, node.arguments, strict=True))
            above[node] = node if same else replace(node, arguments=arguments)
    cut = tuple(above[root] for root in roots)
    reached = set(each(cut))
    return cut, [leaf for leaf in found if leaf in reached]


def _head(roots: tuple[Node, ...]) -> Head:
    nodes = list(each(roots))
    if any(node.kind == Kind.OF_TWO for node in nodes):
        raise NotFusable("a function of two Gaussians without positions")
    if any(node.axes for node in nodes):
        raise NotFusable("positions that are not summed over")
    matrices = [node for node in nodes if node.kind in (Kind.DENSE, Kind.DATA)]
    if any(node.dtype not in (torch.float32, torch.float64) for node in roots):
        raise NotFusable("a result of another type")
    return Head(roots, matrices, whole(roots))


# -- chains ------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """A run whose moduli are not known yet."""

    maps: list[Node]
    roots: tuple[Node, ...]
    leaves: list[Node]
    geometry: Geometry
    inputs: list[_Draft]

    def least(self) -> tuple[int, ...]:
        """The least moduli with which this run and those before it fit on their tori."""
        moduli = list(self.geometry.least)
        for below in self.inputs:
            pooling = below.following
            if isinstance(pooling, Resampling):
                continue  # it reads a torus of its own
            for k, target in enumerate(pooling.targets):
                extent = self.geometry.extent(target)
                fine = below.least()[below.geometry.extent(pooling.axes[k]).slot]
                needed = math.ceil(fine / (pooling.widths[k] * extent.step))
                needed = self.geometry.rounded(extent.slot, needed)
                moduli[extent.slot] = max(moduli[extent.slot], needed)
        return tuple(moduli)

    @property
    def following(self) -> Pooling | Resampling:
        """The map over positions that follows."""
        detail = self.maps[0].detail
        assert isinstance(detail, (Pooling, Resampling))
        return detail


def _chain(tracer: Tracer, leaves: list[Node]) -> Chain:
    roots = tuple(dict.fromkeys(leaf.detail.inputs[0] for leaf in leaves))
    detail = leaves[0].detail.detail
    draft = _draft(tracer, roots, detail.axes, [])
    runs: list[Run] = []
    maps: list[list[Node]] = []
    _finish(draft, draft.least(), (), runs, maps)
    given = [(leaf, roots.index(leaf.detail.inputs[0])) for leaf in leaves]
    return Chain(runs, maps, detail.weights, given)


def _draft(
    tracer: Tracer, roots: tuple[Node, ...], order: tuple[Axis, ...], maps: list[Node]
) -> _Draft:
    if not 1 <= len(order) <= 2:
        raise NotFusable("more than two position axes")
    cut, leaves = _cut(roots, Kind.MAPS)
    if any(node.kind == Kind.REDUCE for node in each(cut)):
        raise NotFusable("a sum over some of the positions")
    geometry = Geometry(tracer, cut, order)
    groups: dict[object, list[Node]] = {}
    for leaf in leaves:
        axes = tuple(tracer.representative(a) for a in leaf.detail.detail.targets)
        groups.setdefault((axes, _reading(leaf.detail.detail)), []).append(leaf)
    inputs = []
    for group in groups.values():
        mapped = group[0].detail.detail
        slots = [geometry.extent(a).slot for a in mapped.targets]
        if sorted(slots) != list(range(geometry.rank)):
            raise NotFusable("a map over positions to fewer axes, or to more")
        axes = tuple(mapped.axes[slots.index(slot)] for slot in range(geometry.rank))
        below = tuple(leaf.detail.inputs[0] for leaf in group)
        inputs.append(_draft(tracer, below, axes, [leaf.detail for leaf in group]))
    return _Draft(maps, cut, leaves, geometry, inputs)


def _reading(mapped: Pooling | Resampling) -> object:
    """What maps of one group have in common."""
    return mapped.rows if isinstance(mapped, Resampling) else mapped.widths


def _finish(
    draft: _Draft,
    moduli: tuple[int, ...],
    widths: tuple[int, ...],
    runs: list[Run],
    maps: list[list[Node]],
) -> None:
    """Append a draft's runs, those that it reads first."""
    places: dict[Node, int] = {}
    for below in draft.inputs:
        sizes, steps = _windows(draft, below, moduli)
        _finish(below, sizes, steps, runs, maps)
        places.update({node: runs[-1].first + k for k, node in enumerate(below.maps)})
    draft.geometry.check(moduli)
    planned = schedule(draft.roots, draft.geometry)
    blocks = tuple(places[leaf.detail] for leaf in planned.dense)
    first = sum(len(run.roots) for run in runs)
    stored = bool(widths) and isinstance(draft.following, Resampling)
    runs.append(Run(draft.roots, draft.geometry, moduli, planned, blocks, first, widths, stored))
    if widths:
        maps.append(draft.maps)


def _windows(
    draft: _Draft, below: _Draft, moduli: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Moduli of a run before another one, and the widths of the windows that join the two."""
    mapped = below.following
    order = [below.geometry.extent(a).slot for a in mapped.axes]
    if isinstance(mapped, Resampling):
        return below.least(), (1,) * len(order)
    sizes, widths = [0] * len(order), [0] * len(order)
    for k, target in enumerate(mapped.targets):
        extent = draft.geometry.extent(target)
        widths[order[k]] = mapped.widths[k]
        sizes[order[k]] = mapped.widths[k] * extent.whole(moduli[extent.slot])
    return tuple(sizes), tuple(widths)
