"""A small study, held against computations of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tangency.datasets import load
from tangency.study import Family, Study, converge, perceptrons, study

STEPS = 15


@pytest.fixture(scope="module")
def small() -> Study:
    data = load("wine", examples=40)
    family = perceptrons(data.features, data.out, width=64, depth=1)
    return study(data, family, steps=STEPS, widths=(8, 32))


def test_network_is_trained_as_sgd_trains_it(small: Study) -> None:
    data = small.data
    model = perceptrons(data.features, data.out, width=64, depth=1).network(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=small.check.learning_rate)
    for _ in range(STEPS):
        optimizer.zero_grad()
        ((model(data.x_train) - data.y_train).square().sum() / (2 * len(data.x_train))).backward()
        optimizer.step()
    right = model(data.x_test).argmax(dim=1) == data.labels_test
    assert small.scores[0].accuracy == pytest.approx(float(right.double().mean()))


def test_kernel_regression_scores(small: Study) -> None:
    """By least squares in NumPy, in double precision."""
    check, data = small.check, small.data
    pairs = {
        "empirical NTK regression": (check.ntk, check.ntk_test_train),
        "infinite NTK regression": (check.ntk_infinite, check.ntk_infinite_test_train),
        "NNGP regression": (check.nngp_infinite, check.nngp_infinite_test_train),
    }
    scores = {s.name: s.accuracy for s in small.scores}
    assert data.labels_test is not None
    for name, (train, test) in pairs.items():
        assert train is not None
        assert test is not None
        answers = test.double().numpy() @ np.linalg.solve(
            train.double().numpy(), data.y_train.double().numpy()
        )
        right = (answers.argmax(axis=1) == data.labels_test.numpy()).mean()
        assert scores[name] == pytest.approx(right, abs=1e-9)


def test_better_than_chance(small: Study) -> None:
    assert small.chance < 0.5
    assert all(s.value > 0.8 for s in small.scores[2:])


def test_spectra_are_those_of_the_kernels(small: Study) -> None:
    values = np.linalg.eigvalsh(small.check.ntk.double().numpy())[::-1]
    assert np.allclose(small.spectrum.eigenvalues.numpy(), values, rtol=1e-4, atol=1e-3)
    assert small.spectrum_infinite is not None


def test_study_shows_and_converts_itself(small: Study) -> None:
    assert small.program is not None
    assert "linear" in small.program
    assert "test accuracy" in repr(small)
    as_dict = small.to_dict()
    assert as_dict["scores"][0]["name"] == "trained network"
    assert isinstance(as_dict["spectrum"], dict)
    assert small.parameters == 13 * 64 + 64 + 64 * 3 + 3


def test_convergence_falls_with_width() -> None:
    """The kernel of a network without hidden layer is its limit; a hidden layer comes near it."""
    data = load("wine", examples=20)
    family = perceptrons(data.features, data.out, depth=1)
    found = converge(family, data.x_train, widths=(16, 1024), repetitions=4)
    assert found.errors.shape == (2, 4)
    assert found.errors.std(dim=1).min() > 0
    assert -0.7 < found.slope < -0.3
    assert torch.allclose(found.guide[0] / found.guide[1], torch.tensor(8.0).double())


def test_regression_and_networks_without_width() -> None:
    data = load("diabetes", examples=30)
    family = Family("linear model", None, lambda width: nn.Linear(data.features, 1), "module")
    found = study(data, family, steps=20)
    assert found.convergence is None
    assert found.convergence_reason == "the network's factory takes no width"
    network = found.scores[0]
    assert network.r2 is not None
    assert network.rmse is not None
    outputs = found.check.model(data.x_test).detach()
    error = (outputs - data.y_test) * data.target_scale
    assert network.rmse == pytest.approx(float(error.square().mean().sqrt()), rel=1e-4)
    truth = data.y_test * data.target_scale
    r2 = 1 - float(error.square().sum() / (truth - truth.mean()).square().sum())
    assert network.r2 == pytest.approx(r2, rel=1e-4)


def test_networks_that_no_rule_covers_are_studied_all_the_same() -> None:
    class Sorting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(13, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.first(x).sort(dim=1).values
            out: torch.Tensor = self.last(hidden)
            return out

    data = load("wine", examples=30)
    found = study(data, Family("sorting", 16, lambda width: Sorting(), "module"), steps=5)
    assert found.spectrum_infinite is None
    assert found.check.infinite_reason is not None
    assert found.convergence is None
    assert found.convergence_reason == found.check.infinite_reason
    assert len(found.scores) == 3
    assert math.isfinite(found.scores[0].value)
