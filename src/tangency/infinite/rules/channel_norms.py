"""Norms with one scale and shift per channel: GroupNorm, and BatchNorm in evaluation mode."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from tangency.infinite.lowering import Lowering, cut_rule, rule
from tangency.infinite.rules.normalization import affine_part, constant_terms
from tangency.infinite.rules.sampled import channel_by_channel
from tangency.infinite.rules.standardization import Standardization
from tangency.infinite.values.scaled import Scale, Scaled
from tangency.infinite.values.sources import One
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value
from tangency.program.axes import resolve
from tangency.program.operations import arguments


@rule("group_norm")
def group_norm(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """(u - E u) / sqrt(Var u + eps) * scale + shift, with the statistics of a group of channels and
    all positions (Wu and He 2018). What goes to infinity is the number of channels of each group;
    groups of one channel are an InstanceNorm, whose number of channels goes to infinity.
    """
    if _group_size(lowering, node) == 1:
        return channel_by_channel(lowering, node, start, length)
    source = cast(fx.Node, node.args[0])
    shape = lowering.program.axes[source]
    over = tuple(a for dim in shape[2:] for a in resolve(dim))
    if any(axis.kind != "position" for axis in over):
        raise lowering.unsupported(node, "normalises over a width that is not that of the channels")
    begin, size = 0, lowering.width(source)
    if _group_cuts(lowering, node):
        size = _group_size(lowering, node)
        begin = start // size * size
    pieces = lowering.pieces(source, frozenset(), begin, size)
    eps = cast(float, arguments(node)["eps"])
    standardize = Standardization(pieces, over, eps, centre=True)
    value = standardize(lowering.strand(source, start, length))
    return _with_affine(lowering, node, value, start, length)


def _group_size(lowering: Lowering, node: fx.Node) -> int:
    """Channels of one group."""
    _check_channels(lowering, node)
    source, groups = cast("tuple[fx.Node, int]", node.args[:2])
    return lowering.width(source) // groups


@cut_rule("group_norm")
def group_norm_cuts(lowering: Lowering, node: fx.Node) -> frozenset[int]:
    source = cast(fx.Node, node.args[0])
    return lowering.cuts(source) | _group_cuts(lowering, node)


def _group_cuts(lowering: Lowering, node: fx.Node) -> frozenset[int]:
    """Groups differ where they see a width of several natures."""
    source = cast(fx.Node, node.args[0])
    size = _group_size(lowering, node)
    if not lowering.cuts(source) or size == 1:
        return frozenset()
    return frozenset(range(size, lowering.width(source), size))


@rule("batch_norm")
def batch_norm(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """(u - m) / sqrt(v + eps) * scale + shift with the running statistics m, v (Ioffe and Szegedy
    2015): constants at their present values, independent of u and of scale and shift.
    """
    _check_channels(lowering, node)
    given = arguments(node)
    mean, variance = (
        _constant(lowering, node, given[name])[start : start + length].double()
        for name in ("running_mean", "running_var")
    )
    scale = (variance + cast(float, given["eps"])).rsqrt()
    value = lowering.strand(cast(fx.Node, node.args[0]), start, length)
    shift = -mean * scale
    level, deviation = float(shift.mean()), shift - shift.mean()
    terms = [_times(value, (node.name, "scale"), scale)]
    if not bool((shift == shift[0]).all()):
        terms.append(_times(One(), (node.name, "shift"), deviation))
    normed = _with_affine(lowering, node, Sum(value.positions, terms), start, length)
    rest = normed.terms if isinstance(normed, Sum) else (Term(normed),)
    return Sum(normed.positions, [*rest, *_level(lowering, node, level, start, length)])


def _level(lowering: Lowering, node: fx.Node, level: float, start: int, length: int) -> list[Term]:
    """A constant, times the scale of the norm."""
    site = lowering.program.sites.get(node)
    if not level or site is None or site.weight is None:
        return [Term(One(), level)] if level else []
    axes = (lowering.program.axes[node][1],)
    return constant_terms(lowering, site.weight.name, axes, start, length, level)


def _constant(lowering: Lowering, node: fx.Node, given: object) -> Tensor:
    constants = lowering.program.trace.constants
    if not isinstance(given, fx.Node) or given not in constants:
        raise lowering.unsupported(node, "normalises by statistics that are not buffers")
    return constants[given]


def _times(value: Value, identity: tuple[str, str], scale: Tensor) -> Term:
    """A value times a vector of constants along the width."""
    if bool((scale == scale[0]).all()):
        return Term(value, float(scale[0]))
    rows = torch.zeros((), dtype=torch.long)
    return Term(Scaled(value, Scale(identity, (), scale, rows, trainable=False)))


def _check_channels(lowering: Lowering, node: fx.Node) -> None:
    """The channels are the whole width and nothing else."""
    source = cast(fx.Node, node.args[0])
    channels = resolve(lowering.program.axes[source][1])
    if channels != lowering.program.atoms(source, "width"):
        raise lowering.unsupported(node, "normalises channels that are not the whole width")


def _with_affine(lowering: Lowering, node: fx.Node, value: Value, start: int, length: int) -> Value:
    site = lowering.program.sites.get(node)
    if site is None:
        return value
    axes = (lowering.program.axes[node][1],)
    return affine_part(lowering, site, value, axes, start, length)
