"""Pixel shuffles: parts of the width become positions, and the other way round."""

from __future__ import annotations

from typing import cast

from torch import fx

from tangency.infinite.lowering import Lowering, cut_rule, rule
from tangency.infinite.values.copies import Copies
from tangency.infinite.values.value import Value
from tangency.program.axes import resolve
from tangency.program.operations import argument


@rule("pixel_shuffle")
def pixel_shuffle(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Places inside a pixel show different coordinates of the width: independent copies."""
    source, places = cast(fx.Node, node.args[0]), _places(lowering, node)
    copied = tuple(
        axis
        for dim in (-2, -1)
        for axis in resolve(lowering.program.axes[node][dim])
        if axis not in resolve(lowering.program.axes[source][dim])
    )
    value = lowering.strand(source, start * places, length * places)
    if value.bundled:
        raise lowering.unsupported(
            node,
            "makes pixels of channels that depend on each other, as a depthwise convolution made "
            "several of each: a 1x1 convolution between the two makes them independent",
        )
    return Copies(value, copied)


def _places(lowering: Lowering, node: fx.Node) -> int:
    """Places inside a pixel."""
    source = cast(fx.Node, node.args[0])
    if lowering.program.atoms(source, "width") != resolve(lowering.program.axes[source][-3]):
        raise lowering.unsupported(node, "makes pixels of channels that are not a whole width")
    return cast(int, argument(node, 1, "upscale_factor")) ** 2


@cut_rule("pixel_shuffle")
def pixel_shuffle_cuts(lowering: Lowering, node: fx.Node) -> frozenset[int]:
    places = _places(lowering, node)
    cuts = lowering.cuts(cast(fx.Node, node.args[0]))
    if any(cut % places for cut in cuts):
        raise lowering.unsupported(node, "shuffles a width that changes its nature inside a pixel")
    return frozenset(cut // places for cut in cuts)


@rule("pixel_unshuffle")
def pixel_unshuffle(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """Places inside a pixel stay positions, which the next weight contracts with the channels."""
    return lowering.strand(cast(fx.Node, node.args[0]), start, length)
