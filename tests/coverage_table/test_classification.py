from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable

import pytest
import torch
from architecture import Architecture
from classification import classify, classify_apart
from coverage_page import Outcome
from torch import Tensor, nn

CONTEXT = multiprocessing.get_context("forkserver")


def _vectors() -> Tensor:
    return torch.randn(2, 3)


def _architecture(make: Callable[[], nn.Module]) -> Architecture:
    return Architecture("A", "here", make, _vectors)


class Bare(nn.Module):
    """A function of the data and of one weight."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(3, 16)
        self.function = function
        self.last = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.function(self.first(x)))
        return y


def test_closed_forms_are_exact() -> None:
    outcome = classify(_architecture(lambda: Bare(torch.relu)))
    assert (outcome.status, outcome.remark) == ("exact", "")


def test_refusals_come_with_their_reason() -> None:
    outcome = classify(_architecture(lambda: Bare(lambda x: x.sort(-1).values)))
    assert outcome.status == "not yet"
    assert "sort" in outcome.remark
    assert os.sep + "test_classification" not in outcome.remark


def test_broken_networks_are_not_taken_for_refusals() -> None:
    def broken() -> nn.Module:
        raise ValueError("no such layer")

    outcome = classify(_architecture(broken))
    assert (outcome.status, outcome.remark) == ("not yet", "ValueError: no such layer")


def exact() -> Architecture:
    return _architecture(lambda: Bare(torch.tanh))


def endless() -> Architecture:
    def make() -> nn.Module:
        time.sleep(600)
        return nn.Identity()

    return _architecture(make)


def fatal() -> Architecture:
    def make() -> nn.Module:
        os._exit(3)

    return _architecture(make)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("find", "limit", "status", "remark"),
    [
        (exact, 120, "exact", ""),
        (endless, 2, "not yet", "takes more than 2 s"),
        (fatal, 120, "not yet", "the process ended with code 3"),
    ],
)
def test_processes_end_well(
    find: Callable[[], Architecture], limit: float, status: str, remark: str
) -> None:
    outcome = classify_apart(CONTEXT, find, limit)
    expected = Outcome("A", "here", status, outcome.seconds, remark)  # type: ignore[arg-type]
    assert outcome == expected
