"""Choosing one tensor of what a module returns; dropout; random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangency.errors import InvalidInput, UnsupportedOperation
from tangency.program.capture import Program, capture
from tangency.program.operations import arguments, base_name


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


class Net(nn.Module):
    """A layer of width 12 and 4, and a function of both."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.a(x))
        return self.function(self.b(hidden), hidden)


RETURNED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda y, h: (y, h),
    "list": lambda y, h: [y, None, h],
    "dictionary": lambda y, h: {"logits": y, "hidden": h},
    "named": Pair,
    "nested": lambda y, h: {"head": (y, {"deep": h})},
}
CHOICES: list[tuple[str, Any, str]] = [
    ("tuple", 0, "(n, w4)"),
    ("tuple", -1, "(n, w12)"),
    ("list", 2, "(n, w12)"),
    ("dictionary", "logits", "(n, w4)"),
    ("named", "hidden", "(n, w12)"),
    ("named", 0, "(n, w4)"),
    ("nested", lambda out: out["head"][1]["deep"][:, :3], "(n, w3)"),
    ("tuple", lambda out: out[1] * 2, "(n, w12)"),
]


@pytest.mark.parametrize(("kind", "output", "axes"), CHOICES)
def test_choices(kind: str, output: Any, axes: str) -> None:
    program = capture(Net(RETURNED[kind]), torch.randn(2, 6), output)
    assert program.describe(program.output) == axes


REFUSED: list[tuple[str, Any, str]] = [
    ("tuple", None, r"It returned tuple of 0: \(n, 4\), 1: \(n, 12\); choose one"),
    ("list", None, r"list of 0: \(n, 4\), 1: a NoneType, 2: \(n, 12\)"),
    ("dictionary", None, r"dict of 'logits': \(n, 4\), 'hidden': \(n, 12\)"),
    ("dictionary", "logit", r"no output 'logit'\. It returned dict of 'logits'"),
    ("tuple", 2, "no output 2"),
    ("named", "labels", "no output 'labels'"),
    ("list", 1, "output=1 is a NoneType, not a tensor"),
    ("nested", "head", "output='head' is a tuple"),
]


@pytest.mark.parametrize(("kind", "output", "message"), REFUSED)
def test_an_error_lists_what_there_is(kind: str, output: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        capture(Net(RETURNED[kind]), torch.randn(2, 6), output)


class Noisy(nn.Module):
    """Dropout as a module, as a function and inside attention; normalisation with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a = nn.BatchNorm1d(6), nn.Linear(6, 8)
        self.drop, self.layers = nn.Dropout(0.25), nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.a(self.norm(x.mT).mT))
        h = F.dropout(torch.relu(h), 0.4, self.training)
        h = F.scaled_dot_product_attention(h, h, h, dropout_p=0.1 if self.training else 0.0)
        states: Tensor = self.layers(h)[0]
        return states


def dropouts(program: Program) -> list[object]:
    """Probabilities of the active dropouts."""
    found: list[object] = []
    for node in program.axes:
        if base_name(node) == "dropout" and node.args[2]:
            found.append(node.args[1])
        if base_name(node) == "scaled_dot_product_attention":
            found.append(arguments(node)["dropout_p"])
    return found


def test_dropout_on_request() -> None:
    model, x = Noisy(), torch.randn(2, 5, 6)
    modes = [module.training for module in model.modules()]
    program = capture(model, x, dropout=True)
    assert dropouts(program) == [0.25, 0.4, 0.1, 0.5]
    assert [module.training for module in model.modules()] == modes
    assert program.describe(program.output) == "(n, p5, w8)"


def test_dropout_is_inactive_without_request() -> None:
    assert not any(dropouts(capture(Noisy(), torch.randn(2, 5, 6))))


def test_dropout_of_data_is_refused() -> None:
    """Every evaluation of the kernel would draw its own mask."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    with pytest.raises(UnsupportedOperation, match=r"aten\.dropout.*draws random numbers"):
        capture(model, torch.randn(2, 6), dropout=True)
    capture(model, torch.randn(2, 6))


@pytest.mark.parametrize(
    "noise",
    [lambda x: x + torch.randn_like(x), lambda x: x * torch.bernoulli(torch.full_like(x, 0.5))],
)
def test_noise_is_refused(noise: Callable[[Tensor], Tensor]) -> None:
    class Random(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(noise(x))

    with pytest.raises(UnsupportedOperation, match="draws random numbers"):
        capture(Random(6, 3), torch.randn(2, 6))


def test_batch_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(UnsupportedOperation, match="statistics of the batch"):
        capture(model, torch.randn(2, 6))
