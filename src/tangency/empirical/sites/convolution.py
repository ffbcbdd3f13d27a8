"""Convolutions: linear maps of the windows of their input.

A group of channels has a matrix of its own; with windows laid out as vectors, the gradient is that
of a linear layer over the output's positions.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, fx

from tangency.empirical.gradients import Factors, Gradients
from tangency.empirical.passage import Order, Passage, batch_axis
from tangency.empirical.sites.registry import Site, bias_site, site_rule
from tangency.empirical.windows import Windows
from tangency.program.geometry import CONVOLUTIONS, ConvGeometry, conv_geometry
from tangency.program.operations import arguments


@site_rule(*CONVOLUTIONS)
def convolution(node: fx.Node, parameter: fx.Node) -> Site | None:
    """Convolutions and transposed convolutions of any rank, with stride, padding, dilation and
    groups.
    """
    given = arguments(node)
    value = cast(fx.Node, given["input"])
    roles = [name for name in ("input", "weight", "bias") if given.get(name) is parameter]
    if batch_axis(node) != 0 or batch_axis(value) != 0:
        return None
    if roles == ["bias"]:
        return bias_site(node, 1)
    if roles != ["weight"]:
        return None
    geometry = conv_geometry(node)
    return (_transposed if geometry.transposed else _direct)(node, value, geometry)


def _direct(node: fx.Node, value: fx.Node, geometry: ConvGeometry) -> Site:
    def gradient(passage: Passage, order: Order) -> Gradients:
        return Factors(
            passage.of(value, order)[None],
            _positions(passage.cotangents_of(node, order), geometry)[None],
            windows=Windows(geometry),
        )

    return Site(node, "factors", (value,), gradient)


def _transposed(node: fx.Node, value: fx.Node, geometry: ConvGeometry) -> Site:
    """The adjoint: inputs and cotangents change places."""

    def gradient(passage: Passage, order: Order) -> Gradients:
        return Factors(
            _positions(passage.of(value, order), geometry)[None],
            Windows(geometry).of(passage.cotangents_of(node, order))[None],
            transposed=True,
        )

    return Site(node, "factors", (value,), gradient)


def _positions(values: Tensor, geometry: ConvGeometry) -> Tensor:
    """(*lead, m, channels, *space) as (*lead, groups, positions, channels of a group)."""
    rank = len(geometry.kernel)
    groups = values.unflatten(-rank - 1, (geometry.groups, -1))
    lead = groups.dim() - rank - 3
    # (*lead, m, groups, channels, *space) -> (*lead, groups, m, *space, channels)
    moved: Tensor = groups.movedim(lead + 1, lead).movedim(lead + 2, -1)
    return moved.flatten(lead + 1, -2)
