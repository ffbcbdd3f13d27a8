"""Scaled models: what they compute, and that the dial turns the way the theory says."""

import copy
import io

import pytest
import torch
from torch import nn

import tangency as tg
from tangency.errors import InvalidInput

from .models import NTKLinear, network, normal, target

X = normal(12, 4, seed=1)


def train(model, x, y, rate, steps):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(x) - y).square().sum() / (2 * len(x))).backward()
        optimizer.step()


def test_outputs_and_kernel():
    net = network(6, out=2)
    before = net(X).detach()
    model = tg.scaled(net, 5.0)
    assert bool((model(X) == 0).all())
    with torch.no_grad():
        net[0].weight += 0.1
    torch.testing.assert_close(model(X), 5 * (net(X) - before))
    assert model.model is net
    plain = tg.EmpiricalKernel(net).ntk(X)
    torch.testing.assert_close(tg.EmpiricalKernel(model).ntk(X), 25 * plain)
    uncentred = tg.scaled(net, 5.0, centered=False)
    torch.testing.assert_close(uncentred(X), 5 * net(X))
    assert uncentred.start is None
    assert "alpha=5" in repr(model)
    limit = tg.InfiniteKernel(network(6, out=2), X).ntk(X)
    torch.testing.assert_close(
        tg.InfiniteKernel(tg.scaled(network(6, out=2), 5.0), X).ntk(X), 25 * limit
    )


def test_training_is_that_of_the_loss_over_alpha_squared():
    """Against descent by hand on 1/(2 n alpha^2) sum |alpha (F - F0) - y|^2."""
    alpha, rate, y = 3.0, 0.2, target(X)[:, None]
    model = tg.scaled(network(6), alpha)
    train(model, X, y, model.learning_rate(rate), 5)
    net = network(6)
    start = net(X).detach()
    for _ in range(5):
        loss = (alpha * (net(X) - start) - y).square().sum() / (2 * len(X) * alpha**2)
        for p, g in zip(
            net.parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True
        ):
            p.data -= rate * g
    torch.testing.assert_close(model.model.state_dict(), net.state_dict())


def test_state_dict_and_modes():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 1))
    model = tg.scaled(net, 2.0)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"model.{name}" for name, _ in net.named_parameters()}
    model.train()
    assert net.training
    assert not any(m.training for m in model.start.modules())
    x = X.float()
    model(x)
    assert bool((model.start[1].running_mean == 0).all())
    assert not bool((net[1].running_mean == 0).all())
    # The start is part of the state: a model restored from it has the same outputs.
    model.eval()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = tg.scaled(copy.deepcopy(net), 2.0)
    nn.init.normal_(other.start[0].weight)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(other.eval()(x), model(x))


def test_several_outputs_and_inputs():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(3)

        def forward(self, x, *, shift):
            y = self.net(x)
            return {"y": y + shift, "count": torch.tensor(3), "name": "pair"}

    model = tg.scaled(Pair(), 2.0)
    out = model(X, shift=X[:, :1])
    assert out["name"] == "pair"
    assert out["count"] == 3
    assert bool((out["y"] == 0).all())


def test_gradients_in_the_inputs():
    net, x = network(3), X.clone().requires_grad_()
    model = tg.scaled(net, 2.0)
    with torch.no_grad():
        net[0].weight += 1
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    (now,) = torch.autograd.grad(net(x).sum(), x)
    (before,) = torch.autograd.grad(model.start(x).sum(), x)
    torch.testing.assert_close(gradient, 2 * (now - before))


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_scales(alpha):
    with pytest.raises(InvalidInput, match="alpha"):
        tg.scaled(network(2), alpha)
    for width in (0, 1.5, True):
        with pytest.raises(InvalidInput, match="width"):
            tg.mean_field(network(2), width)
    with pytest.raises(InvalidInput, match="must be a torch"):
        tg.scaled(lambda x: x, 1.0)
    model = network(2)
    model.cache = model(X)
    with pytest.raises(InvalidInput, match="centered=False"):
        tg.scaled(model, 1.0)
    assert tg.scaled(model, 1.0, centered=False).start is None


def test_mean_field_is_a_mean_over_units():
    """Kernel and step size cancel: outputs move by as much per step at every width."""
    for width in (16, 64):
        net = network(width)
        model = tg.mean_field(net, width, centered=False)
        hidden = torch.tanh(X @ net[0].weight.T * (2 / 4) ** 0.5)
        expected = (hidden * net[2].weight * 2**0.5).mean(dim=1)
        torch.testing.assert_close(model(X)[:, 0], expected)
        assert model.learning_rate(1.0) == pytest.approx(width)


def course(model, x, y, rate, steps):
    monitor = tg.Monitor(model, x, y, learning_rate=rate, overhead=None, per_decade=6)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = (model(x)[:, 0] - y).square().sum() / (2 * len(x))
        loss.backward()
        optimizer.step()
        monitor.record(step, loss)
    return monitor.finish()


@pytest.mark.slow
class TestTheDial:
    x = normal(20, 4, seed=5)
    y = target(x)

    def trained(self, model, factor=0.3):
        """From zero outputs; the same step relative to the kernel for every model."""
        kernel = tg.EmpiricalKernel(model).ntk(self.x)
        largest = float(torch.linalg.eigvalsh(kernel)[-1]) / len(self.x)
        return course(model, self.x, self.y, factor / largest, 400)

    def test_the_verdict_is_right_on_both_sides(self):
        regimes, drifts, errors = [], [], []
        for alpha in (0.03, 0.3, 3.0, 30.0):
            found = self.trained(tg.scaled(network(128), alpha))
            assert float(found.loss[-1]) < 0.2 * float(found.loss[0])
            regimes.append(found.verdict().regime)
            drifts.append(float(found.drift[-1]))
            errors.append(float(found.linearization_error[-1]))
        assert regimes[0] == "feature learning"
        assert regimes[-2:] == ["lazy", "lazy"]
        assert drifts == sorted(drifts, reverse=True)
        # In the lazy regime the change of the kernel is of order 1 / alpha (Chizat et al. 2019).
        assert drifts[2] / drifts[3] == pytest.approx(10, rel=0.15)
        assert errors[2] / errors[3] == pytest.approx(10, rel=0.15)

    def test_the_time_of_failure_falls_with_alpha(self):
        times = []
        for alpha in (0.03, 0.1, 0.3, 30.0):
            found = self.trained(tg.scaled(network(128), alpha), factor=0.1)
            times.append(found.failure_time(0.1))
        assert times[-1] is None
        assert times[:3] == sorted(times[:3])
        assert times[0] < times[2]

    def test_width_makes_lazy_only_without_the_mean_field_scale(self):
        """Two hidden layers: the kernel moves less with width, and in mean field by as much."""

        def deep(width, seed):
            layers = (NTKLinear(4, width, seed), nn.Tanh(), NTKLinear(width, width, seed + 1))
            return nn.Sequential(*layers, nn.Tanh(), NTKLinear(width, 1, seed + 2))

        drift = {}
        for name, make in (("ntk", lambda n, w: tg.scaled(n, 1.0)), ("mf", tg.mean_field)):
            for width in (32, 256):
                runs = [self.trained(make(deep(width, s), width), factor=0.1) for s in (10, 20)]
                drift[name, width] = sum(float(r.drift[-1]) for r in runs) / 2
        assert drift["ntk", 256] < drift["ntk", 32] / 4
        assert drift["mf", 256] == pytest.approx(drift["mf", 32], rel=0.25)
        assert drift["mf", 256] > 1
