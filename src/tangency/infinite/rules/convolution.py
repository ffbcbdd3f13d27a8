"""Convolutions: weights that slide along positions."""

from __future__ import annotations

import math

from torch import fx

from tangency.infinite.lowering import Lowering, cut_rule, rule
from tangency.infinite.rules.affine import bias_term
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value
from tangency.infinite.values.weight import Weight, WeightInput
from tangency.infinite.values.window import Window
from tangency.program.axes import Axis, Dim, resolve, size_of
from tangency.program.geometry import CONVOLUTIONS, ConvGeometry, conv_geometry
from tangency.program.sites import Site


@rule(*CONVOLUTIONS)
def convolution(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Covariance w2 E[u u'], averaged over the taps (Arora et al. 2019, section 4).

    With groups, what goes to infinity is the number of channels of each group.
    """
    site = lowering.program.sites.get(node)
    if site is None or site.role != "convolution" or site.weight is None:
        raise lowering.unsupported(node, "convolves with something other than one parameter")
    geometry = conv_geometry(node)
    weight = Weight(
        lowering.program.atoms(node, "position"),
        (site.weight.name, start, length),
        lowering.parameters.weight(site.weight, *_fans(lowering, site, geometry)),
        _source(lowering, node, site, geometry, start, length),
    )
    if site.bias is None:
        return weight
    return Sum(weight.positions, [Term(weight), bias_term(lowering, site, start, length)])


def _fans(lowering: Lowering, site: Site, geometry: ConvGeometry) -> tuple[int, int]:
    """Numbers of inputs and outputs that one output or input is connected to."""
    assert site.weight is not None
    rows, columns, *kernel = lowering.parameters.value(site.weight.name).shape
    taps = math.prod(kernel)
    if geometry.transposed:
        return rows // geometry.groups * taps, columns * taps
    return columns * taps, rows // geometry.groups * taps


def _source(
    lowering: Lowering,
    node: fx.Node,
    site: Site,
    geometry: ConvGeometry,
    start: int,
    length: int,
) -> WeightInput:
    shape = lowering.program.axes[site.input]
    windows = tuple(_windows(lowering, node, site, geometry))
    channels = resolve(shape[1])
    begin, size = _channels(lowering, node, site, geometry, start, length)
    if not lowering.random(site.input):
        value = lowering.data(site.input, channels, begin, size)
        return WeightInput(
            lambda cuts: ((1.0, value),), frozenset(), (), ("data", size), False, windows
        )
    if any(a.kind != "width" for a in channels) or any(
        a.kind == "width" for dim in (shape[0], *shape[2:]) for a in resolve(dim)
    ):
        raise lowering.unsupported(
            node,
            "slides along a width or contracts positions as channels, so that its infinite-width "
            "limit is not deterministic",
        )
    cuts = frozenset(c - begin for c in lowering.cuts(site.input) if begin < c < begin + size)
    pieces = lowering.pieces(site.input, frozenset(), begin, size)
    return WeightInput(
        pieces=lambda more: lowering.pieces(site.input, more, begin, size),
        cuts=cuts,
        contracted=(),
        signature=("channels", size),
        centred=all(value.centred for _, value in pieces),
        windows=windows,
    )


def _windows(lowering: Lowering, node: fx.Node, site: Site, geometry: ConvGeometry) -> list[Window]:
    before, after = lowering.program.axes[site.input], lowering.program.axes[node]
    windows = []
    for k, taps in enumerate(geometry.kernel):
        dilation, stride = geometry.dilation[k], geometry.stride[k]
        source, target = _axis(lowering, node, before[2 + k]), _axis(lowering, node, after[2 + k])
        if geometry.transposed:
            # The adjoint of a strided convolution slides over its input with zeros put in between.
            padding = dilation * (taps - 1) - geometry.padding_before[k]
            windows.append(Window(source, target, taps, 1, dilation, padding, insert=stride))
        else:
            padding = geometry.padding_before[k]
            windows.append(Window(source, target, taps, stride, dilation, padding))
    return windows


def _axis(lowering: Lowering, node: fx.Node, dim: Dim) -> Axis:
    atoms = resolve(dim)
    if len(atoms) > 1:
        raise lowering.unsupported(
            node, "slides along a dimension that was made by merging several"
        )
    return atoms[0] if atoms else Axis("position", 1)


def _channels(
    lowering: Lowering, node: fx.Node, site: Site, geometry: ConvGeometry, start: int, length: int
) -> tuple[int, int]:
    """Which input channels the output channels `start : start + length` see."""
    total = size_of(resolve(lowering.program.axes[site.input][1]))
    if geometry.groups == 1:
        return 0, total
    per_group = total // geometry.groups
    if lowering.random(site.input) and per_group == 1:
        raise lowering.unsupported(
            node,
            "is a depthwise convolution: each of its outputs sees one random channel, so that it "
            "is not Gaussian",
        )
    if not _group_cuts(lowering, node, site, geometry):
        return 0, total  # one nature over the width: every group is like the whole
    outputs = int(node.meta["val"].shape[1]) // geometry.groups
    return start // outputs * per_group, per_group


@cut_rule(*CONVOLUTIONS)
def convolution_cuts(lowering: Lowering, node: fx.Node) -> frozenset[int]:
    site = lowering.program.sites.get(node)
    return frozenset() if site is None else _group_cuts(lowering, node, site, conv_geometry(node))


def _group_cuts(
    lowering: Lowering, node: fx.Node, site: Site, geometry: ConvGeometry
) -> frozenset[int]:
    """Groups are of different nature where they see data, or a width of several natures."""
    alike = lowering.random(site.input) and not lowering.cuts(site.input)
    if alike or geometry.groups == 1:
        return frozenset()
    outputs = int(node.meta["val"].shape[1]) // geometry.groups
    return frozenset(range(outputs, outputs * geometry.groups, outputs))
