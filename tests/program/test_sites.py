"""Where parameters enter, in which role, with which factor and orientation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.program.capture import capture
from tangency.program.sites import ParameterUse, Site

IN, OUT = 5, 3


class Bare(nn.Module):
    """Parameters and a function of them and the input."""

    def __init__(self, function: Callable[[Bare, Tensor], Tensor]) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(OUT, IN))
        self.V = nn.Parameter(torch.randn(IN, OUT))
        self.b = nn.Parameter(torch.randn(OUT))
        self.s = nn.Parameter(torch.randn(OUT))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def sites(function: Callable[[Bare, Tensor], Tensor]) -> list[Site]:
    return list(capture(Bare(function), torch.randn(2, IN)).sites.values())


AFFINE: dict[str, tuple[Callable[[Bare, Tensor], Tensor], ParameterUse, ParameterUse | None]] = {
    "linear": (lambda m, x: F.linear(x, m.W, m.b), ParameterUse("W"), ParameterUse("b")),
    "linear without bias": (lambda m, x: F.linear(x, m.W), ParameterUse("W"), None),
    "linear of a transpose": (
        lambda m, x: F.linear(x, m.V.T),
        ParameterUse("V", transposed=True),
        None,
    ),
    "product": (lambda m, x: x @ m.V, ParameterUse("V", transposed=True), None),
    "product with a transpose": (lambda m, x: x @ m.W.T, ParameterUse("W"), None),
    "transposed twice": (
        lambda m, x: x @ m.V.t().transpose(0, 1),
        ParameterUse("V", transposed=True),
        None,
    ),
    "permuted": (lambda m, x: torch.matmul(x, m.W.permute(1, 0)), ParameterUse("W"), None),
    "mm": (lambda m, x: torch.mm(x, m.V), ParameterUse("V", transposed=True), None),
    "addmm": (
        lambda m, x: torch.addmm(m.b, x, m.V),
        ParameterUse("V", transposed=True),
        ParameterUse("b"),
    ),
    "scaled": (
        lambda m, x: F.linear(x, 3 * m.W / 2, m.b * 0.5),
        ParameterUse("W", 1.5),
        ParameterUse("b", 0.5),
    ),
    "scaled and transposed": (lambda m, x: x @ (m.W.T / 4), ParameterUse("W", 0.25), None),
}


@pytest.mark.parametrize("name", AFFINE)
def test_affine(name: str) -> None:
    function, weight, bias = AFFINE[name]
    (site,) = sites(function)
    assert (site.role, site.weight, site.bias) == ("affine", weight, bias)
    assert site.input.op == "placeholder"


def test_bias_and_scale() -> None:
    found = sites(lambda m, x: m.s * torch.relu(x @ m.V + m.b))
    assert [(s.role, s.names) for s in found] == [
        ("affine", ("V",)),
        ("bias", ("b",)),
        ("scale", ("s",)),
    ]
    assert [s.input.target.__name__.split(".")[0] for s in found[1:]] == ["matmul", "relu"]


def test_norms() -> None:
    found = sites(
        lambda m, x: F.rms_norm(F.layer_norm(x @ m.V, (OUT,), m.s, m.b), (OUT,), weight=m.s)
    )
    assert [(s.role, s.names) for s in found] == [
        ("affine", ("V",)),
        ("norm", ("s", "b")),
        ("norm", ("s",)),
    ]


def test_a_norm_without_parameters_is_no_site() -> None:
    assert len(sites(lambda m, x: F.layer_norm(x @ m.V, (OUT,)))) == 1


def test_shared_parameters() -> None:
    found = sites(lambda m, x: torch.tanh(x @ m.V) @ m.W @ m.V)
    assert [s.weight for s in found] == [
        ParameterUse("V", transposed=True),
        ParameterUse("W", transposed=True),
        ParameterUse("V", transposed=True),
    ]


REFUSED: dict[str, tuple[Callable[[Bare, Tensor], Tensor], str]] = {
    "normalised weight": (
        lambda m, x: F.linear(x, m.W / torch.linalg.matrix_norm(m.W, 2)),
        "computes with a parameter",
    ),
    "normalised columns": (
        lambda m, x: F.linear(x, m.W / m.W.norm(dim=0)),
        "computes with a parameter",
    ),
    "two gains": (
        lambda m, x: F.linear(x, (m.s * m.b)[:, None] * m.W),
        "computes with a parameter",
    ),
    "gain squared": (
        lambda m, x: F.linear(x, m.s.square()[:, None] * m.W),
        "computes with a parameter",
    ),
    "detached": (
        lambda m, x: F.linear(x, m.W / m.W.norm(dim=1, keepdim=True).detach()),
        "computes with a parameter",
    ),
    "two forms": (
        lambda m, x: F.linear(x, m.W) + F.linear(x, F.normalize(m.W, dim=1)),
        "in another form",
    ),
    "product of weights": (lambda m, x: x @ (m.V @ m.W), "computes with a parameter"),
    "masked weight": (lambda m, x: F.linear(x, torch.tanh(m.W)), "computes with a parameter"),
    "division by a parameter": (lambda m, x: (x @ m.V) / m.s, "uses a parameter in a way"),
    "power of a parameter": (lambda m, x: (x @ m.V).abs() ** m.s, "uses a parameter in a way"),
    "prelu": (lambda m, x: F.prelu(x @ m.V, m.s), "uses a parameter in a way"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_place(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(UnsupportedOperation, match=reason) as caught:
        sites(function)
    assert f'{Path(__file__).name}", line ' in str(caught.value)
    assert "aten." in str(caught.value)
