"""Which path serves each parameter of a module: decided and confirmed on three examples."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.empirical import jacobian, passage, probe
from tangency.empirical.alignment import common
from tangency.empirical.costs import Term, term
from tangency.empirical.engine import Engine
from tangency.empirical.function import user_module
from tangency.empirical.gradients import Gradients
from tangency.empirical.groups import Group, groups
from tangency.empirical.passage import Order, Passage
from tangency.empirical.probe import Probe
from tangency.empirical.recording import Recording, versions
from tangency.errors import InvalidInput
from tangency.examples import Examples
from tangency.program.reach import ancestors, descendants
from tangency.program.trace import Trace, location

__all__ = ["Preparations", "prepare"]

_ORDERS: tuple[Order, ...] = ("batch first", "positions first")


class Preparations:
    """The engine of the last call, as long as module, parameters and kind of data are the same."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._key: object = None
        self._engine: Engine | None = None

    def get(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        x1: Examples,
        x2: Examples | None,
    ) -> Engine:
        """As `prepare`, which confirms every path anew after each change of the module.

        A change that nothing tells of (a list that `forward` reads) is seen by the outputs.
        """
        now = versions(model)
        key = None if now is None else (now, tuple(parameters), self.recording.key(x1))
        engine = self._engine
        if key is None or key != self._key or engine is None or not engine.is_up_to_date():
            self._key = None
            engine = self._engine = prepare(model, parameters, x1, x2, self.recording)
            self._key = key
        return engine


def prepare(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    x1: Examples,
    x2: Examples | None,
    recording: Recording,
) -> Engine:
    """Decide the path of each of `parameters` and confirm it on three examples of the data.

    Raises:
        InvalidInput: the module cannot be run on the data, couples the examples of a batch, or
            does not return one tensor of real numbers with one row per example.
    """
    tried = probe.make(model, parameters, x1, x2)
    engine = Engine(
        model,
        trace=None,
        groups=(),
        rest=parameters,
        vmap=False,
        out=tried.outputs.shape[1],
        dtype=tried.dtype,
        rounding=tried.dtype,
        value_bytes=tried.outputs.nbytes,
        reasons=dict.fromkeys(parameters, "the module takes one example at a time"),
    )
    if tried.batch is not None:
        engine = _with_graph(engine, tried, recording)
    return replace(engine, vmap=_vmap_works(engine, tried))


def _with_graph(engine: Engine, tried: Probe, recording: Recording) -> Engine:
    reason = "the recorded graph has other outputs"
    for _ in range(2):  # a kept graph may be out of date: once more with a new one
        trace = recording.get(tried.x)
        if trace is None:
            return replace(engine, reasons=dict.fromkeys(engine.rest, recording.reason))
        tried = replace(tried, dtype=_coarsest(trace, engine.dtype))
        engine = replace(engine, rounding=tried.dtype)
        shared = common(trace)
        if shared is not None:
            reason = f"{location(shared)} is of all examples of a batch"
            break
        chosen: dict[str, Group] = {}
        if not tried.custom_backward:
            chosen = groups(trace, engine.rest, engine.parameters)
        trial = replace(engine, trace=trace, groups=tuple(chosen.values()))
        seen = trial.run(tried.x, tried.cotangents)
        if tried.confirms_outputs(seen.outputs):
            return _with_sites(trial, seen, tried)
        recording.forget()
    engine = replace(engine, reasons=dict.fromkeys(engine.rest, reason))
    if tried.batch is not None and not tried.confirms_outputs(tried.batch):
        name = type(user_module(engine.model)).__name__
        raise InvalidInput(
            f"{name} couples the examples of a batch: an example alone has "
            "other outputs than in company, so it has no kernel of its own. Look for statistics "
            "over dimension 0 (hand-written batch norm, x.mean(0), softmax over the batch)."
        )
    return engine


def _coarsest(trace: Trace, dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or a coarser one that some value of the data has on the way to the output."""
    on_the_way = descendants(trace.graph, trace.inputs) & ancestors(trace.output)
    values = [node.meta.get("val") for node in on_the_way]
    kinds = {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}
    return max(kinds | {dtype}, key=lambda kind: torch.finfo(kind).eps)


def _with_sites(trial: Engine, seen: Passage, tried: Probe) -> Engine:
    """`trial` with those of its groups that are confirmed; all else is left to Jacobians.

    Where the backward passes of several outputs have been tried as one, and not all is confirmed,
    they are tried one by one: an operation may have a wrong batching rule (`torch.cdist` has).
    """
    trial = replace(trial, together=2 * seen.value_bytes <= passage.TOGETHER)
    confirmed = _confirmed(trial, seen, tried)
    if len(confirmed) < len(trial.groups) and trial.together and len(tried.cotangents) > 1:
        single = replace(trial, together=False)
        seen_single = single.run(tried.x, tried.cotangents)
        more = _confirmed(single, seen_single, tried)
        if len(more) > len(confirmed):
            trial, seen, confirmed = single, seen_single, more
    served, parameters = {group.name for group in confirmed}, trial.parameters
    known = {group.name for group in trial.groups}
    rest = {name: p for name, p in trial.rest.items() if name not in served}
    return replace(
        trial,
        groups=tuple(confirmed),
        terms={g.name: _terms(g.gradients(seen, parameters)) for g in confirmed},
        rest=rest,
        reasons={name: _reason(name, known, tried) for name in rest},
        value_bytes=seen.value_bytes // examples.count(tried.x),
        known=_two_known(tried),
    )


def _two_known(tried: Probe) -> tuple[Examples, Tensor] | None:
    """Two examples and their outputs together; they are copies."""
    if tried.batch is None:
        return None
    return examples.take(tried.x, slice(0, 2)), tried.batch[:2]


def _reason(name: str, known: Container[str], tried: Probe) -> str:
    """Why no site serves a parameter of a recorded module."""
    if tried.custom_backward:
        return "a custom autograd.Function, whose backward pass is not recorded, is in the module"
    if name not in known:
        return (
            "it is complex, or meets the data in an operation with several results, or where the "
            "data say in which order rows stand"
        )
    return (
        "the recorded graph has another gradient (no_grad, hooks, a scrambled batch, an operation "
        "with a wrong batching rule)"
    )


def _terms(gradients: list[list[Gradients]]) -> list[list[Term]]:
    return [[term(t.in_single()) for t in terms] for terms in gradients]


def _confirmed(engine: Engine, seen: Passage, tried: Probe) -> list[Group]:
    """Those groups that reproduce the module's gradients, with the split of their batch.

    A gradient that is the same for all examples and positions fits either split: such a group
    (the bias before a mean over tokens) goes with the decided ones at the same sites.
    """
    fitting = _settled([_fitting(group, engine, seen, tried) for group in engine.groups])
    if any(len(orders) > 1 for orders in fitting):
        fitting = _settled(_of_another_batch(fitting, engine, seen, tried))
    return [orders[0] for orders in fitting if len(orders) == 1]


def _settled(fitting: list[list[Group]]) -> list[list[Group]]:
    """The same with an order for those groups whose sites have one already."""
    decided = {
        site.node: g.order
        for (g, *others) in filter(None, fitting)
        if not others
        for site in g.sites
    }

    def settled(orders: list[Group]) -> list[Group]:
        fits = [g for g in orders if {decided.get(s.node) for s in g.sites} == {g.order}]
        return fits or orders

    return [settled(orders) if len(orders) > 1 else orders for orders in fitting]


def _of_another_batch(
    fitting: list[list[Group]], engine: Engine, seen: Passage, tried: Probe
) -> list[list[Group]]:
    """Those orders that give the three examples the same gradients in a larger batch.

    Where a single token counts, the last one of 16 say, rows 15, 31 and 47 of the merged dimension
    are those of the examples in turn by either split: 16 leaves the remainder one for three.
    """
    undecided = [g for orders in fitting if len(orders) > 1 for g in orders]
    positions = seen.positions(site.node for g in undecided for site in g.sites) - {1}
    size = next(n for n in itertools.count(4) if all(p % n != 1 for p in positions))
    more = examples.take(tried.x, torch.arange(size) % examples.count(tried.x))
    larger = engine.run(more, tried.cotangents)
    parameters = engine.parameters

    def same(group: Group) -> bool:
        gradients = group.explicit(larger, parameters)[: seen.n]
        expected = group.explicit(seen, parameters)
        return probe.agree(gradients, expected, floor=tried.size, dtype=tried.dtype)

    return [[g for g in orders if same(g)] if len(orders) > 1 else orders for orders in fitting]


def _fitting(group: Group, engine: Engine, seen: Passage, tried: Probe) -> list[Group]:
    """`group` with each order of its batch that reproduces the module's gradient."""
    orders = _ORDERS if seen.merged(site.node for site in group.sites) else _ORDERS[:1]
    candidates = [replace(group, order=order) for order in orders]
    return [g for g in candidates if _reproduces(g, engine, seen, tried)]


def _reproduces(group: Group, engine: Engine, seen: Passage, tried: Probe) -> bool:
    try:
        gradient = group.explicit(seen, engine.parameters)
    except Exception:
        # An operation that cannot be taken apart by example: another path serves the parameter.
        return False
    return tried.confirms(group.name, gradient)


def _vmap_works(engine: Engine, tried: Probe) -> bool:
    if not engine.rest:
        return False
    try:
        outputs, rows = jacobian.by_vmap(engine.model, engine.rest, tried.x, tried.cotangents)
    except Exception:
        # Whatever goes wrong is torch.func's: the module has been seen to run and differentiate.
        return False
    return tried.confirms_outputs(outputs) and all(
        tried.confirms(name, gradient) for name, gradient in rows.items()
    )
