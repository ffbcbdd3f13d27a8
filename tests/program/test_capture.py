"""Axes, natures and the printed table; operations without a rule are refused with their place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangency.errors import InvalidInput, UnsupportedOperation
from tangency.program.capture import Program, capture
from tangency.program.operations import base_name

FEATURES, TOKENS = 6, 5


class Net(nn.Module):
    """A layer `a` of width 12 and any function of its values `h` and the input `x`."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a = nn.Linear(FEATURES, 12)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.a(x), x)


def flat(function: Callable[[Tensor, Tensor], Tensor]) -> Program:
    """h is (n, w12)."""
    return capture(Net(function), torch.randn(2, FEATURES))


def tokens(function: Callable[[Tensor, Tensor], Tensor]) -> Program:
    """h is (n, p5, w12)."""
    return capture(Net(function), torch.randn(2, TOKENS, FEATURES))


# Axes of the output -> ways to write it. The sizes 5 and 12 tell positions and width apart.
OF_FLAT: dict[str, list[Callable[[Tensor, Tensor], Tensor]]] = {
    "(n, w3, w4)": [
        lambda h, x: h.view(-1, 3, 4),
        lambda h, x: h.reshape(h.shape[0], 3, -1),
        lambda h, x: h.unflatten(1, (3, 4)),
        lambda h, x: h[:, None].view(x.size(0), 3, 4),
    ],
    "(n, w4, w3)": [
        lambda h, x: h.view(-1, 3, 4).transpose(1, 2),
        lambda h, x: h.unflatten(-1, (3, 4)).permute(0, 2, 1),
        lambda h, x: h.unflatten(-1, (3, 4)).mT,
        lambda h, x: torch.swapaxes(h.view(-1, 3, 4), -1, -2),
        lambda h, x: torch.movedim(h.view(-1, 3, 4), 2, 1),
    ],
    "(n, w4*w3)": [
        lambda h, x: h.view(-1, 3, 4).mT.flatten(1),
        lambda h, x: h.view(-1, 3, 4).permute(0, 2, 1).reshape(x.shape[0], 12),
    ],
    "(n, w3*w4)": [lambda h, x: h.view(-1, 3, 4).flatten(1)],
    "(n, w3*w2)": [lambda h, x: h.view(-1, 4)[:, :2].reshape(-1, 6)],
    "(n, w2, w2*w3)": [lambda h, x: h.view(-1, 4, 3).view(-1, 2, 6)],
    "(n, w6)": [
        lambda h, x: h.chunk(2, dim=-1)[1],
        lambda h, x: h.split(6, dim=1)[0],
        lambda h, x: h[:, :6],
        lambda h, x: h[..., 3:9],
        lambda h, x: h.narrow(1, 2, 6),
        lambda h, x: torch.tensor_split(h, 2, dim=1)[1],
    ],
    "(n, w8)": [
        lambda h, x: h.split([4, 8], dim=1)[1],
        lambda h, x: torch.cat([h[:, :4], h[:, 4:8]], dim=-1),
    ],
    "(n, w18)": [
        lambda h, x: torch.cat([h, x], dim=-1),
        lambda h, x: torch.concat((x, h), 1),
    ],
    "(n, 1, w12)": [
        lambda h, x: h[:, None],
        lambda h, x: h.unsqueeze(1),
        lambda h, x: torch.stack([h], dim=1),
    ],
    "(n, p2, w12)": [
        lambda h, x: torch.stack([h, torch.relu(h)], dim=1),
        lambda h, x: torch.cat([h[:, None], h[:, None]], dim=1),
    ],
    "(n, w12, p2)": [lambda h, x: torch.stack((h, h), dim=-1)],
    "(n)": [lambda h, x: h[:, 3], lambda h, x: h.unbind(1)[0], lambda h, x: h.select(-1, -1)],
    "(n, w12)": [
        lambda h, x: h + x.mean(1, keepdim=True),
        lambda h, x: h * h - 2 * h,
        lambda h, x: torch.where(x[:, :1] > 0, h, -h),
        lambda h, x: h.unsqueeze(2).squeeze(2),
        lambda h, x: h[:, None, :].squeeze(),
        lambda h, x: torch.maximum(h, x.amax(1)[:, None]),
        lambda h, x: F.layer_norm(h, (12,)),
    ],
}
OF_TOKENS: dict[str, list[Callable[[Tensor, Tensor], Tensor]]] = {
    "(n, p5*w12)": [
        lambda h, x: h.flatten(1),
        lambda h, x: h.view(-1, 60),
        lambda h, x: h.reshape(x.shape[0], TOKENS * 12),
    ],
    "(n, w12*p5)": [lambda h, x: h.mT.flatten(1)],
    "(n, w12, p5)": [lambda h, x: h.transpose(1, 2), lambda h, x: h.permute(0, -1, 1)],
    "(n, w12)": [
        lambda h, x: h[:, 2],
        lambda h, x: h.select(1, -1),
        lambda h, x: h.unbind(1)[4],
        lambda h, x: h[:, 1:2].squeeze(1),
        lambda h, x: h.mean(dim=1),
        lambda h, x: h.sum(-2),
    ],
    "(n, p3, w12)": [
        lambda h, x: h[:, 1:4],
        lambda h, x: h[:, ::2],
        lambda h, x: h[:, -3:],
        lambda h, x: h.split([2, 3], dim=1)[1],
        lambda h, x: torch.stack([h[:, 0], h[:, 4], h[:, 0]], dim=1),
    ],
    "(n, p10, w12)": [lambda h, x: torch.cat([h, h], dim=1)],
    "(n, p5, w12)": [
        lambda h, x: h + h.mean(1, keepdim=True),
        lambda h, x: h * x[..., :1],
        lambda h, x: h.flatten(1).view(-1, TOKENS, 12),
    ],
    "(n, p5, w3, w4)": [lambda h, x: h.view(x.shape[0], -1, 3, 4)],
    "(n, p5*w3, w4)": [lambda h, x: h.view(x.size(0), -1, 4)],
    "(n, w3, p5, w4)": [lambda h, x: h.unflatten(2, (3, 4)).transpose(1, 2)],
    "(n, p5)": [lambda h, x: h[..., 7]],
    "(n, p5, w9)": [lambda h, x: torch.cat([h[..., :3], x], dim=2)],
}


def spellings(table: dict[str, list[Callable[[Tensor, Tensor], Tensor]]]) -> list[object]:
    return [
        pytest.param(axes, way, id=f"{axes} {k}")
        for axes, ways in table.items()
        for k, way in enumerate(ways)
    ]


@pytest.mark.parametrize(("axes", "way"), spellings(OF_FLAT))
def test_axes_of_a_vector(axes: str, way: Callable[[Tensor, Tensor], Tensor]) -> None:
    program = flat(way)
    assert program.describe(program.output) == axes


@pytest.mark.parametrize(("axes", "way"), spellings(OF_TOKENS))
def test_axes_of_tokens(axes: str, way: Callable[[Tensor, Tensor], Tensor]) -> None:
    program = tokens(way)
    assert program.describe(program.output) == axes


def test_adding_two_values_makes_their_axes_the_same() -> None:
    """The axis of one tells how the other splits, before and after."""
    program = flat(lambda h, x: (h.view(-1, 3, 4) + torch.relu(h.view(-1, 3, 4))).flatten(1) + h)
    linear = next(node for node in program.axes if base_name(node) == "linear")
    assert program.describe(linear) == "(n, w3*w4)"
    assert program.atoms(linear) == program.atoms(program.output)
    assert len(program.atoms(linear, "width")) == 2
    assert len(program.atoms(linear, "batch")) == 1
    assert program.atoms(linear, "position") == ()


def node_named(program: Program, operation: str) -> list[object]:
    return [node for node in program.axes if base_name(node) == operation]


class Normalised(nn.Module):
    """Input normalisation with buffers and operations that have no axis rule."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1, 1, FEATURES))
        self.a = nn.Linear(FEATURES, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / x.std(-1, keepdim=True)
        x = torch.cumsum(torch.sort(x, dim=-1).values.softmax(-1), dim=-1)
        hidden = torch.tanh(self.a(x))
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-3)
        return hidden * scale


def test_natures() -> None:
    program = capture(Normalised(), torch.randn(2, FEATURES))
    nature = {name: program.nature[node_named(program, name)[0]] for name in NATURES}
    assert nature == NATURES


NATURES = {
    "sub": "concrete",
    "std": "concrete",
    "softmax": "concrete",
    "cumsum": "concrete",
    "linear": "random",
    "tanh": "random",
    "pow": "random",
    "mean": "statistic",
    "add": "statistic",
    "rsqrt": "statistic",
    "mul": "random",
}


def test_what_loses_its_width_is_a_statistic() -> None:
    for way, nature in (
        (lambda h, x: h + h.mean(-1, keepdim=True), "statistic"),
        (lambda h, x: h + h.mean((1, 2), keepdim=True), "statistic"),
        (lambda h, x: h + h.sum(-1, keepdim=True), "statistic"),
        (lambda h, x: h + h.mean(1, keepdim=True), "random"),
    ):
        program = tokens(way)
        (node,) = node_named(program, "mean") or node_named(program, "sum")
        assert program.nature[node] == nature


def test_a_mean_over_a_part_of_the_width_stays_random() -> None:
    program = flat(lambda h, x: h.view(-1, 3, 4).mean(1))
    assert program.nature[program.output] == "random"
    assert program.describe(program.output) == "(n, w4)"


def test_parameters_alone_are_parameters() -> None:
    class Scaled(Net):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, 2 * self.a.weight, self.a.bias)

    program = capture(Scaled(lambda h, x: h), torch.randn(2, FEATURES))
    natures = {base_name(n): kind for n, kind in program.nature.items()}
    assert natures["mul"] == "parameter"
    assert natures["linear"] == "random"


def test_a_layer_called_several_times() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(FEATURES, FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = torch.relu(self.a(x))
            return x

    program = capture(Again(), torch.randn(2, FEATURES))
    assert [site.names for site in program.sites.values()] == [("a.weight", "a.bias")] * 3


def test_the_table() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(FEATURES))
            self.body = nn.Sequential(nn.Linear(FEATURES, 512), nn.ReLU(), nn.Linear(512, 1))
            self.unused = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x - self.mean).mean(1)

    lines = str(capture(Table(), torch.randn(2, TOKENS, FEATURES))).splitlines()
    cells = [[cell for cell in line.split("  ") if cell] for line in lines]
    rows = [[cell.strip() for cell in row[1:]] for row in cells]
    assert rows == [
        ["operation", "axes", "parameters"],
        ["constant", "(p6)"],
        ["input", "(n, p5, p6)"],
        ["sub", "(n, p5, p6)"],
        ["linear", "(n, p5, w512)", "body.0.weight, body.0.bias"],
        ["relu", "(n, p5, w512)"],
        ["linear", "(n, p5, 1)", "body.2.weight, body.2.bias"],
        ["mean", "(n, 1)"],
    ]
    assert cells[0][0] == "node"
    starts = [lines[0].index(name) for name in rows[0]]
    for line, row in zip(lines, rows, strict=True):
        assert all(line[start:].startswith(cell) for start, cell in zip(starts, row, strict=False))


def test_evaluation_mode_and_nothing_changed() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.Dropout(0.5), nn.LayerNorm(4))
    model[2].eval()
    state = copy.deepcopy(model.state_dict())
    program = capture(model, torch.randn(2, FEATURES))
    (dropout,) = node_named(program, "dropout")
    assert dropout.args[2] is False
    assert [module.training for module in model] == [True, True, False]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class Inner(nn.Module):
    """An operation two modules deep."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a = nn.Linear(FEATURES, 12)
        self.body = nn.ModuleList([nn.Identity(), Apply(operation)])

    def forward(self, x: Tensor) -> Tensor:
        return self.body[1](self.a(x))


class Apply(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, h: Tensor) -> Tensor:
        return self.operation(h)


UNKNOWN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softmax": (lambda h: torch.softmax(h, -1), "aten.softmax.int"),
    "sort": (lambda h: h.sort(-1).values, "aten.sort.default"),
    "cumsum": (lambda h: h.cumsum(-1), "aten.cumsum.default"),
    "pooling": (lambda h: F.max_pool1d(h[:, None], 2), "aten.max_pool1d.default"),
    "over the batch": (lambda h: h - h.mean(0), "aten.mean.dim"),
    "concatenated examples": (lambda h: torch.cat([h, h])[::2], "aten.cat.default"),
    "one example": (lambda h: h + h[0], "aten.select.int"),
    "merged axes selected": (
        lambda h: torch.stack([h, h], 1).flatten(1)[:, 3],
        "aten.select.int",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_operation_without_a_rule(name: str) -> None:
    """Named with module path, operation and the line where it stands."""
    function, operation = UNKNOWN[name]
    with pytest.raises(UnsupportedOperation) as caught:
        capture(Inner(function), torch.randn(2, FEATURES))
    message = str(caught.value)
    assert f"{operation} in module 'body.1'" in message
    line = Apply.forward.__code__.co_firstlineno + 1
    assert f'{Path(__file__).name}", line {line}, in forward: return self.operation(h)' in message


def test_a_tensor_and_its_own_transpose() -> None:
    def symmetrised(h: Tensor, x: Tensor) -> Tensor:
        square = h[:, :9].view(-1, 3, 3)
        return square + square.mT

    with pytest.raises(UnsupportedOperation, match="aligns two axes of one tensor"):
        flat(symmetrised)


def test_an_input_without_a_batch_is_refused_with_its_path() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv1d(FEATURES, 4, 1)))
    with pytest.raises(
        UnsupportedOperation, match=r"aten\.conv1d\.default in module 'inner\.0\.0' "
    ):
        capture(Transposed(model), torch.randn(2, FEATURES))


class Transposed(nn.Module):
    """Takes the batch for a spatial dimension."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x.T)
        return out.T


def test_the_same_operations_on_data_are_executed() -> None:
    """A convolution of the data by constants is a concrete value like any other."""

    class Filtered(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = F.conv1d(x[:, None], torch.ones(1, 1, 1))[:, 0].softmax(-1)
            return self.a(x.sort(-1).values)

    program = capture(Filtered(lambda h, x: h), torch.randn(2, FEATURES))
    assert program.describe(program.output) == "(n, w12)"


def test_bad_data_is_refused() -> None:
    with pytest.raises(InvalidInput, match="example holds NaN"):
        capture(nn.Linear(2, 1), torch.full((3, 2), torch.nan))
