"""Any other operation: its own derivative, example by example.

Only this one operation is transformed, not the module: norms, scales, positional tables, a matrix
that meets the data in an unusual way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

from tangency.empirical.batching import each
from tangency.empirical.gradients import Explicit, Gradients
from tangency.empirical.passage import Order, Passage, batch_axis
from tangency.empirical.sites.registry import Site

__all__ = ["local_site"]


def local_site(node: fx.Node, parameter: fx.Node) -> Site | None:
    """The site of any call with one result that keeps the examples apart."""
    if node.op != "call_function" or batch_axis(node) is None:
        return None
    data = [n for n in node.all_input_nodes if n is not parameter and _is_tensor(n)]
    if any(_free_dimensions(n) > 1 for n in data):
        return None

    def gradient(passage: Passage, order: Order) -> Gradients:
        batched = [n for n in data if batch_axis(n) is not None]
        shared = {n: passage.values[n] for n in data if batch_axis(n) is None}
        cotangents = passage.cotangents_of(node, order)

        def one_example(cotangents: Tensor, *rows: Tensor) -> Tensor:
            known: dict[fx.Node, Tensor] = dict(zip(batched, rows, strict=True)) | shared
            return _pulled(node, parameter, passage.values[parameter], known, cotangents)

        values = [passage.of(n, order) for n in batched]
        return Explicit(each(one_example, cotangents, *values)[None])

    return Site(node, "local derivative", (parameter, *data), gradient)


def _pulled(
    node: fx.Node,
    parameter: fx.Node,
    present: Tensor,
    known: dict[fx.Node, Tensor],
    cotangents: Tensor,
) -> Tensor:
    """The gradients (k, size) of one example."""

    def call(value: Tensor) -> Tensor:
        def argument(wanted: fx.Node) -> Any:
            if wanted is parameter:
                return value
            return known[wanted] if wanted in known else _for_one(wanted)

        args, kwargs = fx.map_arg((node.args, node.kwargs), argument)
        return cast(Callable[..., Tensor], node.target)(*args, **kwargs)

    results = torch.func.vjp(call, present)
    back = results[1]
    rows: Tensor = torch.func.vmap(lambda g: back(g)[0].flatten())(cotangents)
    return rows


def _for_one(node: fx.Node) -> int:
    """A size that depends on the number of examples, for one example."""
    size = node.meta["val"]
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _free_dimensions(node: fx.Node) -> int:
    return sum(not isinstance(size, int) for size in node.meta["val"].shape)
