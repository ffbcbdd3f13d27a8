"""Training with a monitor is, bit for bit, training without one."""

import copy
import functools
import random

import numpy as np
import pytest
import torch
from torch import nn

from tangency.diagnosis.monitor import Monitor
from tangency.errors import InvalidInput

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :1] * X[:, 1:2]


class Logging(nn.Module):
    """Counts its calls in a buffer and in a list, as user code does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(len(x))
        return x


def make() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, 16),
        nn.BatchNorm1d(16),
        Logging(),
        nn.Tanh(),
        nn.Dropout(0.3),
        torch.nn.utils.spectral_norm(nn.Linear(16, 1)),
    )


@functools.cache
def train(monitored: bool, mode: str = "plain"):
    model, calls = make().train(), []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(7)
    monitor = None
    if monitored:
        monitor = Monitor(
            model, X, Y, optimizer=optimizer, curvature=True, overhead=None, per_decade=99
        )
    losses = []
    for step in range(1, 9):
        batch = torch.randperm(len(X))[:12]
        loss = (model(X[batch]) - Y[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if monitor is not None:
            if mode == "no_grad":
                with torch.no_grad():
                    monitor.record(step, loss)
            else:
                monitor.record(step, loss)
    randomness = (torch.rand(1).item(), random.random(), float(np.random.rand()))  # noqa: NPY002
    return model, optimizer, losses, calls, randomness, monitor


@pytest.mark.parametrize("mode", ["plain", "no_grad"])
def test_training_is_the_same_to_the_last_bit(mode):
    plain, watched = train(False), train(True, mode)
    assert watched[2] == plain[2]
    assert watched[3] == plain[3]
    assert watched[4] == plain[4]
    for first, second in ((plain[0], watched[0]), (plain[1], watched[1])):
        torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)
    assert watched[0][2].seen == plain[0][2].seen
    assert all(m.training for m in watched[0].modules())
    for first, second in zip(plain[0].parameters(), watched[0].parameters(), strict=True):
        assert torch.equal(first.grad, second.grad)
    course = watched[5].finish()
    assert course.steps.tolist() == list(range(9))
    assert bool(torch.isfinite(course.sharpness).all())


def test_measured_is_the_network_in_evaluation_mode():
    model, *_, monitor = train(True, "for itself")
    course = monitor.finish()
    # Of its own: an old spectral_norm cannot be copied once it has run.
    model.eval()
    with torch.no_grad():
        outputs = model(X)
    torch.testing.assert_close(course.outputs[-1], outputs.double())
    assert float(course.loss[-1]) == pytest.approx(
        float((outputs - Y).square().sum() / (2 * len(X)))
    )


def test_frozen_parameters_and_tied_ones():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.two = self.one
            self.top = nn.Linear(4, 1)
            self.top.bias.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.top(torch.tanh(self.two(torch.tanh(self.one(x)))))

    torch.manual_seed(0)
    model = Tied()
    monitor = Monitor(model, X, Y, overhead=None)
    with torch.no_grad():
        model.one.weight *= 2
    monitor.record(1)
    course = monitor.finish()
    assert set(course.movement_by_layer) == {"one", "top"}
    assert float(course.movement_by_layer["top"][-1]) == 0
    start = model.one.weight.detach() / 2
    size = (start.square().sum() + model.one.bias.detach().square().sum()).sqrt()
    assert float(course.movement_by_layer["one"][-1]) == pytest.approx(float(start.norm() / size))


def test_what_compile_wraps_is_looked_through():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    monitor = Monitor(torch.compile(model), X, Y, overhead=None)
    with torch.no_grad():
        model[0].weight *= 2
    assert monitor.record(1)
    assert set(monitor.finish().movement_by_layer) == {"0", "2"}


def test_a_module_that_cannot_be_copied_or_changes_its_parameters():
    model = nn.Sequential(nn.Linear(4, 1))
    model.cache = model(X)
    with pytest.raises(InvalidInput, match="cannot be copied"):
        Monitor(model, X, Y)
    model = nn.Sequential(nn.Linear(4, 1))
    monitor = Monitor(model, X, Y, overhead=None)
    model[0].weight = nn.Parameter(torch.ones(2, 4))
    with pytest.raises(InvalidInput, match=r"0\.weight"):
        monitor.record(1)
    with pytest.raises(InvalidInput, match="must be a torch"):
        Monitor(copy.copy, X, Y)
