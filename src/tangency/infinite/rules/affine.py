"""Weights and biases: `F.linear`, `x @ W`, `x + b`, `x * s`."""

from __future__ import annotations

import math
from itertools import groupby

from torch import fx

from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.values.sources import Bias
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value
from tangency.infinite.values.weight import Weight, WeightInput
from tangency.program.axes import Axis, resolve, size_of
from tangency.program.sites import Site

__all__ = ["bias_term"]


@rule("linear", "matmul", "mm", "addmm")
def affine(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """W u + b: a zero-mean Gaussian; different rows are independent."""
    site = lowering.program.sites.get(node)
    if site is None or site.role != "affine" or site.weight is None:
        raise lowering.unsupported(node, "multiplies two values that depend on parameters")
    weight = _weight(lowering, node, site, start, length)
    if site.bias is None:
        return weight
    terms = [Term(weight), bias_term(lowering, site, start, length)]
    return Sum(weight.positions, terms)


def _weight(lowering: Lowering, node: fx.Node, site: Site, start: int, length: int) -> Weight:
    assert site.weight is not None
    fan_in, fan_out = _fans(lowering, site)
    return Weight(
        lowering.program.atoms(node, "position"),
        (site.weight.name, site.weight.transposed, start, length),
        lowering.parameters.weight(site.weight, fan_in, fan_out),
        _source(lowering, node, site.input),
    )


def _fans(lowering: Lowering, site: Site) -> tuple[int, int]:
    assert site.weight is not None
    shape = lowering.parameters.value(site.weight.name).shape
    rows, columns = int(shape[0]), int(shape[1])
    return (rows, columns) if site.weight.transposed else (columns, rows)


def _source(lowering: Lowering, node: fx.Node, source: fx.Node) -> WeightInput:
    """What the weight contracts: the last dimension of its input."""
    atoms = resolve(lowering.program.axes[source][-1])
    if not lowering.random(source):
        return _concrete_source(lowering, source, atoms)
    kept = [a for dim in lowering.program.axes[source][:-1] for a in resolve(dim)]
    if any(axis.kind == "width" for axis in kept):
        raise lowering.unsupported(
            node,
            "shares one weight along a width (it mixes positions, not width), so that its "
            "infinite-width limit is not deterministic",
        )
    contracted = tuple(axis for axis in atoms if axis.kind == "position")
    whole = lowering.pieces(source, frozenset())
    return WeightInput(
        pieces=lambda cuts: lowering.pieces(source, cuts),
        cuts=lowering.cuts(source),
        contracted=contracted,
        signature=_signature(atoms),
        centred=all(value.centred for _, value in whole),
    )


def _signature(atoms: Positions) -> tuple[object, ...]:
    """Kinds and sizes in order; neighbours of one kind are one (width is exchangeable)."""
    merged = [(kind, math.prod(a.size for a in group)) for kind, group in groupby(atoms, _kind)]
    return tuple(merged)


def _kind(axis: Axis) -> str:
    return axis.kind


def _concrete_source(lowering: Lowering, source: fx.Node, features: Positions) -> WeightInput:
    value = lowering.data(source, features, 0, size_of(features))
    return WeightInput(
        pieces=lambda cuts: ((1.0, value),),
        cuts=frozenset(),
        contracted=(),
        signature=("data", *(axis.size for axis in features)),
        centred=False,
    )


def bias_term(lowering: Lowering, site: Site, start: int, length: int) -> Term:
    """The bias of a site."""
    assert site.bias is not None
    if site.role == "affine":
        fan_in, fan_out = _fans(lowering, site)
    else:
        fan_in = fan_out = int(lowering.parameters.value(site.bias.name).numel())
    scale = lowering.parameters.bias(site.bias, fan_in, fan_out)
    return Term(Bias((site.bias.name, start, length), scale))
