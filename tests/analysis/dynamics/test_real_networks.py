"""Predictions against real training of wide networks and of linearised ones."""

import math

import pytest
import torch
from torch import Tensor, nn

import tangency as tg
from tangency.analysis.dynamics import (
    Ensemble,
    GradientDescent,
    HeavyBall,
    LinearizedTraining,
    Nesterov,
)

from .wide_networks import Networks, kernel

OPTIMIZERS = pytest.mark.parametrize(
    ("kind", "options"),
    [
        (GradientDescent, {}),
        (HeavyBall, {"momentum": 0.9}),
        (Nesterov, {"momentum": 0.9, "nesterov": True}),
    ],
)


def circle(n: int, shift: float = 0.0) -> Tensor:
    angles = torch.linspace(0, 2 * math.pi, n + 1)[:-1] + shift
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.mark.slow
def test_trajectories_of_width_2048_follow_the_ensemble():
    """1,000 steps of gradient descent from 100 starts: mean and covariance at three moments.

    Standard errors are those of 100 Gaussian draws: no mean and no covariance is more than 4.5 of
    them off, and their root mean square is that of noise.
    """
    count, width, n, m = 100, 2048, 7, 4
    x, x_test = circle(n), circle(m, 0.3)
    y = (3 * x[:, 0]).sin() + x[:, 1]
    infinite = kernel(width, x.double())
    train, test = x.double(), x_test.double()
    pair, cross, own = infinite.pair(train), infinite.pair(test, train), infinite.pair(test)
    training = GradientDescent(pair.ntk, y.double())
    training = GradientDescent(pair.ntk, y.double(), 0.05 * training.max_learning_rate)
    moments = [10, 100, 1000]
    found = Ensemble(training, pair.nngp).predict(moments, cross.ntk, cross.nngp, own.nngp)

    networks = Networks(count, width, 2)
    outputs = []
    for step in networks.train(x, y, training.learning_rate, 1000):
        if step in moments:
            with torch.no_grad():
                outputs.append((networks(x).double(), networks(x_test).double()))
    errors = []
    for index, (on_train, on_test) in enumerate(outputs):
        for real, predicted in ((on_train, found.train), (on_test, found.test)):
            covariance, variance = predicted.covariance[index], predicted.variance[index]
            mean = (real.mean(dim=0) - predicted.mean[index]) / (variance / count).sqrt()
            spread = torch.cov(real.mT, correction=1) - covariance
            scale = ((variance[:, None] * variance + covariance**2) / count).sqrt()
            learned = variance.sqrt() > 0.01  # below that finite width shows
            errors.append(mean[learned])
            errors.append((spread / scale)[learned][:, learned].flatten())
    every = torch.cat(errors)
    assert len(every) > 150
    assert float(every.abs().max()) < 4.5
    assert 0.5 < float(every.square().mean().sqrt()) < 1.5
    # What training left of the initial variance is far from what it was.
    assert float(found.test.variance[2].max()) < 0.5 * float(own.nngp.diagonal().min())


@pytest.mark.slow
@OPTIMIZERS
def test_real_wide_networks_converge_below_and_diverge_above_the_largest_rate(kind, options):
    torch.manual_seed(0)
    x = circle(6)
    y = x[:, 0] * x[:, 1]
    model = nn.Sequential(nn.Linear(2, 2048), nn.Tanh(), nn.Linear(2048, 1))
    K = tg.EmpiricalKernel(model).ntk(x)
    start = model(x).detach()[:, 0]
    bound = kind(K, y).max_learning_rate
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    for relative, converges in ((0.9, True), (1.1, False)):
        model.load_state_dict(initial)
        optimizer = torch.optim.SGD(model.parameters(), lr=relative * bound, **options)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model(x)[:, 0] - y).square().sum() / 12
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
        training: LinearizedTraining = kind(K, y, relative * bound)
        if converges:
            assert losses[-1] < 0.3 * losses[0]
            # And step for step, as far as the width allows.
            predicted = training.loss(range(60), f0_train=start).tolist()
            assert losses == pytest.approx(predicted, rel=0.25, abs=0.02 * losses[0])
        else:
            # The linearised network leaves all bounds; the real one follows it until its kernel
            # moves (the catapult of Lewkowycz et al. 2020).
            assert max(losses) > 30 * losses[0]
            assert float(training.loss(60, f0_train=start)) > 1e3 * losses[0]


@OPTIMIZERS
def test_linearised_networks_converge_below_and_diverge_above_the_largest_rate(kind, options):
    torch.manual_seed(0)
    x, y = circle(6).double(), circle(6)[:, 0].double()
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    K = tg.EmpiricalKernel(model).ntk(x)
    ridge = 0.05 * float(K.diagonal().mean())
    bound = kind(K, y, ridge=ridge).max_learning_rate
    for relative, converges in ((0.9, True), (1.1, False)):
        linear = tg.linearize(model)
        begin = [p.detach().clone() for p in linear.parameters()]
        optimizer = torch.optim.SGD(linear.parameters(), lr=relative * bound, **options)
        sizes = []
        for _ in range(50):
            optimizer.zero_grad()
            movement = sum(
                (p - q).square().sum() for p, q in zip(linear.parameters(), begin, strict=True)
            )
            sizes.append(float(movement.detach()))
            loss = (linear(x)[:, 0] - y).square().sum() + ridge * movement
            (loss / 12).backward()
            optimizer.step()
        grown = sizes[-1] / sizes[5]
        assert (grown > 100) if not converges else (grown < 10)
        training = kind(K, y, relative * bound, ridge=ridge)
        predicted = training.predict(50, f0_train=model(x).detach()[:, 0]).train
        assert linear(x)[:, 0].tolist() == pytest.approx(predicted.tolist(), rel=1e-8)
