"""Padding in front of a convolution, which becomes part of its windows.

A window knows of zeros, and of the other end of the image, without reading a padded copy: equal
positions stay equal positions, and no position exists twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch import fx

from tangency.infinite.lowering import Lowering
from tangency.program.geometry import PADS, ConvGeometry, PadGeometry, pad_geometry
from tangency.program.operations import base_name
from tangency.program.sites import Site

__all__ = ["Border", "without_padding"]


@dataclass(frozen=True)
class Border:
    """What lies around one dimension of an image.

    Attributes:
        front, back: how many positions are padded.
        wraps: whether they show the other end of the image; else they are zero.
    """

    front: int
    back: int
    wraps: bool = False

    def within(self, front: int, back: int, *, wraps: bool) -> Border | None:
        """This border with another one between it and the image; None if that is no border."""
        if (front, back) == (0, 0):
            return self
        bare = (self.front, self.back) == (0, 0)
        if min(front, back) < 0 or self.wraps or (wraps and not bare):
            return None
        return Border(self.front + front, self.back + back, wraps)


def without_padding(
    lowering: Lowering, site: Site, geometry: ConvGeometry
) -> tuple[Site, tuple[Border, ...]]:
    """The site of a convolution that reads what was padded for it, and the borders of that.

    Only zeros and circular padding are borders of an image; a transposed convolution reads its
    input as it is.
    """
    pairs = zip(geometry.padding_before, geometry.padding_after, strict=True)
    borders = tuple(Border(front, back) for front, back in pairs)
    source = site.input
    while not geometry.transposed and base_name(source) in PADS:
        inner = cast(fx.Node, source.args[0])
        wider = _within(borders, pad_geometry(source))
        if wider is None or lowering.program.nature[inner] != lowering.program.nature[source]:
            break
        source, borders = inner, wider
    return replace(site, input=source), borders


def _within(borders: tuple[Border, ...], pad: PadGeometry) -> tuple[Border, ...] | None:
    """Borders with those of a padding within them; None if they are not borders any more."""
    wraps = pad.mode == "circular"
    zeros = pad.mode == "constant" and pad.value == 0
    batch_and_channels, spatial = pad.amounts[:2], pad.amounts[2:]
    if not (wraps or zeros) or any(amounts != (0, 0) for amounts in batch_and_channels):
        return None
    found = []
    for border, (front, back) in zip(borders, spatial, strict=True):
        wider = border.within(front, back, wraps=wraps)
        if wider is None:
            return None
        found.append(wider)
    return tuple(found)
