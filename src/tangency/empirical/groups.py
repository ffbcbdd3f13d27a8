"""The gradients of one parameter, gathered from all places where it meets data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from tangency.empirical.alignment import misaligned
from tangency.empirical.derivation import Derivations
from tangency.empirical.gradients import Explicit, Gradients, add
from tangency.empirical.passage import Order, Passage
from tangency.empirical.sites import Site, local_site, ruled_site
from tangency.program.trace import Trace

__all__ = ["Group", "Piece", "groups"]


@dataclass(frozen=True)
class Piece:
    """Entries of one parameter that meet data in the form of one tensor.

    Attributes:
        node: the tensor in the graph.
        entries: which entries of the parameter it holds, in order; None for all as they are.
        sites: its uses.
    """

    node: fx.Node
    entries: Tensor | None
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Group:
    """One parameter.

    Attributes:
        name: its name.
        size: number of its entries.
        pieces: tensors made of it. Without `derivations` they hold different entries, or one holds
            all of them.
        order: how a merged batch dimension is to be split.
        derivations: how the tensors are computed, where that is more than a choice of entries.
    """

    name: str
    size: int
    pieces: tuple[Piece, ...]
    order: Order = "batch first"
    derivations: Derivations | None = None

    @property
    def sites(self) -> list[Site]:
        """All uses."""
        return [site for piece in self.pieces for site in piece.sites]

    def gradients(
        self, passage: Passage, parameters: Mapping[str, Tensor]
    ) -> list[list[Gradients]]:
        """Per-example gradients: for each set of entries, the terms that they are the sum of."""
        found = [self._of(piece, passage) for piece in self.pieces]
        if self.derivations is None:
            return found
        pulled = [
            self._pulled(piece, terms, parameters)
            for piece, terms in zip(self.pieces, found, strict=True)
        ]
        return [add(pulled)]

    def explicit(self, passage: Passage, parameters: Mapping[str, Tensor]) -> Tensor:
        """Per-example gradients of the whole parameter, (n, k, size)."""
        total = passage.outputs.new_zeros(passage.n, passage.k, self.size)
        found = self.gradients(passage, parameters)
        entries = [p.entries for p in self.pieces] if self.derivations is None else [None]
        for terms, index in zip(found, entries, strict=True):
            value = _sum(terms)[0]
            if index is None:
                total = total + value
            else:
                total[..., index] += value
        return total

    def _of(self, piece: Piece, passage: Passage) -> list[Gradients]:
        return add([site.gradient(passage, self.order) for site in piece.sites])

    def _pulled(
        self, piece: Piece, terms: list[Gradients], parameters: Mapping[str, Tensor]
    ) -> Gradients:
        assert self.derivations is not None
        values = _sum(terms)
        rows = values.flatten(0, 2)
        pulled = self.derivations.pull(piece.node, self.name, parameters, rows)
        return Explicit(pulled.view(*values.shape[:3], -1))


def groups(
    trace: Trace, names: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Group]:
    """Those of `names`, complex ones apart, whose every use has a site. `parameters` are all of the
    module's.
    """
    derivations, lost = Derivations(trace), misaligned(trace)
    found = {}
    for name in names:
        if parameters[name].is_complex():
            continue
        group = _group(name, derivations, parameters, lost)
        if group is not None:
            found[name] = group
    return found


def _group(
    name: str,
    derivations: Derivations,
    parameters: Mapping[str, Tensor],
    lost: frozenset[fx.Node],
) -> Group | None:
    size = parameters[name].numel()
    nodes = derivations.of(name)
    sites = {node: [_site(u, node, lost) for u in derivations.uses(node)] for node in nodes}
    if any(None in found for found in sites.values()):
        return None
    if not nodes:  # it does not reach the outputs
        return Group(name, size, ())
    uses = {node: tuple(site for site in found if site) for node, found in sites.items()}
    if all(node.op == "placeholder" for node in nodes):  # perhaps one tensor under several names
        together = tuple(site for found in uses.values() for site in found)
        return Group(name, size, (Piece(nodes[0], None, together),))
    pieces = [Piece(node, derivations.entries(node, parameters), uses[node]) for node in nodes]
    separate = _separate(pieces)
    if separate is None:
        return Group(name, size, tuple(pieces), derivations=derivations)
    return Group(name, size, separate)


def _site(use: fx.Node, node: fx.Node, lost: frozenset[fx.Node]) -> Site | None:
    if not lost.isdisjoint((use, *use.all_input_nodes)):
        return None
    return ruled_site(use, node) or local_site(use, node)


def _separate(pieces: list[Piece]) -> tuple[Piece, ...] | None:
    """Pieces without common entries; None where two share some but not all of them, in order."""
    found: list[Piece] = []
    for piece in pieces:
        if piece.entries is None:
            return None
        known = [p for p in found if _same(p, piece)]
        if known:
            found.remove(known[0])
            piece = replace(piece, sites=(*known[0].sites, *piece.sites))
        found.append(piece)
    held = torch.cat([p.entries for p in found if p.entries is not None])
    return tuple(found) if len(held.unique()) == len(held) else None


def _same(a: Piece, b: Piece) -> bool:
    """Whether two pieces hold the same entries in the same order."""
    return a.entries is not None and b.entries is not None and torch.equal(a.entries, b.entries)


def _sum(terms: list[Gradients]) -> Tensor:
    total = terms[0].explicit()
    for term in terms[1:]:
        total = total + term.explicit()
    return total
