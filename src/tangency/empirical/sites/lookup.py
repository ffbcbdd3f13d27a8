"""Tables whose rows are looked up by integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, fx

from tangency.empirical.gradients import Gradients, Rows
from tangency.empirical.passage import Order, Passage, batch_axis
from tangency.empirical.sites.registry import Site, site_rule
from tangency.errors import InvalidInput
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
        chosen = passage.of(indices, order).flatten(1).long()
        cotangents = passage.cotangents_of(node, order).flatten(2, -2)
        if padding >= 0:  # that row is a constant
            cotangents = cotangents * (chosen != padding)[:, None, :, None]
        return Rows(chosen[None, :, None], cotangents[None, :, :, None], rows)

    return Site(node, "rows", (indices,), gradient)


_MEAN, _MAX = 1, 2
"""Modes of an embedding bag, besides sums (0)."""


@site_rule("embedding_bag")
def embedding_bag(node: fx.Node, parameter: fx.Node) -> Site | None:
    """Sums, means and largest entries of rows of W, in bags of any sizes, of each example as many
    bags and indices.
    """
    given = arguments(node)
    indices, weights = cast(fx.Node, given["indices"]), given["per_sample_weights"]
    results = [user for user in node.users if user.args[1:] == (0,)]
    if given["weight"] is not parameter or given["scale_grad_by_freq"] or len(results) != 1:
        return None
    if batch_axis(indices) is None or batch_axis(results[0]) is None:
        return None
    if isinstance(weights, fx.Node) and batch_axis(weights) is None:
        return None
    return (_largest if given["mode"] == _MAX else _weighted_sums)(node, results[0])


def _weighted_sums(node: fx.Node, result: fx.Node) -> Site:
    given = arguments(node)
    indices, offsets = cast("tuple[fx.Node, fx.Node]", (given["indices"], given["offsets"]))
    weights = cast("fx.Node | None", given["per_sample_weights"])
    padding = cast("int | None", given.get("padding_idx"))
    rows = cast(fx.Node, given["weight"]).meta["val"].shape[0]

    def gradient(passage: Passage, order: Order) -> Gradients:
        chosen = passage.of(indices, order).flatten(1).long()
        cotangents = passage.cotangents_of(result, order).flatten(2, -2)
        starts = passage.values[offsets]
        if given["include_last_offset"]:
            starts = starts[:-1]
        bags = _bags(starts, chosen, cotangents.shape[2])
        counted = torch.ones_like(chosen) if padding is None else chosen != padding
        factors = counted.to(cotangents.dtype)
        if weights is not None:
            factors = factors * passage.of(weights, order).flatten(1)
        if given["mode"] == _MEAN:
            sizes = factors.new_zeros(len(factors), cotangents.shape[2])
            sizes = sizes.scatter_add_(1, bags, factors)
            factors = factors / sizes.clamp_min(1).gather(1, bags)
        of_places = cotangents.take_along_dim(bags[:, None, :, None], 2)
        of_places = of_places * factors[:, None, :, None]
        return Rows(chosen[None, :, None], of_places[None, :, :, None], rows)

    read = (indices, offsets) if weights is None else (indices, offsets, weights)
    return Site(result, "rows", read, gradient)


def _bags(starts: Tensor, chosen: Tensor, bags: int) -> Tensor:
    """For all indices (n, size), flattened, that begin a bag at `starts`: in which of the bags of
    its example each of them is.

    Raises:
        InvalidInput: there are bags with indices of several examples.
    """
    n = len(chosen)
    places = torch.arange(chosen.numel(), dtype=starts.dtype, device=chosen.device)
    of_all = torch.searchsorted(starts, places, right=True) - 1  # the last one that begins there
    of_each = of_all.view(chosen.shape) - bags * torch.arange(n, device=chosen.device)[:, None]
    if bool(((of_each < 0) | (of_each >= bags)).any()):
        raise InvalidInput(
            "an embedding bag holds indices of several examples: the offsets of every example must "
            "begin with the place of its first index, and be no further than its last one."
        )
    return of_each


def _largest(node: fx.Node, result: fx.Node) -> Site:
    """Every entry of a bag comes from a row of its own, the one that has the largest."""
    look_up = cast("Callable[..., tuple[Tensor, ...]]", node.target)
    rows = cast(fx.Node, arguments(node)["weight"]).meta["val"].shape[0]

    def gradient(passage: Passage, order: Order) -> Gradients:
        args, kwargs = fx.map_arg((node.args, node.kwargs), passage.values.__getitem__)
        # The operation itself says which of equal ones it takes.
        _, _, sizes, chosen = look_up(*args, **kwargs)
        of_each = passage.split(chosen, result, order).flatten(1, -2).long()
        # An empty bag is a constant, and names no row (-1).
        filled = passage.split(sizes, result, order).flatten(1) > 0
        cotangents = passage.cotangents_of(result, order).flatten(2, -2)
        cotangents = cotangents * filled[:, None, :, None]
        return Rows(of_each.clamp_min(0).mT[None], cotangents.mT[None, ..., None], rows)

    return Site(result, "rows, entry by entry", tuple(node.all_input_nodes), gradient)
