"""One run of a recorded graph: what calls read, and the cotangents of their results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tangency import examples
from tangency.examples import Examples
from tangency.program.trace import Trace

__all__ = ["Order", "Passage", "batch_axis", "run"]

Order = Literal["batch first", "positions first"]
"""How a dimension into which examples and positions were merged is to be split."""


@dataclass(frozen=True)
class Passage:
    """One run of the graph on n examples.

    Attributes:
        outputs: (n, out).
        k: number of cotangents that were pulled back.
        values: what the calls read, and the derived tensors of parameters.
        cotangents: of the calls' results, one for each that was pulled back.
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
        return self._split(self.values[node], node, order)

    def cotangents_of(self, node: fx.Node, order: Order) -> Tensor:
        """The cotangents by example, (n, k, *shape)."""
        return torch.stack([self._split(g, node, order) for g in self.cotangents[node]], dim=1)

    def _positions(self, node: fx.Node) -> int:
        axis = batch_axis(node)
        assert axis is not None
        return self.cotangents[node][0].shape[axis] // self.n

    def _split(self, value: Tensor, node: fx.Node, order: Order) -> Tensor:
        axis = batch_axis(node)
        assert axis is not None
        sizes, at = ((self.n, -1), axis) if order == "batch first" else ((-1, self.n), axis + 1)
        by_example: Tensor = value.unflatten(axis, sizes).movedim(at, 0)
        return by_example


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


def run(
    trace: Trace,
    parameters: Mapping[str, Tensor],
    x: Examples,
    read: Iterable[fx.Node],
    calls: Iterable[fx.Node],
    cotangents: Tensor,
) -> Passage:
    """Run the graph once on `x` and pull `cotangents` (k, out) back to the results of `calls`.

    One backward pass for each cotangent, for all examples together: they must be independent.
    """
    given = dict(zip(trace.inputs, pytree.tree_leaves(x), strict=True))
    given.update({node: parameters[name].detach() for node, name in trace.parameters.items()})
    given.update(trace.constants)
    arguments = [given[node] for node in trace.graph.nodes if node.op == "placeholder"]
    recorder = _Recorder(trace.graph, read, calls)
    with torch.set_grad_enabled(bool(recorder.calls)):
        (output,) = pytree.tree_leaves(recorder.run(*arguments))
    outputs = output.reshape(examples.count(x), -1)
    pulled: dict[fx.Node, list[Tensor]] = {node: [] for node in recorder.results}
    for i, cotangent in enumerate(cotangents if pulled else ()):
        gradients = _pull(
            outputs, list(recorder.results.values()), cotangent, i + 1 < len(cotangents)
        )
        for node, gradient in zip(pulled, gradients, strict=True):
            pulled[node].append(gradient)
    return Passage(outputs.detach(), len(cotangents), recorder.values, pulled, recorder.value_bytes)


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
