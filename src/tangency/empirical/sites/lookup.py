"""Tables whose rows are looked up by integers."""

from __future__ import annotations

from typing import cast

import torch
from torch import fx

from tangency.empirical.gradients import Gradients, Rows
from tangency.empirical.passage import Order, Passage, batch_axis
from tangency.empirical.sites.registry import Site, site_rule
from tangency.program.operations import arguments, base_name


@site_rule("embedding")
def embedding(node: fx.Node, parameter: fx.Node) -> Site | None:
    """Rows of W, chosen by the data."""
    given = arguments(node)
    indices = cast(fx.Node, given["indices"])
    if batch_axis(indices) is None or given["scale_grad_by_freq"]:
        return None
    rows = parameter.meta["val"].shape[0]
    padding = cast(int, given["padding_idx"])

    def gradient(passage: Passage, order: Order) -> Gradients:
        chosen = passage.of(indices, order).flatten(1)
        cotangents = passage.cotangents_of(node, order).flatten(2, -2)
        if padding >= 0:  # that row is a constant
            cotangents = cotangents * (chosen != padding)[:, None, :, None]
        return Rows(chosen[None], cotangents[None], rows)

    return Site(node, "rows", (indices,), gradient)


_SUM, _MEAN = 0, 1
"""Modes of an embedding bag; the largest entries of a bag (2) come from any of its rows."""


@site_rule("embedding_bag")
def embedding_bag(node: fx.Node, parameter: fx.Node) -> Site | None:
    """Sums and means of rows of W, in bags of one size: what (n, size) indices give."""
    given = arguments(node)
    indices, offsets = cast("tuple[fx.Node, fx.Node]", (given["indices"], given["offsets"]))
    results = [user for user in node.users if user.args[1:] == (0,)]
    regular = base_name(offsets) == "arange" and not given["include_last_offset"]
    if batch_axis(indices) is None or len(results) != 1 or not regular:
        return None
    if given["weight"] is not parameter or given["mode"] not in (_SUM, _MEAN):
        return None
    if given["scale_grad_by_freq"]:
        return None
    (result,) = results
    weights = cast("fx.Node | None", given["per_sample_weights"])
    if weights is not None and batch_axis(weights) is None:
        return None
    rows = parameter.meta["val"].shape[0]
    padding = cast("int | None", given.get("padding_idx"))

    def gradient(passage: Passage, order: Order) -> Gradients:
        chosen = passage.of(indices, order).flatten(1)
        cotangents = passage.cotangents_of(result, order).flatten(2, -2)
        counted = torch.ones_like(chosen) if padding is None else chosen != padding
        factors = counted.to(cotangents.dtype)
        if weights is not None:
            factors = factors * passage.of(weights, order).flatten(1)
        if given["mode"] == _MEAN:
            factors = factors / factors.sum(1, keepdim=True).clamp_min(1)
        return Rows(chosen[None], (cotangents * factors[:, None, :, None])[None], rows)

    read = (indices,) if weights is None else (indices, weights)
    return Site(result, "rows", read, gradient)
