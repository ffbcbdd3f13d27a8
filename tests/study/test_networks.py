"""Families of networks, default and imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tangency.errors import InvalidInput
from tangency.study import ACTIVATIONS, Family, imported, perceptrons

SOURCE = """
from torch import nn
def plain(i, o): return nn.Linear(i, o)
def wide(i, o, width=8): return nn.Sequential(nn.Linear(i, width), nn.Tanh(), nn.Linear(width, o))
def wrong(i, o): return 3
def short(i): return nn.Linear(i, 1)
number = 4
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "family_under_test.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "family_under_test", raising=False)
    return "family_under_test"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_perceptrons_have_the_moments_that_they_state(activation: str) -> None:
    family = perceptrons(50, 40, width=400, depth=2, activation=activation)
    model = family.network(seed=0)
    assert not isinstance(family.init, str)
    for name, weight in model.named_parameters():
        role = "weight" if name.endswith("weight") else "bias"
        expected = family.init.moment(name, role, weight.shape[-1], weight.shape[0])
        found = weight.square().mean().item() * (weight.shape[-1] if role == "weight" else 1)
        assert found == pytest.approx(expected, rel=0.05)


def test_seeds_decide_and_nothing_else_moves() -> None:
    family = perceptrons(3, 2, width=4)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (family.network(seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    x = torch.ones(1, 3)
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))
    assert family.network(0, width=7)[0].out_features == 7


def test_imported_families(module: str) -> None:
    plain = imported(f"{module}:plain", 3, 2)
    assert plain.width is None
    assert isinstance(plain.network(0), nn.Linear)
    wide = imported(f"{module}:wide", 3, 2, width=16)
    assert wide.width == 16
    assert wide.network(0, width=5)(torch.zeros(1, 3)).shape == (1, 2)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("plain", "is not MODULE:FACTORY"),
        ("{}:absent", "no function 'absent'"),
        ("{}:number", "no function 'number'"),
        ("{}:short", "cannot be called with"),
        ("{}_not_there:plain", "cannot import"),
    ],
)
def test_bad_paths(module: str, path: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        imported(path.format(module), 3, 2)


def test_bad_results_and_widths(module: str) -> None:
    with pytest.raises(InvalidInput, match="returned int"):
        imported(f"{module}:wrong", 3, 2).network(0)
    with pytest.raises(InvalidInput, match="takes no width"):
        imported(f"{module}:plain", 3, 2, width=9)


@pytest.mark.parametrize("bad", [{"activation": "relu6"}, {"width": 0}, {"depth": 0}])
def test_bad_perceptrons(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        perceptrons(3, 2, **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("features", "out", "message"), [(4, 2, "does not run on inputs"), (3, 5, "data need")]
)
def test_networks_that_do_not_fit_the_data(features: int, out: int, message: str) -> None:
    family = Family("a line", None, lambda width: nn.Linear(3, 2), "module")
    assert isinstance(family.network_for(torch.zeros(9, 3), 2, seed=0), nn.Linear)
    with pytest.raises(InvalidInput, match=message):
        family.network_for(torch.zeros(9, features), out, seed=0)
