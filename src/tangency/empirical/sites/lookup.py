"""Tables whose rows are looked up by integers."""

from __future__ import annotations

from typing import cast

from torch import fx

from tangency.empirical.gradients import Gradients, Rows
from tangency.empirical.passage import Order, Passage, batch_axis
from tangency.empirical.sites.registry import Site, site_rule
from tangency.program.operations import arguments


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
