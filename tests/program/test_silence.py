"""What a recording leaves on the standard error stream."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.program.trace import trace


class Speaking(nn.Module):
    def __init__(self, branching: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.branching = branching

    def forward(self, x: Tensor) -> Tensor:
        sys.stderr.write("forward is called\n")
        return self.layer(x) if not self.branching or x.sum() > 0 else self.layer(-x)


def test_a_failure_is_told_once(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UnsupportedOperation, match="branch on the values of the data"):
        trace(Speaking(branching=True), torch.zeros(2, 3))
    assert capsys.readouterr().err == ""
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert not logging.getLogger("torch.fx.experimental.symbolic_shapes").filters


def test_what_a_module_prints_stays(capsys: pytest.CaptureFixture[str]) -> None:
    trace(Speaking(branching=False), torch.zeros(2, 3))
    assert "forward is called" in capsys.readouterr().err
