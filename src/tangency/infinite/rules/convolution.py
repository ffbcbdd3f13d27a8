"""Convolutions: weights that slide along positions."""

from __future__ import annotations

import math
import warnings
from functools import cache, partial

from torch import fx

from tangency.infinite.layout import Positions
from tangency.infinite.lowering import Lowering, cut_rule, rule
from tangency.infinite.rules.affine import bias_term, signature
from tangency.infinite.rules.borders import Border, without_padding
from tangency.infinite.rules.spatial import grouped, one_axis, ungrouped
from tangency.infinite.rules.weight_product import WeightProduct
from tangency.infinite.values.depthwise import Depthwise
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value
from tangency.infinite.values.weight import WeightInput
from tangency.infinite.values.window import Window
from tangency.program.axes import Shape, resolve, size_of
from tangency.program.geometry import CONVOLUTIONS, ConvGeometry, conv_geometry
from tangency.program.sites import Site


class FewChannelsWarning(UserWarning):
    """The groups of a convolution are many and narrow; the limit taken is that of wide groups."""


@rule(*CONVOLUTIONS)
def convolution(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Covariance w2 E[u u'], averaged over the taps (Arora et al. 2019, section 4).

    With groups, what goes to infinity is the number of channels of each group; if each is a single
    channel (a depthwise convolution), it is the number of groups, and the number of channels made
    of each stays.
    """
    site = lowering.program.sites.get(node)
    if site is None or site.role != "convolution" or site.weight is None:
        raise lowering.unsupported(node, "convolves with something other than one parameter")
    geometry = conv_geometry(node)
    site, borders = without_padding(lowering, site, geometry)
    windows = tuple(_windows(lowering, node, site, geometry, borders))
    depthwise = lowering.random(site.input) and _sees_one_channel(lowering, site, geometry)
    weight = _depthwise if depthwise else _weight
    value = weight(lowering, node, site, geometry, windows, start, length)
    after = lowering.program.axes[node]
    for window, dim in zip(windows, after[2:], strict=True):
        value = ungrouped(value, window.target, dim)
    if site.bias is None:
        return value
    return Sum(value.positions, [Term(value), bias_term(lowering, site, start, length)])


def _weight(
    lowering: Lowering,
    node: fx.Node,
    site: Site,
    geometry: ConvGeometry,
    windows: tuple[Window, ...],
    start: int,
    length: int,
) -> Value:
    assert site.weight is not None
    if site.weight.rows is not None and geometry.transposed:
        raise lowering.unsupported(
            node, "is a transposed convolution with a standardised or normalised weight"
        )
    if lowering.random(site.input):
        _warn_of_few_channels(lowering.width(site.input) // geometry.groups, geometry.groups)
    stretch = _channels(lowering, node, site, geometry, start, length)
    product = WeightProduct(
        node,
        site.weight,
        _positions(lowering, node, windows),
        (site.weight.name, start, length),
        _fans(lowering, site, geometry),
    )
    source = _source(lowering, node, site, windows, stretch)
    return product(lowering, source, start, length)


def _warn_of_few_channels(channels: int, groups: int) -> None:
    if channels < groups:
        warnings.warn(
            f"a convolution has {groups} groups of {channels} channels each; what is computed is "
            "its limit for many channels in each group. The kernel of the module as it stands "
            f"differs from it by terms of order 1 / {channels}, however many groups there are "
            "(compare with EmpiricalKernel).",
            FewChannelsWarning,
            stacklevel=2,
        )


def _depthwise(
    lowering: Lowering,
    node: fx.Node,
    site: Site,
    geometry: ConvGeometry,
    windows: tuple[Window, ...],
    start: int,
    length: int,
) -> Value:
    assert site.weight is not None
    if site.weight.rows is not None:
        raise lowering.unsupported(
            node,
            "standardises or normalises the few taps of every channel's own filter: their "
            "statistics are random, however many channels there are",
        )
    source = _channels_one_by_one(lowering, node, site, start, length)
    dims = lowering.program.axes[site.input][2:]
    return Depthwise(
        _positions(lowering, node, windows),
        (site.weight.name, start, length),
        lowering.parameters.weight(site.weight, *_fans(lowering, site, geometry)),
        _arranged(source, dims, windows),
        windows,
        _multiplier(lowering, node, site),
    )


def _channels_one_by_one(
    lowering: Lowering, node: fx.Node, site: Site, start: int, length: int
) -> Value:
    """What the filters `start : start + length` read: `times` neighbours read the same channel.

    Given the channel they are independent; a channel is one of many that all weights after it sum
    over. So what follows knows them as it would if each read a channel of its own.
    """
    times = _multiplier(lowering, node, site)
    if start % times or length % times:
        raise lowering.unsupported(
            node,
            f"makes {times} channels of each random channel, and these are divided where they are "
            "concatenated, added or split: divide the width at a multiple of them",
        )
    return lowering.strand(site.input, start // times, length // times)


def _multiplier(lowering: Lowering, node: fx.Node, site: Site) -> int:
    """Channels that a depthwise convolution makes of each."""
    return int(node.meta["val"].shape[1]) // lowering.width(site.input)


def _positions(lowering: Lowering, node: fx.Node, windows: tuple[Window, ...]) -> Positions:
    before = resolve(lowering.program.axes[node][0])
    moved = (window.target for window in windows if window.target.size > 1)
    return (*(axis for axis in before if axis.kind == "position"), *moved)


def _sees_one_channel(lowering: Lowering, site: Site, geometry: ConvGeometry) -> bool:
    return geometry.groups > 1 and geometry.groups == lowering.width(site.input)


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
    windows: tuple[Window, ...],
    stretch: tuple[int, int],
) -> WeightInput:
    """What the filter reads: a stretch of the channels, and positions that lie among them."""
    shape = lowering.program.axes[site.input]
    channels = resolve(shape[1])
    begin, size = stretch
    arranged = cache(partial(_arranged, dims=shape[2:], windows=windows))
    if not lowering.random(site.input):
        value = arranged(lowering.data(site.input, channels, begin, size))
        return WeightInput(
            lambda cuts: ((1.0, value),), frozenset(), (), ("data", size), False, windows
        )
    if any(a.kind == "width" for dim in (shape[0], *shape[2:]) for a in resolve(dim)):
        raise lowering.unsupported(
            node, "slides along a width, so that its infinite-width limit is not deterministic"
        )

    def pieces(cuts: frozenset[int]) -> tuple[tuple[float, Value], ...]:
        whole = lowering.pieces(site.input, cuts, begin, size)
        return tuple((fraction, arranged(value)) for fraction, value in whole)

    assert site.weight is not None
    return WeightInput(
        pieces=lowering.shared((site.weight.name, begin, size), pieces),
        cuts=frozenset(c - begin for c in lowering.cuts(site.input) if begin < c < begin + size),
        contracted=tuple(a for a in channels if a.kind == "position"),
        signature=signature(channels) if size == lowering.width(site.input) else ("part", size),
        centred=all(value.centred for _, value in pieces(frozenset())),
        windows=windows,
    )


def _arranged(value: Value, dims: Shape, windows: tuple[Window, ...]) -> Value:
    """A value with one axis for each dimension along which a window slides."""
    for dim, window in zip(dims, windows, strict=True):
        if len(resolve(dim)) > 1:
            value = grouped(value, dim, window.source)
    return value


def _windows(
    lowering: Lowering,
    node: fx.Node,
    site: Site,
    geometry: ConvGeometry,
    borders: tuple[Border, ...],
) -> list[Window]:
    before, after = lowering.program.axes[site.input], lowering.program.axes[node]
    windows = []
    for k, taps in enumerate(geometry.kernel):
        dilation, stride = geometry.dilation[k], geometry.stride[k]
        source, target = one_axis(before[2 + k]), one_axis(after[2 + k])
        if geometry.transposed:
            # The adjoint of a strided convolution slides over its input with zeros put in between.
            padding = dilation * (taps - 1) - geometry.padding_before[k]
            windows.append(Window(source, target, taps, 1, dilation, padding, insert=stride))
        else:
            border = borders[k]
            sizes = (taps, stride, dilation, border.front)
            windows.append(Window(source, target, *sizes, wraps=border.wraps))
    return windows


def _channels(
    lowering: Lowering, node: fx.Node, site: Site, geometry: ConvGeometry, start: int, length: int
) -> tuple[int, int]:
    """Which input channels the output channels `start : start + length` see."""
    channels = resolve(lowering.program.axes[site.input][1])
    mixed = lowering.random(site.input)
    total = lowering.width(site.input) if mixed else size_of(channels)
    if geometry.groups == 1:
        return 0, total
    if mixed and any(a.kind == "position" for a in channels):
        raise lowering.unsupported(node, "groups channels among which there are positions")
    per_group = total // geometry.groups
    if not _group_cuts(lowering, node, site, geometry):
        return 0, total  # one nature over the width: every group is like the whole
    outputs = int(node.meta["val"].shape[1]) // geometry.groups
    return start // outputs * per_group, per_group


@cut_rule(*CONVOLUTIONS)
def convolution_cuts(lowering: Lowering, node: fx.Node) -> frozenset[int]:
    site = lowering.program.sites.get(node)
    if site is None:
        return frozenset()
    geometry = conv_geometry(node)
    if lowering.random(site.input) and _sees_one_channel(lowering, site, geometry):
        times = _multiplier(lowering, node, site)
        return frozenset(times * cut for cut in lowering.cuts(site.input))
    return _group_cuts(lowering, node, site, geometry)


def _group_cuts(
    lowering: Lowering, node: fx.Node, site: Site, geometry: ConvGeometry
) -> frozenset[int]:
    """Groups are of different nature where they see data, or a width of several natures."""
    alike = lowering.random(site.input) and not lowering.cuts(site.input)
    if alike or geometry.groups == 1:
        return frozenset()
    outputs = int(node.meta["val"].shape[1]) // geometry.groups
    return frozenset(range(outputs, outputs * geometry.groups, outputs))
