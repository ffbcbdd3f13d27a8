"""A module prepared for data of one kind: which path serves each parameter, and the features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.empirical import jacobian, probe, sites
from tangency.empirical.features import Features
from tangency.empirical.probe import Probe
from tangency.empirical.recording import Recording
from tangency.empirical.sites import Factors, Passage, SiteGroup
from tangency.errors import InvalidInput
from tangency.examples import Examples
from tangency.program.trace import Trace

__all__ = ["Engine", "prepare"]


@dataclass(frozen=True)
class Engine:
    """Computes features of batches.

    Attributes:
        model: the module, which stays as it is.
        trace: its graph; None where it cannot be recorded or is not to be trusted.
        groups: parameters whose gradients come from linear sites of the graph.
        rest: parameters whose gradients come from per-example Jacobians.
        vmap: whether `torch.func.vmap` serves `rest` (else one example at a time).
        out: number of the module's outputs.
        dtype: of the outputs.
        value_bytes: bytes of the values in the graph for one example.
    """

    model: nn.Module
    trace: Trace | None
    groups: tuple[SiteGroup, ...]
    rest: Mapping[str, nn.Parameter]
    vmap: bool
    out: int
    dtype: torch.dtype
    value_bytes: int

    def features(self, x: Examples, cotangents: Tensor) -> Features:
        """Outputs and gradients of `x`, for the combinations `cotangents` (k, out) of outputs."""
        n = examples.count(x)
        outputs: Tensor | None = None
        factors: dict[str, Factors] = {}
        gradients: dict[str, Tensor] = {}
        if self.trace is not None:
            # The graph is run on at least two examples: what was added is cut off again.
            passage = self._run(x, cotangents)
            outputs = passage.outputs[:n]
            for group in self.groups:
                if group.role == "weight":
                    factors[group.name] = passage.factors(group).first(n)
                else:
                    gradients[group.name] = passage.bias_gradients(group)[:n]
        if outputs is None or self.rest:
            compute = jacobian.by_vmap if self.vmap else jacobian.by_autograd
            outputs, rows = compute(self.model, self.rest, x, cotangents)
            gradients.update(rows)
        return Features(outputs @ cotangents.mT, factors, gradients)

    def _run(self, x: Examples, cotangents: Tensor) -> Passage:
        assert self.trace is not None
        # `torch.export` takes the free batch size to be at least two.
        batch = examples.concatenate(x, x) if examples.count(x) == 1 else x
        nodes = {node: None for group in self.groups for node in group.nodes}
        parameters = dict(self.model.named_parameters())
        return sites.run(self.trace, parameters, batch, list(nodes), cotangents)

    def bytes_per_example(self, outputs: int) -> int:
        """Estimate of the memory that the features of one example take while they are made."""
        jacobians = sum(p.numel() * p.element_size() for p in self.rest.values())
        # Values are kept for the backward pass; cotangents at the sites are a part of them.
        return self.value_bytes * (2 + outputs) + 2 * outputs * jacobians


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
    )
    if tried.batch is not None:
        engine = _with_graph(engine, tried, recording)
    return replace(engine, vmap=_vmap_works(engine, tried))


def _with_graph(engine: Engine, tried: Probe, recording: Recording) -> Engine:
    for _ in range(2):  # a kept graph may be out of date: once more with a new one
        trace = recording.get(tried.x)
        if trace is None:
            return engine
        candidates = sites.groups(trace)
        chosen = (
            [] if tried.custom_backward else [candidates[n] for n in engine.rest if n in candidates]
        )
        trial = replace(engine, trace=trace, groups=tuple(chosen))
        passage = trial._run(tried.x, tried.cotangent)
        if tried.confirms_outputs(passage.outputs):
            groups = _confirmed(chosen, passage, tried)
            served = {group.name for group in groups}
            return replace(
                trial,
                groups=tuple(groups),
                rest={name: p for name, p in engine.rest.items() if name not in served},
                value_bytes=passage.value_bytes // examples.count(tried.x),
            )
        recording.forget()
    if tried.batch is not None and not tried.confirms_outputs(tried.batch):
        raise InvalidInput(
            f"{type(engine.model).__name__} couples the examples of a batch: an example alone has "
            "other outputs than in company, so it has no kernel of its own. Look for statistics "
            "over dimension 0 (hand-written batch norm, x.mean(0), softmax over the batch)."
        )
    return engine


def _confirmed(chosen: list[SiteGroup], passage: Passage, tried: Probe) -> list[SiteGroup]:
    """Those of `chosen` that reproduce the module's gradients, with the split of their batch.

    A gradient that is the same for all examples and positions fits either split: such a group
    (the bias before a mean over tokens) goes with the decided ones at the same sites.
    """
    fitting = [_fitting(group, passage, tried) for group in chosen]
    decided = {
        node: g.order for (g, *others) in filter(None, fitting) if not others for node in g.nodes
    }
    groups = []
    for orders in fitting:
        if len(orders) > 1:
            orders = [g for g in orders if {decided.get(node) for node in g.nodes} == {g.order}]
        groups += orders
    return groups


def _fitting(group: SiteGroup, passage: Passage, tried: Probe) -> list[SiteGroup]:
    """`group` with each order of its batch that reproduces the module's gradient."""
    n = len(passage.outputs)
    sizes = {passage.inputs[site.node].shape[site.axis] for site in group.sites}
    if any(size % n for size in sizes):
        return []
    orders = [group] if sizes == {n} else [group, replace(group, order="positions first")]
    return [g for g in orders if tried.confirms(g.name, _gradients(g, passage))]


def _gradients(group: SiteGroup, passage: Passage) -> Tensor:
    if group.role == "bias":
        return passage.bias_gradients(group)
    factors = passage.factors(group)
    return torch.einsum("iopw,ipd->iowd", factors.cotangents, factors.inputs).flatten(2)


def _vmap_works(engine: Engine, tried: Probe) -> bool:
    if not engine.rest:
        return False
    try:
        outputs, rows = jacobian.by_vmap(engine.model, engine.rest, tried.x, tried.cotangent)
    except Exception:
        # Whatever goes wrong is torch.func's: the module has been seen to run and differentiate.
        return False
    return tried.confirms_outputs(outputs) and all(
        tried.confirms(name, gradient) for name, gradient in rows.items()
    )
