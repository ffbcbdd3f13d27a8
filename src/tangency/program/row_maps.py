"""Weights that are computed from a parameter by scaling its rows, before they meet the data.

Weight standardisation (Qiao et al. 2019, "Micro-batch training with batch-channel normalization and
weight standardization") and weight normalisation (Salimans and Kingma 2016) are spelled in many
ways. They are known by what they do: their operations are executed on chosen values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from tangency.errors import UnsupportedOperation
from tangency.program.operations import base_name
from tangency.program.parameters import ParameterUse, is_view, parameter_use
from tangency.program.reach import ancestors, descendants
from tangency.program.trace import Trace, location

__all__ = ["RowMap", "computations", "weight_use"]

_TOLERANCE = 1e-5
"""Relative; a weight may be computed in float32."""


@dataclass(frozen=True, eq=False)
class RowMap:
    """What a module makes of a weight W: strength * gain_i * (W_i - its mean) in row i.

    The strength depends on the variance of the entries alone.

    Attributes:
        trace: the graph.
        node: what is used as the weight.
        flip: whether it is used as (in, out): its columns are the rows.
        source: the placeholder of W.
        transposed: whether W is (in, out).
        gain: the placeholder of the gains, one for each row; None where there are none.
        centred: whether the mean of every row is subtracted.
    """

    trace: Trace
    node: fx.Node
    flip: bool
    source: fx.Node
    transposed: bool
    gain: fx.Node | None
    centred: bool

    @property
    def gain_name(self) -> str | None:
        """Qualified name of the gains."""
        return None if self.gain is None else self.trace.parameters[self.gain]

    def strength(self, variance: float | Tensor, of_row: float | Tensor) -> Tensor:
        """The strength, at gain one, in a row of mean square `of_row`; in all others it is
        `variance`. Differentiable in both; float64.
        """
        unit = _balanced(_rows(self.trace.values[self.source], self.transposed), seed=0)
        first, others = (
            torch.as_tensor(number, dtype=torch.float64, device=unit.device).reshape(1, 1)
            for number in (of_row, variance)
        )
        sd = torch.cat([first, others.expand(len(unit) - 1, 1)]).sqrt()
        made = self.execute(unit * sd)
        return (made[0] * unit[0]).mean() / sd[0, 0]

    def execute(self, weight: Tensor, gain: Tensor | None = None) -> Tensor:
        """The computed weight, `(rows, fan_in)`, of a parameter `weight` laid out alike; the gains
        are one if not given.
        """
        source = self.trace.values[self.source]
        given = {self.source: (weight.T if self.transposed else weight).reshape(source.shape)}
        if self.gain is not None:
            like = self.trace.values[self.gain].double()
            given[self.gain] = torch.ones_like(like) if gain is None else gain.reshape(like.shape)
        return _rows(_execute(self.trace, self.node, given), self.flip)

    def alike(self, other: RowMap) -> bool:
        """Whether another map of the same parameter computes the same."""
        own = self.centred, self.transposed, self.gain_name
        if own != (other.centred, other.transposed, other.gain_name):
            return False
        return all(
            _close(self.strength(1.0, variance), other.strength(1.0, variance))
            for variance in (1.0, 1e-4)
        )


def computations(trace: Trace, weights: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that compute some of the `weights` from parameters and constants alone."""
    of_data, of_parameters = (
        descendants(trace.graph, trace.inputs),
        descendants(trace.graph, trace.parameters),
    )
    found: set[fx.Node] = set()
    for weight in weights:
        if weight not in of_data:
            found |= of_parameters.intersection(ancestors(weight))
    return found.difference(trace.parameters)


def weight_use(trace: Trace, node: fx.Node, flip: bool = False) -> ParameterUse:
    """The parameter behind a weight, used as it is or with its rows scaled.

    Args:
        trace: the graph.
        node: the weight.
        flip: whether it is used as (in, out).

    Raises:
        UnsupportedOperation: something else is computed with a parameter.
    """
    root = node
    while root not in trace.parameters and is_view(root):
        root = cast(fx.Node, root.args[0])
    if root in trace.parameters:
        return parameter_use(trace, node, flip)
    rows = _row_map(trace, node, flip)
    if rows is None:
        raise UnsupportedOperation(
            f"{location(root)} computes with a parameter before it meets the data; known are "
            "views, slices, transposes, scalar factors, and standardising or normalising the rows "
            "of a weight, with a gain for each. EmpiricalKernel needs no rules."
        )
    return ParameterUse(trace.parameters[rows.source], transposed=rows.transposed, rows=rows)


def _row_map(trace: Trace, node: fx.Node, flip: bool) -> RowMap | None:
    """What the operations behind `node` do to the rows of a weight; None if it is nothing known."""
    behind = ancestors(node)
    if any(base_name(n) == "detach" for n in behind):
        return None
    leaves = [n for n in behind if n in trace.parameters and trace.values[n].numel() > 1]
    made = _rows(node.meta["val"], flip)
    try:
        with torch.no_grad():
            for source, transposed, centred in product(leaves, (False, True), (False, True)):
                own = _rows(trace.values[source], transposed)
                others = [n for n in leaves if n is not source]
                if own.shape != made.shape or len(others) > 1 or own.shape[1] < 2:
                    continue
                gain = others[0] if others else None
                rows = RowMap(trace, node, flip, source, transposed, gain, centred)
                if _keeps_directions(rows) and _is_uniform(rows):
                    return rows
    except RuntimeError as error:
        raise UnsupportedOperation(
            f"{location(node)} computes with a parameter before it meets the data, which failed "
            f"on other values of it ({error}). EmpiricalKernel needs no rules."
        ) from error
    return None


def _keeps_directions(rows: RowMap) -> bool:
    """Whether every row is a multiple of its (centred) parameter, in proportion to its gain."""
    own = _rows(rows.trace.values[rows.source], rows.transposed)
    weight = (1 + _normal(own, seed=1)) / own.shape[1] ** 0.5
    gain = 1.5 + _normal(own[:, :1], seed=2).tanh()
    if rows.gain is not None and rows.trace.values[rows.gain].numel() != len(own):
        return False
    made = rows.execute(weight, gain)
    kept = weight - weight.mean(1, keepdim=True) if rows.centred else weight
    multiple = (made * kept).sum(1, keepdim=True) / kept.square().sum(1, keepdim=True)
    if rows.gain is not None and not _close(rows.execute(weight) * gain, made):
        return False
    return bool(made.any()) and _close(multiple * kept, made)


def _is_uniform(rows: RowMap) -> bool:
    """Whether the multiples are the same for all rows and weights of one variance."""
    own = _rows(rows.trace.values[rows.source], rows.transposed)
    size = own.shape[1] ** -0.5
    units = [_balanced(own, seed) for seed in (3, 4)]
    multiples = [(rows.execute(size * unit) * unit).mean(1) for unit in units]
    return _close(torch.cat(multiples), multiples[0][0].expand(2 * len(own)))


def _balanced(like: Tensor, seed: int) -> Tensor:
    """Random rows with mean 0 and mean square 1, exactly."""
    values = _normal(like, seed)
    values = values - values.mean(1, keepdim=True)
    return values / values.square().mean(1, keepdim=True).sqrt()


def _normal(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)


def _rows(weight: Tensor, transposed: bool) -> Tensor:
    """`(rows, fan_in)`; a vector has no rows."""
    if weight.dim() < 2 or (transposed and weight.dim() > 2):
        return weight.new_empty(0)
    return weight.T if transposed else weight.flatten(1)


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal and finite, to a fraction of the largest entry."""
    largest = b.abs().amax()
    return bool(torch.isfinite(a - b).all()) and bool(((a - b).abs() <= _TOLERANCE * largest).all())


def _execute(trace: Trace, node: fx.Node, given: Mapping[fx.Node, Tensor]) -> Tensor:
    """What `node` computes in float64 with other values of some parameters."""
    known: dict[fx.Node, Any] = dict(given)
    needed = ancestors(node)
    for step in trace.graph.nodes:
        if step in needed and step not in known:
            known[step] = _step(trace, step, known)
    return cast(Tensor, known[node])


def _step(trace: Trace, node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    if node.op == "placeholder":
        fixed = trace.values if node in trace.values else trace.constants
        value = fixed[node].detach()
        return value.double() if value.is_floating_point() else value
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: known[n])
    return cast(Any, node.target)(*args, **kwargs)
