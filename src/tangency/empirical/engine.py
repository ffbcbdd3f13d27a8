"""A module prepared for data of one kind: which path serves each parameter, and the features."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.empirical import jacobian, passage, probe
from tangency.empirical.alignment import common
from tangency.empirical.costs import Layout, Term, term
from tangency.empirical.entries import real_shape
from tangency.empirical.features import Features
from tangency.empirical.function import evaluate, user_module
from tangency.empirical.gradients import Explicit, Gradients
from tangency.empirical.groups import Group, groups
from tangency.empirical.passage import Order, Passage
from tangency.empirical.probe import Probe
from tangency.empirical.recording import Recording, versions
from tangency.empirical.schedule import Work
from tangency.errors import InvalidInput
from tangency.examples import Examples
from tangency.program.trace import Trace, location

__all__ = ["Engine", "Preparations", "prepare"]

_ORDERS: tuple[Order, ...] = ("batch first", "positions first")


@dataclass(frozen=True)
class Engine:
    """Computes features of batches.

    Attributes:
        model: the module, which stays as it is.
        trace: its graph; None where it cannot be recorded or is not to be trusted.
        groups: parameters whose gradients come from sites of the graph.
        rest: parameters whose gradients come from per-example Jacobians.
        vmap: whether `torch.func.vmap` serves `rest` (else one example at a time).
        out: number of the module's outputs.
        dtype: of the outputs.
        value_bytes: bytes of the values in the graph for one example.
        terms: sizes of the gradients of the parameters in `groups`.
        reasons: why the sites of the parameters in `rest` do not serve.
        known: examples and the outputs that the module had for them together; None without a graph.
        together: whether several cotangents are pulled back in one pass.
    """

    model: nn.Module
    trace: Trace | None
    groups: tuple[Group, ...]
    rest: Mapping[str, nn.Parameter]
    vmap: bool
    out: int
    dtype: torch.dtype
    value_bytes: int
    terms: Mapping[str, list[list[Term]]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    known: tuple[Examples, Tensor] | None = None
    together: bool = True

    def features(
        self, x: Examples, cotangents: Tensor, written_out: Container[Term] = ()
    ) -> Features:
        """Outputs and gradients of `x`, for the combinations `cotangents` (k, out) of outputs.

        Terms of these sizes are written out.
        """
        outputs: Tensor | None = None
        gradients: dict[str, list[list[Gradients]]] = {}
        if self.trace is not None:
            outputs, gradients = self._from_sites(x, cotangents, written_out)
        if outputs is None or self.rest:
            compute = jacobian.by_vmap if self.vmap else jacobian.by_autograd
            outputs, rows = compute(self.model, self.rest, x, cotangents)
            for name, row in rows.items():
                gradients[name] = [[Explicit(row[None]).in_single()]]
        combined = (outputs @ cotangents.mT)[None]
        return Features(Explicit(combined[..., None]).in_single().values[..., 0], gradients)

    def _from_sites(
        self, x: Examples, cotangents: Tensor, written_out: Container[Term]
    ) -> tuple[Tensor, dict[str, list[list[Gradients]]]]:
        """Outputs, and gradients by sites."""
        # The graph is run on at least two examples: what was added is cut off again.
        n, parameters = examples.count(x), self.parameters
        parts: dict[str, list[list[list[Gradients]]]] = {group.name: [] for group in self.groups}
        small = [group for group in self.groups if self._is_small(group)]
        large = [group for group in self.groups if not self._is_small(group)]

        def take(seen: Passage, groups: Sequence[Group] = small) -> None:
            for group in groups:
                found = group.gradients(seen, parameters)
                kept = [[t.part(slice(0, n)).in_single() for t in terms] for terms in found]
                parts[group.name].append([[_at_rest(t, written_out) for t in ts] for ts in kept])

        seen = self.run(x, cotangents, kept=large, each=take if small else None)
        last = {site.node: group.name for group in large for site in group.sites}
        for group in large:
            take(seen, [group])
            # What was gathered is freed, so that cotangents never exist twice.
            for node in {site.node for site in group.sites}:
                if last[node] == group.name:
                    seen.cotangents.pop(node)
        return seen.outputs[:n], {name: _of_all_outputs(found) for name, found in parts.items()}

    def _is_small(self, group: Group) -> bool:
        """Whether a group's gradients come written out: then they are made, output by output, as
        soon as the cotangents are there, which are larger.
        """
        terms = [t for piece in self.terms.get(group.name, ()) for t in piece]
        return group.derivations is None and all(t.kind == "written out" for t in terms)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Present values of all parameters."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def run(
        self,
        x: Examples,
        cotangents: Tensor,
        kept: Sequence[Group] | None = None,
        each: Callable[[Passage], None] | None = None,
    ) -> Passage:
        """Run the graph once, at least on two examples; see `passage.run`."""
        assert self.trace is not None
        sites = [site for group in self.groups for site in group.sites]
        read = {node for site in sites for node in site.reads}
        calls = {site.node: None for site in sites}
        nodes = None if kept is None else {site.node for group in kept for site in group.sites}
        return passage.run(
            self.trace,
            self.parameters,
            _two(x),
            read,
            calls,
            cotangents,
            nodes,
            each,
            together=self.together,
        )

    def is_up_to_date(self) -> bool:
        """Whether the module has the outputs that it had when its graph was confirmed."""
        if self.known is None:
            return True
        x, outputs = self.known
        return probe.agree(evaluate(self.model, x).detach(), outputs)

    def work(self, out: int, layout: Layout) -> Work:
        """What a kernel of `out` outputs needs of every example."""
        terms = dict(self.terms) | {
            name: [[Term("written out", 0, 0, 0, 1, real_shape(p).numel(), 0, p.nbytes)]]
            for name, p in self.rest.items()
        }
        # The values, and while cotangents go backward, those of one output.
        held = [t for pieces in terms.values() for piece in pieces for t in piece]
        backward = sum(t.held_bytes(1) for t in held)
        return Work(terms, 2 * self.value_bytes + backward, out, layout)


def _of_all_outputs(parts: list[list[list[Gradients]]]) -> list[list[Gradients]]:
    """Gradients (sets of entries, terms) of all outputs, of those of some of them."""
    if len(parts) == 1:
        return parts[0]
    return [
        [
            Explicit(torch.cat([t.explicit() for t in terms], dim=2))
            for terms in zip(*ts, strict=True)
        ]
        for ts in zip(*parts, strict=True)
    ]


def _two_known(tried: Probe) -> tuple[Examples, Tensor] | None:
    """Two examples and their outputs together; they are copies."""
    if tried.batch is None:
        return None
    return examples.take(tried.x, slice(0, 2)), tried.batch[:2]


def _two(x: Examples) -> Examples:
    """At least two examples: `torch.export` takes the free batch size to be no less."""
    return examples.concatenate(x, x) if examples.count(x) == 1 else x


def _at_rest(gradients: Gradients, written_out: Container[Term]) -> Gradients:
    return Explicit(gradients.explicit()) if term(gradients) in written_out else gradients


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
        dtype=tried.outputs.dtype,
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
        return probe.agree(gradients, group.explicit(seen, parameters), floor=tried.size)

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
