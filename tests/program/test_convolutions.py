"""Convolutions: axes of their results and the geometry that their nodes describe."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tangency.program.capture import Program, capture
from tangency.program.geometry import CONVOLUTIONS, ConvGeometry, conv_geometry
from tangency.program.operations import base_name


def convolutions(program: Program) -> list[fx.Node]:
    return [node for node in program.axes if base_name(node) in CONVOLUTIONS]


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "1d": (nn.Conv1d(3, 8, 3), (3, 10), "(n, w8, p8)"),
    "2d, strided": (nn.Conv2d(3, 8, 3, stride=(2, 1)), (3, 9, 7), "(n, w8, p4, p5)"),
    "same": (nn.Conv2d(3, 8, (2, 3), padding="same"), (3, 5, 6), "(n, w8, p5, p6)"),
    "valid": (nn.Conv2d(3, 8, (2, 3), padding="valid"), (3, 5, 6), "(n, w8, p4, p4)"),
    "3d": (nn.Conv3d(1, 8, 3, padding=1), (1, 5, 6, 7), "(n, w8, p5, p6, p7)"),
    "to one position": (nn.Conv2d(3, 8, (5, 1)), (3, 5, 6), "(n, w8, 1, p6)"),
    "from one position": (nn.Conv1d(3, 8, 1, padding=2), (3, 1), "(n, w8, p5)"),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 5, 6), "(n, w8, p3, p4)"),
    "transposed": (nn.ConvTranspose2d(4, 8, 3, stride=2), (4, 5, 6), "(n, w8, p11, p13)"),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 2, stride=2, groups=2), (4, 5), "(n, w6, p10)"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_axes(name: str) -> None:
    layer, shape, expected = LAYERS[name]
    program = capture(layer, torch.randn(2, *shape))
    assert program.describe(program.output) == expected
    (site,) = program.sites.values()
    assert (site.role, site.names) == ("convolution", ("weight", "bias"))


def test_positions_are_new_even_at_equal_size() -> None:
    program = capture(nn.Conv2d(3, 3, 3, padding=1), torch.randn(2, 3, 5, 6))
    (node,) = convolutions(program)
    before = program.atoms(program.sites[node].input, "position")
    assert not set(map(id, before)) & set(map(id, program.atoms(node, "position")))


def test_a_residual_branch_aligns_the_positions() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return h + self.b(h)

    program = capture(Residual(), torch.randn(2, 3, 5, 6))
    assert program.describe(program.output) == "(n, w4, p5, p6)"
    first, second = convolutions(program)
    assert program.atoms(first, "position") == program.atoms(second, "position")


def taps(geometry: ConvGeometry, size: int, d: int) -> dict[int, list[int]]:
    """Inputs that every output position reads along dimension `d`, from the definition."""
    g = geometry
    span = g.dilation[d] * (g.kernel[d] - 1) + 1
    count = (size + g.padding_before[d] + g.padding_after[d] - span) // g.stride[d] + 1
    return {
        p: [
            q
            for k in range(g.kernel[d])
            if 0 <= (q := p * g.stride[d] - g.padding_before[d] + k * g.dilation[d]) < size
        ]
        for p in range(count)
    }


GEOMETRIES: list[dict[str, object]] = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (1, 3), "padding": (2, 0), "dilation": (1, 2)},
    {"padding": "same"},
    {"padding": "same", "dilation": (3, 1)},
    {"padding": "valid"},
]


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("functional", [False, True])
def test_geometry(options: dict[str, object], functional: bool) -> None:
    """The inputs that an output depends on, by autograd, are those that the geometry names."""
    shape, kernel = (7, 6), (2, 3)
    layer = nn.Conv2d(1, 1, kernel, bias=False, **options)  # type: ignore[arg-type]
    model = Functional(layer.weight, options) if functional else layer
    program = capture(model, torch.randn(2, 1, *shape))
    geometry = conv_geometry(convolutions(program)[0])
    rows, columns = (taps(geometry, size, d) for d, size in enumerate(shape))
    x = torch.randn(1, 1, *shape, requires_grad=True)
    out = layer(x)
    assert tuple(out.shape[2:]) == (len(rows), len(columns))
    for i, j in itertools.product(rows, columns):
        (gradient,) = torch.autograd.grad(out[0, 0, i, j], x, retain_graph=True)
        expected = torch.zeros(shape, dtype=torch.bool)
        for a, b in itertools.product(rows[i], columns[j]):
            expected[a, b] = True
        assert torch.equal(gradient[0, 0] != 0, expected)


class Functional(nn.Module):
    def __init__(self, weight: nn.Parameter, options: dict[str, object]) -> None:
        super().__init__()
        self.weight, self.options = weight, options

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, **self.options)  # type: ignore[arg-type]


def test_geometry_of_a_transposed_convolution() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, (2, 1), (1, 0), (1, 0), groups=2, dilation=(1, 2))
    program = capture(layer, torch.randn(2, 4, 5, 6))
    assert conv_geometry(convolutions(program)[0]) == ConvGeometry(
        kernel=(3, 3),
        stride=(2, 1),
        padding_before=(1, 0),
        padding_after=(1, 0),
        dilation=(1, 2),
        groups=2,
        transposed=True,
        output_padding=(1, 0),
    )
