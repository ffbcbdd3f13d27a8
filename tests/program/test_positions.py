"""Operations on positions: axes of their results, and the geometry that their nodes describe."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tangency.errors import UnsupportedOperation
from tangency.program.capture import Program, capture
from tangency.program.geometry import PADS, POOLS, pad_geometry, patch_geometry, pool_geometry
from tangency.program.operations import base_name

Function = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A 1x1 convolution to width 8 (or none) and a function of its values."""

    def __init__(self, function: Function, rank: int, *, layer: bool = True) -> None:
        super().__init__()
        kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        self.layer = kinds[rank](3, 8, 1) if layer else nn.Identity()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def captured(function: Function, *sizes: int) -> Program:
    return capture(Net(function, len(sizes)), torch.randn(2, 3, *sizes))


OF_IMAGES: dict[str, list[Function]] = {
    "(n, w8, p2, p3)": [
        lambda h: F.avg_pool2d(h, 2, ceil_mode=True),
        lambda h: F.adaptive_avg_pool2d(h, (2, 3)),
        lambda h: F.max_pool2d(h, 2, padding=(0, 1), stride=2),
        lambda h: F.adaptive_max_pool2d(h, (2, 3)),
        lambda h: F.interpolate(h, size=(2, 3), mode="area"),
        lambda h: F.lp_pool2d(h, 2, 2, ceil_mode=True),
    ],
    "(n, w8, p8, p10)": [
        lambda h: F.interpolate(h, scale_factor=2),
        lambda h: F.interpolate(h, size=(8, 10), mode="bilinear"),
        lambda h: F.interpolate(h, scale_factor=2.0, mode="bicubic", align_corners=True),
        lambda h: F.interpolate(h, size=(8, 10), mode="nearest-exact"),
        lambda h: F.pad(h, (2, 3, 4, 0)),
        lambda h: h.tile((1, 1, 2, 2)),
        lambda h: h.repeat_interleave(2, 2).repeat(1, 1, 1, 2),
    ],
    "(n, w8, p4, p5)": [
        lambda h: F.avg_pool2d(h, 3, 1, 1, count_include_pad=False),
        lambda h: h.flip(2),
        lambda h: h.roll((1, -1), (2, 3)),
        lambda h: F.pad(h, (1, -1)),
        lambda h: h.cumsum(3),
        lambda h: h.softmax(2),
        lambda h: h.tril(),
        lambda h: F.group_norm(h, 2),
        lambda h: F.instance_norm(h),
        lambda h: F.layer_norm(h, h.shape[1:]),
        lambda h: h[:, :, [0, 3, 1, 2]],
        lambda h: h.sort(2).values,
        lambda h: h.topk(5)[0],
    ],
    "(n, w8, p6, p6)": [
        lambda h: F.pad(h, (1, 0, 1, 1), mode="reflect"),
        lambda h: F.pad(h, (0, 1, 2, 0), mode="replicate"),
        lambda h: F.pad(h, (0, 1, 2, 0), mode="circular"),
    ],
    "(n, w8, p5, p4)": [lambda h: h.rot90(1, (2, 3)), lambda h: h.mT.flip(-1)],
    "(n, w8)": [
        lambda h: F.adaptive_avg_pool2d(h, 1).flatten(1),
        lambda h: h.amax((2, 3)),
        lambda h: h.flatten(2).max(-1).values,
        lambda h: h.var((2, 3)),
        lambda h: h.logsumexp((2, 3)),
    ],
    "(n, w8*p2*p3, p3*p3)": [lambda h: F.unfold(h, (2, 3))],
    "(n, w8, p2, p5, p3)": [lambda h: h.unfold(2, 3, 1)],
    "(n, w2, p4*p2, p5*p2)": [lambda h: F.pixel_shuffle(h, 2)],
    "(n, w8*p2*p2, p2, p2)": [lambda h: F.pixel_unshuffle(h[..., :4], 2)],
    "(n, w4*w2, p4, p5)": [lambda h: F.channel_shuffle(h, 2)],
    "(n, w12, p4, p5)": [lambda h: F.pad(h, (0, 0, 0, 0, 2, 2))],
    "(n, w4, p4, p5)": [lambda h: F.glu(h, 1)],
    "(n, 1, p4, p5)": [lambda h: torch.linalg.vector_norm(h, dim=1, keepdim=True)],
    "(n, w16, p4, p5)": [lambda h: torch.hstack([h, h])],
    "(n, w8, p2, p3, p4, p5)": [lambda h: h[:, :, None, None].expand(-1, -1, 2, 3, -1, -1)],
    "(n, w8, p3, p5)": [
        lambda h: torch.einsum("nchw,hk->nckw", h, torch.ones(4, 3)),
        lambda h: torch.matmul(torch.ones(3, 4), h),
        lambda h: h.index_select(2, torch.tensor([0, 2, 2])),
    ],
}
OF_SERIES: dict[str, list[Function]] = {
    "(n, w8, p3)": [
        lambda h: F.avg_pool1d(h, 2),
        lambda h: F.adaptive_avg_pool1d(h, 3),
        lambda h: F.max_pool1d(h, 2),
        lambda h: F.lp_pool1d(h, 2, 2),
    ],
    "(n, w8, p12)": [lambda h: F.interpolate(h, scale_factor=2, mode="linear")],
}
OF_VOLUMES: dict[str, list[Function]] = {
    "(n, w8, p2, 1, p3)": [
        lambda h: F.avg_pool3d(h, (2, 3, 2)),
        lambda h: F.adaptive_avg_pool3d(h, (2, 1, 3)),
    ],
    "(n, w8, p8, p6, p12)": [lambda h: F.interpolate(h, scale_factor=2, mode="trilinear")],
}


def spellings(table: dict[str, list[Function]]) -> list[object]:
    return [
        pytest.param(axes, way, id=f"{axes} {k}")
        for axes, ways in table.items()
        for k, way in enumerate(ways)
    ]


@pytest.mark.parametrize(("axes", "way"), spellings(OF_IMAGES))
def test_axes_of_images(axes: str, way: Function) -> None:
    program = captured(way, 4, 5)
    assert program.describe(program.output) == axes


@pytest.mark.parametrize(("axes", "way"), spellings(OF_SERIES))
def test_axes_of_series(axes: str, way: Function) -> None:
    program = captured(way, 6)
    assert program.describe(program.output) == axes


@pytest.mark.parametrize(("axes", "way"), spellings(OF_VOLUMES))
def test_axes_of_volumes(axes: str, way: Function) -> None:
    program = captured(way, 4, 3, 6)
    assert program.describe(program.output) == axes


REFUSED: dict[str, tuple[Function, str]] = {
    "pooling the width": (lambda h: F.avg_pool1d(h.flatten(2).mT, 2), "along a width"),
    "flipped width": (lambda h: h.flip(1), "order of coordinates"),
    "softmax over the width": (lambda h: h.softmax(1), "softmax over a width"),
    "maximum of the width": (lambda h: h.amax(1), "no limit"),
    "chosen coordinates": (lambda h: h[:, [0, 2]], "alike in the limit"),
    "fixed matrix along the width": (lambda h: h.mT.transpose(1, 3) @ torch.ones(8, 2), "fixed"),
    "padded batch": (lambda h: F.pad(h, (0, 0, 0, 0, 0, 0, 0, 1))[:-1], "invents examples"),
    "rolled as if flat": (lambda h: h.roll(1), "as if it were flat"),
    "softmax over the batch": (lambda h: h.softmax(0), "couples the examples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_limit(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(UnsupportedOperation, match=reason):
        captured(function, 4, 5)


def node_of(program: Program, names: tuple[str, ...]) -> fx.Node:
    return next(node for node in program.axes if base_name(node) in names)


POOLINGS: list[dict[str, object]] = [
    {"kernel_size": 2},
    {"kernel_size": (2, 3), "stride": (1, 2)},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "padding": 1, "count_include_pad": False},
    {"kernel_size": 2, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "divisor_override": 5},
]


@pytest.mark.parametrize("options", POOLINGS, ids=str)
def test_pool_geometry(options: dict[str, object]) -> None:
    """The average by its definition, from the geometry alone."""
    program = captured(lambda h: F.avg_pool2d(h, **options), 5, 7)  # type: ignore[arg-type]
    g = pool_geometry(node_of(program, POOLS))
    x = torch.randn(1, 1, 5, 7, dtype=torch.float64)
    out = F.avg_pool2d(x, **options)  # type: ignore[arg-type]
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            starts = [p * s - a for p, s, a in zip((i, j), g.stride, g.padding, strict=True)]
            inside = [
                [q for q in range(start, start + k) if 0 <= q < size]
                for start, k, size in zip(starts, g.kernel, (5, 7), strict=True)
            ]
            padded = 1
            for start, k, size, a in zip(starts, g.kernel, (5, 7), g.padding, strict=True):
                padded *= min(start + k, size + a) - start
            taken = x[0, 0][inside[0]][:, inside[1]]
            divisor = padded if g.count_include_pad else taken.numel()
            expected = taken.sum() / (g.divisor_override or divisor)
            torch.testing.assert_close(out[0, 0, i, j], expected)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_pad_geometry(mode: str) -> None:
    program = captured(lambda h: F.pad(h, (1, 2, 3, 0), mode=mode), 4, 5)
    g = pad_geometry(node_of(program, PADS))
    assert g.amounts == ((0, 0), (0, 0), (3, 0), (1, 2))
    assert g.mode == mode


def test_pad_with_a_value_and_cropping() -> None:
    program = captured(lambda h: F.pad(h, (-1, 2), value=3.0), 4, 5)
    g = pad_geometry(node_of(program, PADS))
    assert (g.amounts[2:], g.value) == (((0, 0), (-1, 2)), 3.0)


def test_patch_geometry() -> None:
    program = captured(lambda h: F.unfold(h, (2, 3), (1, 2), (1, 0), (2, 1)), 5, 7)
    g = patch_geometry(node_of(program, ("im2col",)))
    assert (g.taps, g.stride, g.padding, g.dilation) == ((2, 3), (2, 1), (1, 0), (1, 2))
    x = torch.arange(1.0, 36).reshape(1, 1, 5, 7)
    patches = F.unfold(x, (2, 3), (1, 2), (1, 0), (2, 1)).reshape(*g.taps, *g.blocks)
    for index in torch.cartesian_prod(*(torch.arange(s) for s in patches.shape)).tolist():
        k, block = index[:2], index[2:]
        place = [
            p * s - a + t * d
            for p, s, a, t, d in zip(block, g.stride, g.padding, k, g.dilation, strict=True)
        ]
        within = all(0 <= q < size for q, size in zip(place, (5, 7), strict=True))
        assert patches[tuple(index)] == (x[0, 0, place[0], place[1]] if within else 0)


def test_the_same_operations_on_data_keep_the_examples() -> None:
    """Executed, whatever they mix."""

    def prepared(x: Tensor) -> Tensor:
        x = F.max_pool2d(x.flip(1), 2)
        return x.softmax(1)[:, [2, 0]].cumsum(1)

    model = nn.Sequential(Net(prepared, 2, layer=False), nn.Flatten(), nn.Linear(8, 4))
    program = capture(model, torch.randn(2, 3, 4, 4))
    assert program.describe(program.output) == "(n, w4)"
