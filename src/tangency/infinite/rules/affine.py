"""Weights and biases: `F.linear`, `x @ W`, `x + b`, `x * s`."""

from __future__ import annotations

import math
from functools import partial
from itertools import groupby, pairwise

import torch
from torch import fx

from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.rules.embedding import parameter_value
from tangency.infinite.rules.weight_product import WeightProduct
from tangency.infinite.values.sources import Bias
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value
from tangency.infinite.values.weight import WeightInput
from tangency.program.axes import Axis, resolve, size_of
from tangency.program.operations import base_name
from tangency.program.sites import ParameterUse, Site

__all__ = ["affine", "bias_term", "refuse_mixing", "signature", "weight_input"]


_ROWS = ("linear", "addmm")


@rule(*_ROWS)
def affine(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """W u + b: a zero-mean Gaussian; different rows are independent."""
    site = lowering.program.sites.get(node)
    if site is None or site.role != "affine" or site.weight is None:
        raise lowering.unsupported(node, "multiplies by something other than one parameter")
    weight = _weight(lowering, node, site, start, length)
    if site.bias is None:
        return weight
    terms = [Term(weight), bias_term(lowering, site, start, length)]
    return Sum(weight.positions, terms)


def _weight(lowering: Lowering, node: fx.Node, site: Site, start: int, length: int) -> Value:
    assert site.weight is not None
    product = WeightProduct(
        node,
        site.weight,
        lowering.program.atoms(node, "position"),
        (*_rows(lowering, site.weight, start), length),
        _fans(lowering, site),
    )
    return product(lowering, weight_input(lowering, node, site.input), start, length)


def _rows(lowering: Lowering, use: ParameterUse, start: int) -> tuple[object, ...]:
    """Which rows of a parameter (of which columns) a use takes from its `start` on."""
    if use.block is None:
        return (use.name, use.transposed, None, start, None)
    outer, inner = use.block[-1 if use.transposed else 0], use.block[0 if use.transposed else -1]
    whole = len(inner) == lowering.parameters.value(use.name).shape[0 if use.transposed else -1]
    first = outer.start + start * outer.step
    step = None if outer.step == 1 else outer.step
    return (use.name, use.transposed, None if whole else inner, first, step)


def _fans(lowering: Lowering, site: Site) -> tuple[int, int]:
    assert site.weight is not None
    shape = lowering.parameters.value(site.weight.name).shape
    if site.weight.block is not None:
        shape = torch.Size([len(indices) for indices in site.weight.block])
    rows, columns = int(shape[0]), int(shape[1])
    return (rows, columns) if site.weight.transposed else (columns, rows)


def weight_input(lowering: Lowering, node: fx.Node, source: fx.Node) -> WeightInput:
    """What the weight contracts: the last dimension of its input."""
    atoms = resolve(lowering.program.axes[source][-1])
    if lowering.program.nature[source] == "parameter":
        return _token_source(lowering, source, atoms)
    if not lowering.random(source):
        return _concrete_source(lowering, node, source, atoms)
    _refuse_mixing(lowering, node, source)
    contracted = tuple(axis for axis in atoms if axis.kind == "position")
    whole = lowering.pieces(source, frozenset())
    return WeightInput(
        pieces=lowering.shared(_key(lowering, node, atoms), partial(lowering.pieces, source)),
        cuts=lowering.cuts(source),
        contracted=contracted,
        signature=signature(atoms),
        centred=all(value.centred for _, value in whole),
    )


def refuse_mixing(lowering: Lowering) -> None:
    """Refuse weights that mix positions and are shared along a width, wherever they are: the sums
    after them make such positions a width, which earlier layers would be blamed for.
    """
    for node, site in lowering.program.sites.items():
        contracts = site.role == "affine" and base_name(node) in _ROWS
        if contracts and lowering.random(site.input):
            _refuse_mixing(lowering, node, site.input)


def _refuse_mixing(lowering: Lowering, node: fx.Node, source: fx.Node) -> None:
    kept = [a for dim in lowering.program.axes[source][:-1] for a in resolve(dim)]
    if any(axis.kind == "width" for axis in kept):
        raise lowering.unsupported(
            node,
            "shares one weight along a width (it mixes positions, not width), so that its "
            "infinite-width limit is not deterministic",
        )


def signature(atoms: Positions) -> tuple[object, ...]:
    """Kinds and sizes in order; neighbours of one kind are one (width is exchangeable)."""
    merged = [(kind, math.prod(a.size for a in group)) for kind, group in groupby(atoms, _kind)]
    return tuple(merged)


def _kind(axis: Axis) -> str:
    return axis.kind


def _key(lowering: Lowering, node: fx.Node, contracted: Positions) -> tuple[str, int]:
    """Equal for uses of one weight."""
    weight = lowering.program.sites[node].weight
    assert weight is not None
    return weight.name, size_of(contracted)


def _concrete_source(
    lowering: Lowering, node: fx.Node, source: fx.Node, features: Positions
) -> WeightInput:
    value = lowering.data(source, features, 0, size_of(features))
    return WeightInput(
        pieces=lowering.shared(_key(lowering, node, features), lambda cuts: ((1.0, value),)),
        cuts=frozenset(),
        contracted=(),
        signature=("data", *(axis.size for axis in features)),
        centred=False,
    )


def _token_source(lowering: Lowering, source: fx.Node, features: Positions) -> WeightInput:
    """A parameter that a weight multiplies (learned queries): i.i.d. along what is contracted."""
    size = size_of(features)
    whole = parameter_value(lowering, source, features, 0, size)
    return WeightInput(
        pieces=lambda cuts: tuple(
            (
                (stop - start) / size,
                parameter_value(lowering, source, features, start, stop - start),
            )
            for start, stop in pairwise(sorted({0, size} | cuts))
        ),
        cuts=frozenset(),
        contracted=(),
        signature=(("width", size),),
        centred=whole.centred,
    )


def bias_term(lowering: Lowering, site: Site, start: int, length: int) -> Term:
    """The bias of a site."""
    assert site.bias is not None
    if site.role == "affine":
        fan_in, fan_out = _fans(lowering, site)
    else:
        fan_in = fan_out = int(lowering.parameters.value(site.bias.name).numel())
    scale = lowering.parameters.bias(site.bias, fan_in, fan_out)
    offset = 0 if site.bias.block is None else site.bias.block[-1].start
    return Term(Bias((site.bias.name, offset + start, length), scale))
