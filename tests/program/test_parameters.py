"""Parameters sliced, viewed and repeated before they are used, and parameters as values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.program.capture import Program, capture
from tangency.program.sites import ParameterUse, Site

E, T = 4, 5


class Bare(nn.Module):
    """Parameters and a function of them and tokens (n, T, E)."""

    def __init__(self, function: Callable[[Bare, Tensor], Tensor]) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(3 * E, E))
        self.b = nn.Parameter(torch.randn(3 * E))
        self.deep = nn.Parameter(torch.randn(2, 3, E, E))
        self.first = nn.Linear(E, E)
        self.pos = nn.Parameter(torch.randn(1, 2 * T, E))
        self.cls = nn.Parameter(torch.randn(1, 1, E))
        self.table = nn.Parameter(torch.randn(7, E))
        self.gamma = nn.Parameter(torch.randn(E))
        self.epsilon = nn.Parameter(torch.zeros(()))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def program(function: Callable[[Bare, Tensor], Tensor]) -> Program:
    return capture(Bare(function), torch.randn(2, T, E))


def last_site(function: Callable[[Bare, Tensor], Tensor]) -> Site:
    return list(program(function).sites.values())[-1]


def rows(start: int, stop: int) -> tuple[range, ...]:
    return (range(start, stop), range(E))


BLOCKS: dict[str, tuple[Callable[[Bare, Tensor], Tensor], ParameterUse]] = {
    "slice": (lambda m, x: F.linear(x, m.W[E : 2 * E]), ParameterUse("W", block=rows(E, 2 * E))),
    "chunk": (lambda m, x: F.linear(x, m.W.chunk(3)[2]), ParameterUse("W", block=rows(8, 12))),
    "split": (
        lambda m, x: F.linear(x, m.W.split([E, 2 * E])[1]),
        ParameterUse("W", block=rows(E, 3 * E)),
    ),
    "view": (lambda m, x: F.linear(x, m.W.view(3, E, E)[1]), ParameterUse("W", block=rows(4, 8))),
    "transposed slice": (
        lambda m, x: x @ m.W.T[:, :E],
        ParameterUse("W", block=rows(0, E)),
    ),
    "slice as (in, out)": (
        lambda m, x: x @ m.W[E : 2 * E],
        ParameterUse("W", transposed=True, block=rows(E, 2 * E)),
    ),
    "columns": (
        lambda m, x: F.linear(x[..., :2], m.W[:, 2:]),
        ParameterUse("W", block=(range(3 * E), range(2, 4))),
    ),
    "every third row": (
        lambda m, x: F.linear(x, m.W[::3]),
        ParameterUse("W", block=(range(0, 12, 3), range(E))),
    ),
    "negative slice": (
        lambda m, x: F.linear(x, -m.W[-E:]),
        ParameterUse("W", -1.0, block=rows(8, 12)),
    ),
    "four dimensions": (
        lambda m, x: F.linear(x, m.deep[1].reshape(3 * E, E)),
        ParameterUse("deep", block=(range(1, 2), range(3), range(E), range(E))),
    ),
    "all of four dimensions": (
        lambda m, x: F.linear(x, m.deep.flatten(0, 2)),
        ParameterUse("deep"),
    ),
    "halves": (
        lambda m, x: F.linear(x, m.W.view(3, E, E)[1:].flatten(0, 1)),
        ParameterUse("W", block=rows(E, 3 * E)),
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str) -> None:
    function, use = BLOCKS[name]
    site = last_site(function)
    assert (site.role, site.weight) == ("affine", use)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_holds_the_entries_that_are_used(name: str) -> None:
    """The gradient of the output is not zero there, and only there."""
    function, use = BLOCKS[name]
    model = Bare(function)
    parameter = dict(model.named_parameters())[use.name]
    (gradient,) = torch.autograd.grad(model(torch.randn(3, T, E)).square().sum(), parameter)
    block = use.block or tuple(range(size) for size in parameter.shape)
    expected = torch.zeros_like(gradient, dtype=torch.bool)
    grid = torch.meshgrid(*(torch.tensor(list(r)) for r in block), indexing="ij")
    expected[grid] = True
    assert torch.equal(gradient != 0, expected)


def test_a_part_of_a_bias() -> None:
    site = last_site(lambda m, x: F.linear(x, m.W[:E], m.b[E : 2 * E]))
    assert site.bias == ParameterUse("b", block=(range(E, 2 * E),))


def test_a_weight_as_a_filter() -> None:
    site = last_site(lambda m, x: F.conv1d(x.mT, m.W[:E, :, None], m.b[:E]))
    assert (site.role, site.weight) == ("convolution", ParameterUse("W", block=rows(0, E)))


NO_BLOCKS: dict[str, Callable[[Bare, Tensor], Tensor]] = {
    "repeated rows": lambda m, x: F.linear(x, m.W[:1].expand(E, -1)),
    "diagonal": lambda m, x: F.linear(x, m.W.as_strided((E, E), (E + 1, 1))),
    "detached": lambda m, x: F.linear(x, m.W.detach()),
    "averaged": lambda m, x: F.linear(x, m.W.view(3, E, E).mean(0)),
    "two parts": lambda m, x: F.linear(x, torch.cat([m.W[:2], m.W[6:8]])),
}


@pytest.mark.parametrize("name", NO_BLOCKS)
def test_other_weights_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedOperation, match="computes with a parameter"):
        program(NO_BLOCKS[name])


TOKENS: dict[str, tuple[Callable[[Bare, Tensor], Tensor], str]] = {
    "class token": (
        lambda m, x: torch.cat([m.cls.expand(x.shape[0], -1, -1), m.first(x)], 1),
        "(n, p6, w4)",
    ),
    "positions": (lambda m, x: m.first(x) + m.pos[:, :T], "(n, p5, w4)"),
    "positions, subtracted": (lambda m, x: m.first(x) - m.pos[0, T:], "(n, p5, w4)"),
    "table": (lambda m, x: m.first(x) + m.table[torch.tensor([3, 0, 1, 1, 6])], "(n, p5, w4)"),
    "embedded positions": (
        lambda m, x: m.first(x) + F.embedding(torch.arange(T), m.table),
        "(n, p5, w4)",
    ),
    "queries": (
        lambda m, x: F.scaled_dot_product_attention(
            F.linear(m.table, m.first.weight).expand(x.shape[0], -1, -1), m.first(x), m.first(x)
        ),
        "(n, p7, w4)",
    ),
    "learned queries": (
        lambda m, x: torch.softmax(m.table @ m.first(x).mT, -1) @ m.first(x),
        "(n, p7, w4)",
    ),
    "normalised token": (lambda m, x: F.layer_norm(m.cls, (E,)) + m.first(x), "(n, p5, w4)"),
}


@pytest.mark.parametrize("name", TOKENS)
def test_parameters_as_values(name: str) -> None:
    function, axes = TOKENS[name]
    captured = program(function)
    assert captured.describe(captured.output) == axes
    assert captured.nature[captured.output] == "random"


def test_a_parameter_as_a_value_has_the_axes_of_what_it_meets() -> None:
    captured = program(lambda m, x: m.first(x) + m.pos[:, :T])
    node = next(n for n, name in captured.trace.parameters.items() if name == "pos")
    assert captured.describe(node) == "(1, p10, w4)"
    assert captured.nature[node] == "parameter"
    assert [s.role for s in captured.sites.values()] == ["affine"]


SCALES: dict[str, Callable[[Bare, Tensor], Tensor]] = {
    "last": lambda m, x: m.first(x) * m.gamma,
    "first": lambda m, x: m.gamma.view(1, 1, -1) * m.first(x),
    "channels": lambda m, x: m.first(x).mT * m.gamma[:, None],
    "expanded": lambda m, x: m.first(x) * m.gamma.expand(x.shape[0], T, -1),
}


@pytest.mark.parametrize("name", SCALES)
def test_scales(name: str) -> None:
    site = last_site(SCALES[name])
    assert (site.role, site.weight) == ("scale", ParameterUse("gamma"))


BIASES: dict[str, Callable[[Bare, Tensor], Tensor]] = {
    "added": lambda m, x: m.first(x) + m.gamma,
    "subtracted": lambda m, x: m.first(x) - m.gamma,
    "with alpha": lambda m, x: torch.add(m.first(x), m.gamma, alpha=2),
    "channels": lambda m, x: m.first(x).mT + m.gamma[:, None],
}


@pytest.mark.parametrize("name", BIASES)
def test_biases(name: str) -> None:
    site = last_site(BIASES[name])
    assert (site.role, site.bias) == ("bias", ParameterUse("gamma"))


def test_one_number_is_a_constant() -> None:
    """(1 + epsilon) x of graph isomorphism networks is data times a constant."""
    captured = program(lambda m, x: m.first((1 + m.epsilon) * x))
    (site,) = captured.sites.values()
    assert captured.nature[site.input] == "concrete"
    assert [captured.trace.parameters.get(n) for n in captured.trace.constants] == ["epsilon"]


def test_unshared_weights() -> None:
    """Another matrix at every position."""
    for function in (
        lambda m, x: torch.einsum("ntf,tgf->ntg", x[:, :3], m.W.view(3, E, E)),
        lambda m, x: (x[:, :3].transpose(0, 1) @ m.W.view(3, E, E)).transpose(0, 1),
    ):
        captured = program(function)
        (site,) = captured.sites.values()
        assert (site.role, site.names) == ("unshared", ("W",))
        assert captured.describe(captured.output) == "(n, p3, w4)"


def _standardised(m: Bare) -> Tensor:
    """As timm writes it: batch normalisation of the weight."""
    weight = F.batch_norm(m.W.view(1, 3 * E, -1), None, None, weight=2 * m.b, training=True)
    return weight.view_as(m.W)


def _weight_normed(m: Bare) -> Tensor:
    return m.b[:, None] * m.W / m.W.norm(dim=1, keepdim=True)


ROW_MAPS: dict[str, tuple[Callable[[Bare, Tensor], Tensor], bool, bool, float]] = {
    "standardised": (lambda m, x: F.linear(x, _standardised(m)), False, True, 1.0),
    "transposed": (lambda m, x: x @ _standardised(m).T, False, True, 1.0),
    "normalised": (lambda m, x: F.linear(x, _weight_normed(m)), False, False, 0.25),
    "as a filter": (
        lambda m, x: F.conv1d(x.mT, F.normalize(m.W, dim=1)[:, :, None] / 2),
        False,
        False,
        1 / 16,
    ),
    "columns": (lambda m, x: x @ F.normalize(m.first.weight, dim=0), True, False, 0.25),
}


@pytest.mark.parametrize("name", ROW_MAPS)
def test_rows_that_are_scaled(name: str) -> None:
    """Their strength is 1 / sd, or 1 / norm."""
    function, transposed, centred, square = ROW_MAPS[name]
    site = last_site(function)
    rows = site.weight.rows if site.weight else None
    assert rows is not None
    assert (rows.transposed, rows.centred) == (transposed, centred)
    assert site.names[1:] == (() if rows.gain is None else ("b",))
    factor = 2.0 if centred else 1.0  # of the gain
    for variance in (0.5, 3.0):
        strength = float(rows.strength(1.0, variance))
        assert strength == pytest.approx(factor * (square / variance) ** 0.5, rel=1e-4)
