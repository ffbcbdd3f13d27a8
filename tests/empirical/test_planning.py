"""The plan of a kernel, for people."""

from __future__ import annotations

import pytest
import torch

from empirical.cases import CASES, Case, case_of
from tangency import EmpiricalKernel


@pytest.mark.parametrize("case", CASES[:12], ids=lambda case: case.name)
def test_every_parameter_has_a_path(case: Case) -> None:
    model = case.model()
    plan = EmpiricalKernel(model, output="full").plan(case.data(5), case.data(3))
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [p.name for p in plan.parameters] == trainable
    assert all(p.reason for p in plan.parameters)
    assert plan.shape == (5, 3)
    assert plan.seconds > 0
    assert plan.memory > 0


def test_paths_and_reasons() -> None:
    wide = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1568, 300)
    )
    plan = EmpiricalKernel(wide, output=0).plan(torch.randn(8, 3, 16, 16))
    conv, bias, linear, _ = plan.parameters
    assert conv.path == "gradients, by tile"
    assert bias.path == "gradients, kept"
    assert linear.path == "Gram matrices"
    assert linear.multiply_adds < 8 * 8 * 1568 * 300
    assert "aten.linear" in linear.reason
    assert "0.weight" in repr(plan)
    assert plan.to_dict()["parameters"][0]["name"] == "0.weight"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("branch on data", "torch.export cannot record"),
        ("custom backward", "autograd.Function"),
        ("no_grad in forward", "no_grad"),
    ],
)
def test_why_no_site_serves(name: str, reason: str) -> None:
    plan = EmpiricalKernel(case_of(name).model()).plan(case_of(name).data(4))
    assert all(p.path.startswith("Jacobian") for p in plan.parameters)
    assert all(reason in p.reason for p in plan.parameters)


def test_a_small_budget_makes_small_tiles() -> None:
    case = case_of("conv2d")
    small = EmpiricalKernel(case.model(), memory=10_000).plan(case.data(40))
    large = EmpiricalKernel(case.model()).plan(case.data(40))
    assert small.tile[0] < 40
    assert small.passages > large.passages == 40
