"""How a kernel will be computed, in words: the path of every parameter, and what it costs."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import fx

from tangency import examples
from tangency.empirical.costs import Path, Term, cheapest, costs
from tangency.empirical.engine import Engine
from tangency.empirical.function import user_module
from tangency.empirical.groups import Group
from tangency.empirical.schedule import Schedule, Work
from tangency.empirical.subject import Prepared

__all__ = ["ParameterPlan", "Plan", "matrix_rate", "plan"]

_TRIED = 4
"""Examples whose passage through the network is timed."""

_RATE_SIZE = 768
"""Side of the matrix product that is timed."""


@dataclass(frozen=True)
class ParameterPlan:
    """The path of one parameter.

    Attributes:
        name: the parameter.
        path: what is computed.
        multiply_adds: of all products of its gradients, for the whole kernel.
        bytes: of its gradients at rest, for each example.
        reason: why this path.
    """

    name: str
    path: str
    multiply_adds: float
    bytes: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """How a kernel matrix will be computed.

    Attributes:
        model: the module's type.
        shape: (n1, n2).
        layout: of the outputs.
        parameters: the path of each.
        tile: rows that are kept and columns that come by, in examples.
        passages: examples that go through the network, each as often as its gradients are made.
        memory: estimate of the bytes in use, at most.
        seconds: estimate of the time, by a trial of the network and of a matrix product.
    """

    model: str
    shape: tuple[int, int]
    layout: str
    parameters: tuple[ParameterPlan, ...]
    tile: tuple[int, int]
    passages: int
    memory: int
    seconds: float

    @property
    def duration(self) -> str:
        """The estimate of the time, in words."""
        return _duration(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """All attributes as plain Python objects."""
        return asdict(self)

    def __repr__(self) -> str:
        width = max((len(p.name) for p in self.parameters), default=0)
        paths = max((len(p.path) for p in self.parameters), default=0)
        rows = [
            f"  {p.name:<{width}}  {p.path:<{paths}}  {p.multiply_adds:8.1e}  "
            f"{p.bytes / 1e3:10.1f} kB  {p.reason}"
            for p in self.parameters
        ]
        title = (
            f"NTK of {self.model}, {self.shape[0]} x {self.shape[1]} examples, "
            f"outputs {self.layout!r}: about {self.duration} and "
            f"{self.memory / 2**30:.2f} GiB\n"
            f"tiles of {self.tile[0]} x {self.tile[1]} examples, {self.passages} passages of an "
            "example through the network"
        )
        head = f"  {'parameter':<{width}}  {'path':<{paths}}  mult-add  per example   why"
        return "\n".join([title, head, *rows])


def plan(prepared: Prepared, order: Schedule) -> Plan:
    """The plan of a kernel in this order; runs a few of the examples to estimate the time."""
    engine, work = prepared.engine, prepared.work
    groups = {group.name: group for group in engine.groups}
    parameters = [
        _path(name, pieces, groups.get(name), engine, work, order)
        for name, pieces in _in_order(work.terms, engine)
    ]
    products = sum(p.multiply_adds for p in parameters)
    rate = matrix_rate(prepared.cotangents.device, prepared.cotangents.dtype)
    return Plan(
        model=type(user_module(engine.model)).__name__,
        shape=(order.n1, order.n2),
        layout=work.layout,
        parameters=tuple(parameters),
        tile=(order.rows, order.columns),
        passages=order.passages,
        memory=order.peak_bytes(work),
        seconds=order.passages * _passage_seconds(prepared) + products / rate,
    )


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds per second of a matrix product, the better one of two."""
    wide = torch.promote_types(dtype, torch.float32)
    a = torch.ones(_RATE_SIZE, _RATE_SIZE, device=device, dtype=wide)
    return _RATE_SIZE**3 / min(_seconds(lambda: a @ a, device) for _ in range(2))


def _passage_seconds(prepared: Prepared) -> float:
    few, cotangents = examples.take(prepared.x1, slice(0, _TRIED)), prepared.cotangents

    def once() -> object:
        return prepared.engine.features(few, cotangents)

    seconds = min(_seconds(once, cotangents.device) for _ in range(2))
    return seconds / examples.count(few)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _in_order(
    terms: Mapping[str, Sequence[Sequence[Term]]], engine: Engine
) -> list[tuple[str, Sequence[Sequence[Term]]]]:
    return [(name, terms[name]) for name in engine.parameters if name in terms]


def _path(
    name: str,
    pieces: Sequence[Sequence[Term]],
    group: Group | None,
    engine: Engine,
    work: Work,
    order: Schedule,
) -> ParameterPlan:
    found = [t for piece in pieces for t in piece]
    multiplied = sum(order.multiplying(t, work) for t in found)
    held = sum(order.bytes_of(t, work) for t in found)
    if group is None:
        how = "all examples at once" if engine.vmap else "one example at a time"
        return ParameterPlan(name, f"Jacobian, {how}", multiplied, held, engine.reasons[name])
    if not found:
        return ParameterPlan(name, "none", 0.0, 0, "it does not reach the outputs")
    words = dict.fromkeys(_words(t, work, order) for t in found)
    sites = ", ".join(dict.fromkeys(_operation(site.node) for site in group.sites))
    calls = f"{len(group.sites)} x " if len(group.sites) > 1 else ""
    path = " + ".join(words)
    reason = f"{calls}{sites}; {_comparison(found, work, order)}"
    if group.derivations is not None:
        reason += "; through the tensors computed from it"
    return ParameterPlan(name, path, multiplied, held, reason)


def _operation(node: fx.Node) -> str:
    """What is called; for one of several results, what gives them."""
    several = node.target is operator.getitem
    return str(cast(fx.Node, node.args[0]).target if several else node.target)


def _words(t: Term, work: Work, order: Schedule) -> str:
    if t in order.written_out or t.kind == "written out":
        return "gradients, kept"
    return _PATHS[cheapest(t, *_tile(order), work.out, work.layout, same=not order.met)]


_PATHS: dict[Path, str] = {
    "gram": "Gram matrices",
    "cotangents": "Gram matrices of inputs, applied",
    "gradients": "gradients, by tile",
}


def _tile(order: Schedule) -> tuple[int, int]:
    """The size of most tiles."""
    return order.rows, order.columns if order.met else order.rows


def _comparison(found: Sequence[Term], work: Work, order: Schedule) -> str:
    both: dict[str, float] = {}
    for t in found:
        found_costs = costs(t, *_tile(order), work.out, work.layout, same=not order.met)
        for path, cost in found_costs.items():
            both[path] = both.get(path, 0.0) + cost
    if len(both) < 2:
        return "no factors to multiply"
    return " against ".join(f"{path} {cost:.1e}" for path, cost in both.items()) + " for a tile"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
