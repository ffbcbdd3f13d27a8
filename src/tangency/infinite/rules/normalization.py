"""LayerNorm and RMSNorm over the width, and perhaps over positions as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, fx

from tangency.infinite.entries import Entries, whole_parameter
from tangency.infinite.lowering import Lowering, rule
from tangency.infinite.rules.standardization import Standardization
from tangency.infinite.values.scaled import Scale, Scaled
from tangency.infinite.values.sources import One
from tangency.infinite.values.sum import Coefficient, Sum, Term
from tangency.infinite.values.value import Value
from tangency.program.axes import Shape, resolve
from tangency.program.operations import argument
from tangency.program.sites import ParameterUse, Site

__all__ = ["affine_part", "constant_terms", "scaled"]


@rule("layer_norm")
def layer_norm(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """(u - E u) / sqrt(Var u + eps) * scale + shift (Ba et al. 2016)."""
    eps = cast(float, argument(node, 4, "eps", 1e-5))
    normalized = _normalized(lowering, node, eps, start, length, centre=True)
    return _affine_part(lowering, node, normalized, start, length)


@rule("rms_norm")
def rms_norm(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """u / sqrt(E u^2 + eps) * scale (Zhang and Sennrich 2019)."""
    eps = cast("float | None", argument(node, 3, "eps"))
    eps = torch.finfo(node.meta["val"].dtype).eps if eps is None else eps
    normalized = _normalized(lowering, node, eps, start, length, centre=False)
    return _affine_part(lowering, node, normalized, start, length)


def _normalized(
    lowering: Lowering, node: fx.Node, eps: float, start: int, length: int, *, centre: bool
) -> Value:
    """A strand over the standard deviation of a whole width, and perhaps of positions."""
    source = cast(fx.Node, node.args[0])
    over = [axis for dim in _normalized_axes(lowering, node) for axis in resolve(dim)]
    width = lowering.program.atoms(source, "width")
    if set(width) - set(over) or not width:
        raise lowering.unsupported(
            node,
            "normalises over positions of one channel, or a part of the width: these statistics "
            "are random, however wide the layer is",
        )
    pieces = lowering.pieces(source, frozenset())
    positions = tuple(axis for axis in over if axis.kind == "position")
    standardize = Standardization(pieces, positions, eps, centre=centre)
    return standardize(lowering.strand(source, start, length))


def _normalized_axes(lowering: Lowering, node: fx.Node) -> Shape:
    """Axes of the dimensions over which a layer or RMS norm runs, and of its parameters."""
    count = len(cast(Sequence[int], node.args[1]))
    shape = lowering.program.axes[cast(fx.Node, node.args[0])]
    return shape[len(shape) - count :]


def _affine_part(
    lowering: Lowering, node: fx.Node, normalized: Value, start: int, length: int
) -> Value:
    site = lowering.program.sites.get(node)
    if site is None:
        return normalized
    axes = _normalized_axes(lowering, node)
    return affine_part(lowering, site, normalized, axes, start, length)


def affine_part(
    lowering: Lowering, site: Site, value: Value, axes: Shape, start: int, length: int
) -> Value:
    """The scale and shift of a norm, whose dimensions lie along `axes`: one number for every place
    of the width, and of the positions among them.
    """
    features = tuple(a for dim in axes for a in resolve(dim) if a.kind == "width")

    def entries(use: ParameterUse) -> Entries:
        return whole_parameter(lowering, use.name, axes, features, start, length)

    if site.weight is not None:
        value = scaled(lowering, value, entries(site.weight))
    if site.bias is None:
        return value
    terms = [Term(value), *_shift_terms(lowering, entries(site.bias))]
    positions = max((term.value.positions for term in terms), key=len)
    return Sum(positions, terms)


def scaled(lowering: Lowering, value: Value, entries: Entries) -> Value:
    """A value times a vector of parameters along the width, perhaps one per position."""
    plain = replace(entries, factor=1.0)
    product = Scaled(value, _scale(lowering, plain, plain.values(_present(lowering, plain))))
    if entries.factor == 1.0:
        return product
    return Sum(product.positions, [Term(product, entries.factor)])


def _present(lowering: Lowering, entries: Entries) -> Tensor:
    return lowering.parameters.value(entries.name)


def _scale(lowering: Lowering, entries: Entries, values: Tensor) -> Scale:
    trainable = lowering.parameters.trainable(entries.name)
    return Scale(entries.identity, entries.positions, values, entries.first, trainable=trainable)


def constant_terms(
    lowering: Lowering, name: str, axes: Shape, start: int, length: int, number: float
) -> list[Term]:
    """A whole parameter times a number, the same for all examples."""
    features = tuple(a for dim in axes for a in resolve(dim) if a.kind == "width")
    entries = whole_parameter(lowering, name, axes, features, start, length)
    return _shift_terms(lowering, entries, number)


def _shift_terms(lowering: Lowering, entries: Entries, number: float = 1.0) -> list[Term]:
    """The shift, a multiple of one, as its mean over the width and its (trainable) deviation."""
    values = entries.values(_present(lowering, entries))
    mean = values.mean(-1)
    one: Value = One() if number == 1.0 else Sum((), [Term(One(), number)])
    deviation = Scaled(one, _scale(lowering, entries, values - mean[..., None]))
    terms = [Term(deviation)]
    if bool(mean.any()):
        level = Coefficient(lambda side: mean.to(side.device)[..., None], entries.positions)
        terms.append(Term(One(), number, (level,)))
    return terms
