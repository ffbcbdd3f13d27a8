"""Kernel, stride, padding and dilation of convolutions and poolings, per spatial dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from torch import fx

from tangency.program.axes import shape_of
from tangency.program.operations import arguments, base_name

__all__ = [
    "ADAPTIVE_POOLS",
    "CONVOLUTIONS",
    "MAX_POOLS",
    "PADS",
    "POOLS",
    "UPSAMPLINGS",
    "ConvGeometry",
    "PadGeometry",
    "PatchGeometry",
    "PoolGeometry",
    "conv_geometry",
    "pad_geometry",
    "patch_geometry",
    "pool_geometry",
    "spatial_rank",
]


def _each(*patterns: str) -> tuple[str, ...]:
    return tuple(pattern.format(rank) for pattern in patterns for rank in (1, 2, 3))


CONVOLUTIONS = ("convolution", *_each("conv{}d", "conv_transpose{}d"))
POOLS = _each("avg_pool{}d")
ADAPTIVE_POOLS = _each("adaptive_avg_pool{}d")
MAX_POOLS = _each("max_pool{}d")
UPSAMPLINGS = (
    *_each("upsample_nearest{}d", "_upsample_nearest_exact{}d"),
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)
PADS = (
    "pad",
    "constant_pad_nd",
    "_pad_circular",
    *_each("reflection_pad{}d", "replication_pad{}d"),
)

Sizes: TypeAlias = tuple[int, ...]
"""One number per spatial dimension."""

PadMode: TypeAlias = Literal["constant", "reflect", "replicate", "circular"]


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


def spatial_rank(node: fx.Node) -> int:
    """Number of spatial dimensions, from the digit in the operation's name (2 for `avg_pool2d`)."""
    return next(int(c) for c in reversed(base_name(node)) if c.isdigit())


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
    rank = spatial_rank(node)
    kernel = _per_dimension(given["kernel_size"], rank)
    return PoolGeometry(
        kernel=kernel,
        stride=_per_dimension(given["stride"], rank) if given["stride"] else kernel,
        padding=_per_dimension(given["padding"], rank),
        ceil_mode=bool(given["ceil_mode"]),
        count_include_pad=bool(given["count_include_pad"]),
        divisor_override=cast("int | None", given.get("divisor_override")),
    )


@dataclass(frozen=True)
class PatchGeometry:
    """The geometry of `im2col` (`F.unfold`): taps of a patch and blocks that patches are cut from.

    Block p, tap k is the input `p * stride - padding + k * dilation` (zero outside). Every tuple
    has one entry per spatial dimension; the output is (n, channels * taps, blocks).
    """

    taps: Sizes
    blocks: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes


def patch_geometry(node: fx.Node) -> PatchGeometry:
    """The geometry of an `im2col` node."""
    given = arguments(node)
    kernel, dilation, padding, stride = (
        _per_dimension(given[name], 2) for name in ("kernel_size", "dilation", "padding", "stride")
    )
    sizes = shape_of(cast(fx.Node, node.args[0]))[-2:]
    blocks = tuple(
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, d, p, s in zip(sizes, kernel, dilation, padding, stride, strict=True)
    )
    return PatchGeometry(kernel, blocks, stride, padding, dilation)


@dataclass(frozen=True)
class PadGeometry:
    """What is added in front of and behind every dimension of a tensor (cropped where negative).

    Attributes:
        amounts: (in front, behind) for every dimension of the tensor, batch and channels included.
        mode: where the added entries come from.
        value: the added number in mode "constant".
    """

    amounts: tuple[tuple[int, int], ...]
    mode: PadMode
    value: float


_PAD_MODES: dict[str, PadMode] = {
    "constant_pad_nd": "constant",
    "_pad_circular": "circular",
    **dict.fromkeys(_each("reflection_pad{}d"), "reflect"),
    **dict.fromkeys(_each("replication_pad{}d"), "replicate"),
}


def pad_geometry(node: fx.Node) -> PadGeometry:
    """The geometry of a padding node (an operation in `PADS`)."""
    given = arguments(node)
    amounts = cast(Sequence[int], given["pad"] if "pad" in given else given["padding"])
    name = base_name(node)
    mode = cast(PadMode, given["mode"]) if name == "pad" else _PAD_MODES[name]
    pairs = [(amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)]
    missing = len(shape_of(node)) - len(pairs)
    value = cast("float | None", given.get("value"))
    return PadGeometry(((0, 0),) * missing + tuple(reversed(pairs)), mode, value or 0.0)
