"""Cuts the graph of a network's output into runs of slices and a head without positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from tangency.infinite.fused.geometry import Geometry
from tangency.infinite.fused.graph import Kind, Node, NotFusable, deduplicated, each
from tangency.infinite.fused.schedule import Schedule, schedule, whole
from tangency.infinite.fused.source import Run
from tangency.infinite.fused.trace import Tracer, multiple

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
        runs: runs of slices, each with the leaves of the head that it makes.
        head: the rest.
    """

    tracer: Tracer
    runs: list[tuple[Run, list[Node]]]
    head: Head


def plan(tracer: Tracer, roots: tuple[Node, ...]) -> Plan:
    """Plan the computation of `roots`, which have no positions.

    Raises:
        NotFusable: it is not local in the offset.
    """
    merged = deduplicated(tuple(_operation(root) for root in roots))
    cut, sums = _cut(merged)
    groups: dict[object, list[Node]] = {}
    for leaf in sums:
        axes = tuple(tracer.representative(a) for a in leaf.detail.detail.axes)
        groups.setdefault((axes, leaf.detail.detail.offsets), []).append(leaf)
    runs = [(_run(tracer, leaves), leaves) for leaves in groups.values()]
    return Plan(tracer, runs, _head(cut))


def _operation(root: Node) -> Node:
    """A root that is computed by the head, if only as a copy."""
    return root if root.kind == Kind.POINTWISE else multiple(root, 1.0, always=True)


def _cut(roots: tuple[Node, ...]) -> tuple[tuple[Node, ...], list[Node]]:
    """The graph above the sums over positions, in which these are leaves."""
    above: dict[Node, Node] = {}
    sums: list[Node] = []
    for node in each(roots):
        if node.kind == Kind.REDUCE and not node.axes:
            above[node] = Node(Kind.DENSE, node.dtype, detail=node)
            sums.append(above[node])
        else:
            arguments = tuple(above[a] if isinstance(a, Node) else a for a in node.arguments)
            above[node] = replace(node, arguments=arguments)
    cut = tuple(above[root] for root in roots)
    reached = set(each(cut))
    return cut, [leaf for leaf in sums if leaf in reached]


def _run(tracer: Tracer, leaves: list[Node]) -> Run:
    reductions = [leaf.detail for leaf in leaves]
    roots = tuple(dict.fromkeys(node.inputs[0] for node in reductions))
    axes = reductions[0].detail.axes
    if len(axes) > 2:
        raise NotFusable("more than two position axes")
    geometry = Geometry(tracer, roots, axes)
    if any(node.kind == Kind.REDUCE for node in each(roots)):
        raise NotFusable("a sum over some of the positions")
    return Run(roots, geometry, geometry.least, schedule(roots, geometry))


def _head(roots: tuple[Node, ...]) -> Head:
    nodes = list(each(roots))
    if any(node.axes for node in nodes):
        raise NotFusable("positions that are not summed over")
    matrices = [node for node in nodes if node.kind in (Kind.DENSE, Kind.DATA)]
    if any(node.dtype not in (torch.float32, torch.float64) for node in roots):
        raise NotFusable("a result of another type")
    return Head(roots, matrices, whole(roots))
