"""A module made ready for data of one kind: the features of a batch, by sites and by Jacobians."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.empirical import jacobian, passage, probe
from tangency.empirical.costs import Layout, Term, term
from tangency.empirical.entries import real_shape
from tangency.empirical.features import Features
from tangency.empirical.function import evaluate
from tangency.empirical.gradients import Explicit, Gradients
from tangency.empirical.groups import Group
from tangency.empirical.passage import Passage
from tangency.empirical.schedule import Work
from tangency.examples import Examples
from tangency.program.trace import Trace

__all__ = ["Engine"]


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
        rounding: the coarsest dtype that values pass through.
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
    rounding: torch.dtype
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


def _two(x: Examples) -> Examples:
    """At least two examples: `torch.export` takes the free batch size to be no less."""
    return examples.concatenate(x, x) if examples.count(x) == 1 else x


def _at_rest(gradients: Gradients, written_out: Container[Term]) -> Gradients:
    return Explicit(gradients.explicit()) if term(gradients) in written_out else gradients
