"""One run of a recorded graph: what calls read, and the cotangents of their results."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tangency import examples
from tangency.examples import Examples
from tangency.matrices import linear
from tangency.program.trace import Trace

__all__ = ["Order", "Passage", "batch_axis", "run"]

Order = Literal["batch first", "positions first"]
"""How a dimension into which examples and positions were merged is to be split."""

TOGETHER = 2**25
"""Bytes of a graph's values, for as many cotangents as are pulled back in one pass: small networks
wait for their weights and for calls, large ones for values that do not fit the cache."""


@dataclass(frozen=True)
class Passage:
    """One run of the graph on n examples.

    Attributes:
        outputs: (n, out).
        k: number of cotangents that were pulled back.
        values: what the calls read, and the derived tensors of parameters.
        cotangents: of the calls' results, in pieces (some of the k, *shape of the result).
        value_bytes: bytes of all values in the graph.
    """

    outputs: Tensor
    k: int
    values: dict[fx.Node, Tensor]
    cotangents: dict[fx.Node, list[Tensor]]
    value_bytes: int

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.outputs)

    def merged(self, nodes: Iterable[fx.Node]) -> bool:
        """Whether some of the calls' results have positions merged with the batch."""
        return max(self.positions(nodes), default=1) > 1

    def positions(self, nodes: Iterable[fx.Node]) -> set[int]:
        """Numbers of positions that are merged with the batch in the calls' results."""
        return {self._positions(node) for node in nodes}

    def of(self, node: fx.Node, order: Order) -> Tensor:
        """A value by example, (n, *shape), its batch dimension left with the positions that were
        merged with it (size one without any).
        """
        return self.split(self.values[node], node, order)

    def cotangents_of(self, node: fx.Node, order: Order) -> Tensor:
        """The cotangents by example, (n, k, *shape)."""
        pieces = [self.split(g, node, order, lead=1) for g in self.cotangents[node]]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def split(self, value: Tensor, node: fx.Node, order: Order, lead: int = 0) -> Tensor:
        """A tensor like the value of `node`, with `lead` dimensions before, by example."""
        axis = batch_axis(node)
        assert axis is not None
        axis += lead
        sizes, at = ((self.n, -1), axis) if order == "batch first" else ((-1, self.n), axis + 1)
        by_example: Tensor = value.unflatten(axis, sizes).movedim(at, 0)
        return by_example

    def _positions(self, node: fx.Node) -> int:
        axis = batch_axis(node)
        assert axis is not None
        return self.cotangents[node][0].shape[1 + axis] // self.n


def batch_axis(node: fx.Node) -> int | None:
    """The dimension of a value that holds the batch, perhaps merged with positions.

    None where no dimension does, or several do.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    free = [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]
    return free[0] if len(free) == 1 else None


class _Recorder(fx.Interpreter):
    """Runs the graph, keeping some values and the results of some calls."""

    def __init__(self, graph: fx.Graph, read: Iterable[fx.Node], calls: Iterable[fx.Node]) -> None:
        super().__init__(graph.owning_module or nn.Module(), graph=graph)
        self.read, self.calls = set(read), set(calls)
        self.values: dict[fx.Node, Tensor] = {}
        self.results: dict[fx.Node, Tensor] = {}
        self.value_bytes = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "placeholder":
            self.value_bytes += result.nbytes
        if n in self.read:
            self.values[n] = result.detach()
        if n in self.calls:
            self.results[n] = result if result.requires_grad else result.requires_grad_()
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.aten.linear.default:
            return linear(*args, **kwargs)
        return super().call_function(target, args, kwargs)


def run(
    trace: Trace,
    parameters: Mapping[str, Tensor],
    x: Examples,
    read: Iterable[fx.Node],
    calls: Iterable[fx.Node],
    cotangents: Tensor,
    kept: Collection[fx.Node] | None = None,
    each: Callable[[Passage], None] | None = None,
    *,
    together: bool = True,
) -> Passage:
    """Run the graph once on `x` and pull `cotangents` (k, out) back to the results of `calls`.

    The backward passes are of all examples together, which must be independent, and, if `together`
    and the network is small, of several cotangents. `each` is given what every pass brings; of all,
    only what came to the calls in `kept` is returned.
    """
    given = dict(zip(trace.inputs, pytree.tree_leaves(x), strict=True))
    given.update({node: parameters[name].detach() for node, name in trace.parameters.items()})
    given.update(trace.constants)
    arguments = [given[node] for node in trace.graph.nodes if node.op == "placeholder"]
    recorder = _Recorder(trace.graph, read, calls)
    with torch.set_grad_enabled(bool(recorder.calls)):
        (output,) = pytree.tree_leaves(recorder.run(*arguments))
    outputs = output.reshape(examples.count(x), -1)
    recorded = recorder.results
    seen = Passage(outputs.detach(), 0, recorder.values, {}, recorder.value_bytes)
    wanted = recorded if kept is None else [node for node in recorded if node in kept]
    pulled: dict[fx.Node, list[Tensor]] = {node: [] for node in wanted}
    at_once = max(1, TOGETHER // max(1, recorder.value_bytes)) if together else 1
    for found in _pulls(outputs, list(recorded.values()), cotangents, at_once) if recorded else ():
        brought = dict(zip(recorded, found, strict=True))
        if each is not None:
            one = {node: [gradient] for node, gradient in brought.items()}
            each(replace(seen, k=len(found[0]), cotangents=one))
        for node, gradients in pulled.items():
            gradients.append(brought[node])
    return replace(seen, k=len(cotangents), cotangents=pulled)


def _pulls(
    outputs: Tensor, values: list[Tensor], cotangents: Tensor, at_once: int
) -> Iterator[tuple[Tensor, ...]]:
    """Cotangents of the values, (some of k, *shape), for some of the cotangents at a time."""
    parts = cotangents.split(at_once)
    for i, part in enumerate(parts):
        last = i + 1 == len(parts)
        together = _pull_together(outputs, values, part) if len(part) > 1 else None
        if together is not None:
            yield together
            continue
        for j, cotangent in enumerate(part):
            retain = not (last and j + 1 == len(part))
            yield tuple(g[None] for g in _pull(outputs, values, cotangent, retain))


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


def _pull_together(
    outputs: Tensor, values: list[Tensor], cotangents: Tensor
) -> tuple[Tensor, ...] | None:
    """All cotangents in one pass; None where an operation has no rule for that."""
    if not outputs.requires_grad:
        return None

    def back(cotangent: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            outputs,
            values,
            cotangent.expand_as(outputs),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    with warnings.catch_warnings():
        # Slow rules give exact results, and the user can do nothing about them.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        try:
            found: tuple[Tensor, ...] = torch.func.vmap(back)(cotangents)
        except RuntimeError:
            return None
    return found
