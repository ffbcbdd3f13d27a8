"""Embeddings of tokens, and parameters that are values themselves: positions, class tokens."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from tangency.errors import InvalidInput
from tangency.infinite.entries import entries_of
from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.side import Side
from tangency.infinite.values.embedding import Embedding, Padding
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value
from tangency.program.operations import arguments

_EXACT = {torch.float16: 2**11, torch.bfloat16: 2**8, torch.float32: 2**24}
"""Up to which number a floating-point type holds every integer."""


@rule("embedding")
def embedding(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Row W[t] of a table for the token t: the product of its one-hot code with W, fan-in 1."""
    site = lowering.program.sites[node]
    assert site.weight is not None
    given = arguments(node)
    if given.get("scale_grad_by_freq"):
        raise lowering.unsupported(node, "scales its gradient by the frequency of the token")
    if lowering.random(site.input):
        raise lowering.unsupported(node, "looks up tokens that depend on parameters")
    name = site.weight.name
    _check_untied(lowering, node, name)
    table = lowering.parameters.value(name)
    if site.weight.block is not None or site.weight.factor != 1.0:
        raise lowering.unsupported(node, "looks up tokens in a part or a multiple of a table")
    padding = _padding(cast(int, given["padding_idx"]), table)
    used = torch.ones(len(table), dtype=torch.bool, device=table.device)
    if padding is not None and padding.zero:
        used[padding.row] = False
    return Embedding(
        lowering.program.atoms(site.input, "position"),
        (name, start, length),
        lowering.parameters.table(name, table[used], "weight"),
        lambda side: _tokens(lowering, site.input, side, len(table)),
        padding,
    )


def _padding(index: int, table: Tensor) -> Padding | None:
    """What `padding_idx` says; the row need not be zero where a user filled the table anew."""
    if index < 0:
        return None
    return Padding(index, zero=not bool(table[index].any()))


def _check_untied(lowering: Lowering, node: fx.Node, name: str) -> None:
    for other, site in lowering.program.sites.items():
        if site.role != "embedding" and name in site.names:
            raise lowering.unsupported(
                node,
                f"looks up tokens in {name}, which is also a weight of {other.name}: an output tied"
                " to the embedding sums over correlated coordinates, which have no limit of the "
                "usual scale. Ask for the kernel of the last hidden state",
            )


def _tokens(lowering: Lowering, node: fx.Node, side: Side, count: int) -> Tensor:
    if count > _EXACT.get(side.dtype, count):
        raise InvalidInput(
            f"{side.dtype} cannot tell {count} tokens apart: pass dtype=torch.float32 or wider."
        )
    positions: Positions = lowering.program.atoms(node, "position")
    return side.features(node, positions, ())[..., 0]


@rule("parameter")
def token(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """A parameter used as a value: i.i.d. entries along its width, independent over positions."""
    return parameter_value(lowering, node, lowering.program.atoms(node, "width"), start, length)


def parameter_value(
    lowering: Lowering, node: fx.Node, features: Positions, start: int, length: int
) -> Value:
    """A stretch along `features` of a parameter as a random value."""
    entries = entries_of(lowering, node, features, start, length)
    values = entries.values(lowering.parameters.value(entries.name)) / entries.factor
    value = Embedding(
        entries.positions,
        entries.identity,
        lowering.parameters.table(entries.name, values, "bias"),
        lambda side: entries.first[..., None].to(side.device),
    )
    if entries.factor == 1.0:
        return value
    return Sum(value.positions, [Term(value, entries.factor)])
