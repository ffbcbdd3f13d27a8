from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import export

from tangency.program.functional import make_functional


class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.first(x)))
        out = self.second(y)
        out += y
        out = self.relu(out)
        return nn.functional.hardtanh_(out.flatten(1).sub(1.0)).flatten(1)


class ReadThroughAView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = 2 * x
        row = y[:, 0]
        y.relu_()
        return row + y[:, 1]


def _recorded(model: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    return export(model.eval(), (torch.randn(shape),), strict=False)


def _in_place(recorded: torch.export.ExportedProgram) -> int:
    targets = [node.target for node in recorded.graph.nodes]
    return sum(isinstance(t, OpOverload) and t._schema.is_mutable for t in targets)


def test_in_place_layers_become_functional_and_compute_the_same() -> None:
    model = ResidualBlock()
    recorded = _recorded(model, (2, 3, 4, 4))
    assert _in_place(recorded) == 4
    assert make_functional(recorded.graph)
    assert _in_place(recorded) == 0
    recorded.graph_module.recompile()
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(recorded.module()(x), model(x))


def test_writes_that_another_name_sees_are_left_alone() -> None:
    assert not make_functional(_recorded(ReadThroughAView(), (2, 3)).graph)
