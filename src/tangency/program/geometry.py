"""Kernel, stride, padding and dilation of convolutions and poolings, per spatial dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from torch import fx

from tangency.program.axes import shape_of
from tangency.program.operations import arguments, base_name

__all__ = [
    "CONVOLUTIONS",
    "POOLS",
    "ConvGeometry",
    "PoolGeometry",
    "conv_geometry",
    "pool_geometry",
]

CONVOLUTIONS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
)

POOLS = ("avg_pool1d", "avg_pool2d", "avg_pool3d")

Sizes: TypeAlias = tuple[int, ...]
"""One number per spatial dimension."""


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution's geometry; every tuple has one entry per spatial dimension.

    Output position p reads the inputs `p * stride - padding_before + k * dilation` for
    `0 <= k < kernel`; what lies outside the input is zero. A transposed convolution is the adjoint:
    input position q is written to the outputs `q * stride - padding_before + k * dilation`.

    Attributes:
        kernel: number of taps.
        stride: step between neighbouring outputs (transposed: inputs).
        padding_before: zeros in front (transposed: outputs cropped in front).
        padding_after: zeros behind (transposed: outputs cropped behind).
        dilation: step between taps.
        groups: number of groups of channels that do not see each other.
        transposed: whether it is a transposed convolution.
        output_padding: outputs added behind (transposed convolutions only).
    """

    kernel: Sizes
    stride: Sizes
    padding_before: Sizes
    padding_after: Sizes
    dilation: Sizes
    groups: int
    transposed: bool
    output_padding: Sizes


def conv_geometry(node: fx.Node) -> ConvGeometry:
    """The geometry of a convolution node (an operation in `CONVOLUTIONS`)."""
    given = arguments(node)
    kernel = shape_of(cast(fx.Node, given["weight"]))[2:]
    rank = len(kernel)
    dilation = _per_dimension(given["dilation"], rank)
    before, after = _padding(given["padding"], kernel, dilation)
    return ConvGeometry(
        kernel=kernel,
        stride=_per_dimension(given["stride"], rank),
        padding_before=before,
        padding_after=after,
        dilation=dilation,
        groups=cast(int, given["groups"]),
        transposed=bool(given.get("transposed", base_name(node).startswith("conv_transpose"))),
        output_padding=_per_dimension(given.get("output_padding", 0), rank),
    )


def _padding(padding: object, kernel: Sizes, dilation: Sizes) -> tuple[Sizes, Sizes]:
    """Zeros in front and behind; "same" puts the odd one behind, as torch does."""
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        before = tuple(t // 2 for t in total)
        return before, tuple(t - b for t, b in zip(total, before, strict=True))
    both = _per_dimension(0 if padding == "valid" else padding, len(kernel))
    return both, both


def _per_dimension(value: object, rank: int) -> Sizes:
    """A number, or a list of one or `rank` numbers, for every spatial dimension."""
    sizes = (value,) if isinstance(value, int) else tuple(cast(Sequence[int], value))
    return sizes * rank if len(sizes) == 1 else sizes


@dataclass(frozen=True)
class PoolGeometry:
    """An average pooling's geometry; every tuple has one entry per spatial dimension.

    Output position p averages the inputs `p * stride - padding + k` for `0 <= k < kernel`.

    Attributes:
        kernel: extent of the window.
        stride: step between neighbouring outputs.
        padding: zeros on both sides.
        ceil_mode: whether a window that starts inside the (left-padded) input but ends outside
            counts.
        count_include_pad: whether zeros of the padding count in the divisor.
        divisor_override: the divisor, if it is prescribed.
    """

    kernel: Sizes
    stride: Sizes
    padding: Sizes
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None


def pool_geometry(node: fx.Node) -> PoolGeometry:
    """The geometry of an average pooling node (an operation in `POOLS`)."""
    given = arguments(node)
    rank = int(base_name(node)[-2])
    kernel = _per_dimension(given["kernel_size"], rank)
    return PoolGeometry(
        kernel=kernel,
        stride=_per_dimension(given["stride"], rank) if given["stride"] else kernel,
        padding=_per_dimension(given["padding"], rank),
        ceil_mode=bool(given["ceil_mode"]),
        count_include_pad=bool(given["count_include_pad"]),
        divisor_override=cast("int | None", given.get("divisor_override")),
    )
