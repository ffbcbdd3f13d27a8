"""Parameter sites: where a weight meets data in the traced graph, and what passes there.

At `y = a W^T + b` the gradient with respect to W is the sum over positions of g_p a_p^T, with `a`
the site's input and `g` the cotangent of its output: both are small where the gradient is large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tangency import examples
from tangency.examples import Examples
from tangency.program.trace import Trace

__all__ = ["Factors", "Passage", "Site", "SiteGroup", "groups", "run"]

Order = Literal["batch first", "positions first"]
Role = Literal["weight", "bias"]


@dataclass(frozen=True)
class Site:
    """One `aten.linear` call.

    Attributes:
        node: the call in the graph.
        axis: dimension of its input that holds the batch (perhaps merged with positions, as where
            attention flattens tokens and examples into one).
    """

    node: fx.Node
    axis: int


@dataclass(frozen=True)
class SiteGroup:
    """All calls in which one parameter takes part, always in the same role.

    Attributes:
        name: the parameter.
        role: weight or bias.
        sites: its calls; those of a shared parameter add up.
        order: how a merged batch dimension is to be split.
    """

    name: str
    role: Role
    sites: tuple[Site, ...]
    order: Order = "batch first"

    @property
    def nodes(self) -> list[fx.Node]:
        """The calls in the graph."""
        return [site.node for site in self.sites]


@dataclass(frozen=True)
class Factors:
    """Per-example gradients of a weight: J[i, o] = sum_p cotangents[i, o, p] inputs[i, p]^T.

    Attributes:
        inputs: (n, positions, in), the positions of all calls of the weight one after the other.
        cotangents: (n, out, positions, width).
    """

    inputs: Tensor
    cotangents: Tensor

    def first(self, n: int) -> Factors:
        """The factors of the first n examples."""
        return Factors(self.inputs[:n], self.cotangents[:n])


@dataclass(frozen=True)
class Passage:
    """One run of the graph.

    Attributes:
        outputs: (n, out).
        inputs: input of every site, as the graph lays it out.
        cotangents: cotangents of every site's output, one for each that was pulled back.
        value_bytes: bytes of all values in the graph.
    """

    outputs: Tensor
    inputs: dict[fx.Node, Tensor]
    cotangents: dict[fx.Node, list[Tensor]]
    value_bytes: int

    def factors(self, group: SiteGroup) -> Factors:
        """The factors of a weight."""
        n = len(self.outputs)
        inputs = [_rows(self.inputs[site.node], site.axis, n, group.order) for site in group.sites]
        return Factors(_joined(inputs, dim=1), self._cotangents(group))

    def bias_gradients(self, group: SiteGroup) -> Tensor:
        """The per-example gradients of a bias, shape (n, out, width)."""
        return self._cotangents(group).sum(dim=2)

    def _cotangents(self, group: SiteGroup) -> Tensor:
        n = len(self.outputs)
        calls = [
            torch.stack(
                [_rows(g, site.axis, n, group.order) for g in self.cotangents[site.node]], dim=1
            )
            for site in group.sites
        ]
        return _joined(calls, dim=2)


def _rows(value: Tensor, axis: int, n: int, order: Order) -> Tensor:
    """`value` as (n, positions, features), its batch standing (perhaps merged) at `axis`."""
    if order == "batch first":
        split, batch = value.unflatten(axis, (n, -1)), axis
    else:
        split, batch = value.unflatten(axis, (-1, n)), axis + 1
    rows: Tensor = split.movedim(batch, 0).flatten(1, -2)
    return rows


def _joined(calls: list[Tensor], dim: int) -> Tensor:
    """The positions of all calls one after the other (no copy for a single call)."""
    return calls[0] if len(calls) == 1 else torch.cat(calls, dim=dim)


def groups(trace: Trace) -> dict[str, SiteGroup]:
    """The parameters of `trace` that enter at linear sites only, always in one role, by name.

    Any other use of the tensor (a tied embedding, a penalty on it, its transpose) leaves it out:
    the cross terms between its uses must not be lost.
    """
    placeholders: dict[str, list[fx.Node]] = {}
    for node, name in trace.parameters.items():
        placeholders.setdefault(name, []).append(node)
    found: dict[str, SiteGroup] = {}
    for name, nodes in placeholders.items():
        calls = [(user, node) for node in nodes for user in node.users]
        for role in ("weight", "bias"):
            sites = [_site(user, node, role) for user, node in calls]
            if sites and all(sites):
                found[name] = SiteGroup(name, role, tuple(site for site in sites if site))
    return found


def _site(user: fx.Node, parameter: fx.Node, role: Role) -> Site | None:
    """`user` as a linear call with `parameter` in `role` and in no other; None if it is not one."""
    if user.op != "call_function" or user.target is not torch.ops.aten.linear.default:
        return None
    value, weight, bias = _linear_arguments(user)
    held = {"input": value, "weight": weight, "bias": bias}
    if [key for key, node in held.items() if node is parameter] != [role]:
        return None
    if not isinstance(value, fx.Node) or weight.meta["val"].dim() != 2:
        return None
    shape = value.meta["val"].shape
    batch = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
    if len(batch) != 1 or batch[0] == len(shape) - 1:
        return None
    return Site(user, batch[0])


def _linear_arguments(node: fx.Node) -> tuple[Any, Any, Any]:
    given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
    return given.get("input"), given.get("weight"), given.get("bias")


class _Recorder(fx.Interpreter):
    """Runs the graph, keeping the inputs and the outputs of some of its linear calls."""

    def __init__(self, graph: fx.Graph, sites: Sequence[fx.Node]) -> None:
        super().__init__(graph.owning_module or nn.Module(), graph=graph)
        self.sites = set(sites)
        self.inputs: dict[fx.Node, Tensor] = {}
        self.outputs: dict[fx.Node, Tensor] = {}
        self.value_bytes = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "placeholder":
            self.value_bytes += result.nbytes
        if n in self.sites:
            value, _, _ = _linear_arguments(n)
            self.inputs[n] = self.env[value].detach()
            self.outputs[n] = result if result.requires_grad else result.requires_grad_()
        return result


def run(
    trace: Trace,
    parameters: Mapping[str, Tensor],
    x: Examples,
    sites: Sequence[fx.Node],
    cotangents: Tensor,
) -> Passage:
    """Run the graph once on `x` and pull `cotangents` (k, out) back to the outputs of `sites`.

    One backward pass for each cotangent, for all examples together: they must be independent.
    """
    given = dict(zip(trace.inputs, pytree.tree_leaves(x), strict=True))
    given.update({node: parameters[name].detach() for node, name in trace.parameters.items()})
    given.update(trace.constants)
    arguments = [given[node] for node in trace.graph.nodes if node.op == "placeholder"]
    recorder = _Recorder(trace.graph, sites)
    with torch.set_grad_enabled(bool(sites)):
        (output,) = pytree.tree_leaves(recorder.run(*arguments))
    outputs = output.reshape(examples.count(x), -1)
    pulled: dict[fx.Node, list[Tensor]] = {node: [] for node in recorder.outputs}
    for i, cotangent in enumerate(cotangents if pulled else ()):
        gradients = _pull(
            outputs, list(recorder.outputs.values()), cotangent, i + 1 < len(cotangents)
        )
        for node, gradient in zip(pulled, gradients, strict=True):
            pulled[node].append(gradient)
    return Passage(outputs.detach(), recorder.inputs, pulled, recorder.value_bytes)


def _pull(
    outputs: Tensor, values: list[Tensor], cotangent: Tensor, retain: bool
) -> tuple[Tensor, ...]:
    if not outputs.requires_grad:
        return tuple(torch.zeros_like(value) for value in values)
    return torch.autograd.grad(
        outputs,
        values,
        cotangent.expand_as(outputs),
        retain_graph=retain,
        allow_unused=True,
        materialize_grads=True,
    )
