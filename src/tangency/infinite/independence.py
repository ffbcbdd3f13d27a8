"""A kernel compares single examples: what is computed from data must not mix them."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from tangency.errors import UnsupportedOperation
from tangency.infinite.side import Side
from tangency.program.axes import resolve
from tangency.program.capture import Program
from tangency.program.trace import location

__all__ = ["check_independence"]


def check_independence(side: Side, last: Side) -> None:
    """Compare concrete values on all examples with those on the last example alone.

    Raises:
        UnsupportedOperation: a value of the last example depends on the others (a mean over the
            batch, for example).
    """
    for node in _frontier(side.program):
        whole, alone = side.concrete(node), last.concrete(node)
        if not torch.allclose(_last(side, node, whole), _last(last, node, alone), rtol=1e-3):
            raise UnsupportedOperation(
                f"{location(node)} mixes the examples of a batch: its value for one example "
                "depends on the others, so that no kernel of two examples describes it. Compute "
                "such statistics beforehand and keep them as a buffer of the module."
            )


def _frontier(program: Program) -> list[fx.Node]:
    """Floating-point values of data that meet parameters or random values."""
    return [
        node
        for node, nature in program.nature.items()
        if nature == "concrete"
        and node in program.axes
        and node.op == "call_function"
        and node.meta["val"].is_floating_point()
        and any(program.nature.get(user) in ("random", "statistic") for user in node.users)
    ]


def _last(side: Side, node: fx.Node, value: Tensor) -> Tensor:
    """The last example's part of a concrete value."""
    for dim, axes in enumerate(side.program.axes[node]):
        if any(axis.kind == "batch" for axis in resolve(axes)):
            size = value.shape[dim] // side.count
            return value.narrow(dim, value.shape[dim] - size, size)
    return value
