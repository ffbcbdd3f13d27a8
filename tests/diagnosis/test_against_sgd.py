"""The run and its predictions against plain loops and models whose answer is known."""

import copy

import pytest
import torch
from torch import nn

from tangency.analysis import GradientDescent
from tangency.diagnosis import initial_kernels, training_check
from tangency.empirical import EmpiricalKernel
from tangency.errors import InvalidInput
from tangency.infinite import InfiniteKernel

from .models import NTKLinear, RandomFeatures, Scaled, network, normal, target

X, X_TEST = normal(12, 4, seed=1), normal(9, 4, seed=2)
Y, Y_TEST = normal(12, 3, seed=3), normal(9, 3, seed=4)


def descend(model, x, y, learning_rate, steps):
    """Outputs after each of 0..steps steps, by hand, without an optimiser."""
    model = copy.deepcopy(model)
    outputs = [model(x).detach()]
    for _ in range(steps):
        loss = 0.0
        for i in range(len(x)):
            loss = loss + (model(x)[i] - y[i]).square().sum() / (2 * len(x))
        free = [p for p in model.parameters() if p.requires_grad]
        for parameter, gradient in zip(free, torch.autograd.grad(loss, free), strict=True):
            with torch.no_grad():
                parameter -= learning_rate * gradient
        outputs.append(model(x).detach())
    return torch.stack(outputs), model


def test_the_run_is_gradient_descent_on_the_house_loss():
    model = network(10, out=3)
    check = training_check(model, X, Y, steps=12, learning_rate=0.1, records=50, infinite=False)
    outputs, trained = descend(model, X, Y, 0.1, 12)
    assert check.steps.tolist() == list(range(13))
    torch.testing.assert_close(check.outputs, outputs, rtol=1e-12, atol=1e-12)
    loss = torch.stack([(f - Y).square().sum() / 24 for f in outputs])
    torch.testing.assert_close(check.loss, loss, rtol=1e-12, atol=1e-14)
    moved = {
        name: float((after - before).detach().norm() / before.detach().norm())
        for (name, before), after in zip(
            model.named_parameters(), trained.parameters(), strict=True
        )
    }
    assert check.parameter_movement_by_parameter == pytest.approx(moved, rel=1e-12)
    flat = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (model, trained)]
    overall = float((flat[1] - flat[0]).norm() / flat[0].norm())
    assert float(check.parameter_movement[-1]) == pytest.approx(overall, rel=1e-12)
    for name, parameter in check.model.named_parameters():
        torch.testing.assert_close(parameter, dict(trained.named_parameters())[name])


@pytest.mark.parametrize("form", ["full", "trace"])
def test_a_model_linear_in_its_parameters_is_predicted_exactly(form, monkeypatch):
    if form == "trace":
        monkeypatch.setattr(initial_kernels, "FULL_SIZE", 6)
    check = training_check(
        RandomFeatures(), X, Y, x_test=X_TEST, y_test=Y_TEST, steps=400, infinite=False
    )
    assert check.kernel_form == form
    pairs = [
        (check.outputs, check.outputs_empirical),
        (check.test_outputs, check.test_outputs_empirical),
        (check.loss, check.loss_empirical),
        (check.test_loss, check.test_loss_empirical),
    ]
    for actual, predicted in pairs:
        torch.testing.assert_close(predicted, actual, rtol=1e-10, atol=1e-11)
    assert check.regime == "lazy"
    assert check.evidence.prediction_error < 1e-11
    assert float(check.kernel_drift.max()) < 1e-13
    # Lazy without staying near: the outputs and the trained weights went far.
    assert float(check.loss[-1]) < 0.1 * float(check.loss[0])
    assert check.evidence.parameter_movement > 0.3


def test_the_largest_learning_rate_is_the_border():
    model = RandomFeatures()
    border = training_check(model, X, Y, steps=1, infinite=False).max_learning_rate
    features = torch.tanh(model.hidden(X))
    gram = features @ features.T + 1
    assert border == pytest.approx(2 * 12 / float(torch.linalg.eigvalsh(gram)[-1]))
    assert training_check(model, X, Y, steps=1, infinite=False).learning_rate == border / 2
    below = training_check(model, X, Y, steps=300, learning_rate=0.99 * border, infinite=False)
    assert float(below.loss[-1]) < float(below.loss[0])
    with pytest.raises(InvalidInput, match=r"learning_rate .* diverged: the loss went from"):
        training_check(model, X, Y, steps=300, learning_rate=1.02 * border, infinite=False)


def test_trace_form_knows_that_the_whole_kernel_is_steeper(monkeypatch):
    model = Scaled(network(4, out=3), 1.0)
    whole = training_check(model, X, Y, steps=1, infinite=False)
    monkeypatch.setattr(initial_kernels, "FULL_SIZE", 24)
    trace = training_check(model, X, Y, steps=1, infinite=False)
    assert (whole.kernel_form, trace.kernel_form) == ("full", "trace")
    naive = GradientDescent(trace.ntk, Y).max_learning_rate
    assert naive > 1.3 * whole.max_learning_rate
    assert trace.max_learning_rate == pytest.approx(whole.max_learning_rate, rel=0.2)
    torch.testing.assert_close(trace.ntk, whole.ntk, rtol=1e-12, atol=1e-12)


def test_one_step_errs_by_the_square_of_the_learning_rate():
    model = network(16, out=3)
    errors = []
    for rate in (0.02, 0.01, 0.005):
        check = training_check(
            model, X, Y, x_test=X_TEST, steps=1, learning_rate=rate, infinite=False
        )
        assert check.steps.tolist() == [0, 1]
        errors.append(float((check.outputs - check.outputs_empirical)[1].norm()))
        assert check.test_loss is None
        assert float((check.test_outputs - check.test_outputs_empirical)[1].norm()) < 0.1
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_kernels_are_those_of_the_start():
    model = network(8, out=3)
    check = training_check(model, X, Y, x_test=X_TEST, steps=5)
    empirical, infinite = EmpiricalKernel(model), InfiniteKernel(model, X)
    torch.testing.assert_close(check.ntk, empirical.ntk(X))
    torch.testing.assert_close(check.ntk_test_train, empirical.ntk(X_TEST, X))
    torch.testing.assert_close(check.ntk_infinite, infinite.ntk(X))
    torch.testing.assert_close(check.nngp_infinite, infinite.nngp(X))
    torch.testing.assert_close(check.ntk_infinite_test_train, infinite.ntk(X_TEST, X))
    torch.testing.assert_close(check.nngp_infinite_test_train, infinite.nngp(X_TEST, X))
    kernels = EmpiricalKernel(check.model).ntk(X)
    drift = float((kernels - check.ntk).norm() / check.ntk.norm())
    assert float(check.kernel_drift[-1]) == pytest.approx(drift, rel=1e-10)
    assert check.probe.tolist() == list(range(12))


def test_infinite_prediction_by_a_loop():
    model = network(8, out=3)
    check = training_check(model, X, Y, x_test=X_TEST, steps=30)
    with torch.no_grad():
        train, test = model(X), model(X_TEST)
    for step in range(31):
        if step in check.steps:
            record = check.steps.tolist().index(step)
            torch.testing.assert_close(check.outputs_infinite[record], train)
            torch.testing.assert_close(check.test_outputs_infinite[record], test)
        pull = check.learning_rate / 12 * (Y - train)
        train = train + check.ntk_infinite @ pull
        test = test + check.ntk_infinite_test_train @ pull


def test_prediction_error_is_relative_to_the_way_of_the_outputs():
    check = training_check(network(8), X, target(X), x_test=X_TEST, steps=60, infinite=False)
    squares = [
        (f - g).square().sum(-1).mean(-1)
        for f, g in (
            (check.outputs, check.outputs[0]),
            (check.outputs, check.outputs_empirical),
            (check.test_outputs, check.test_outputs[0]),
            (check.test_outputs, check.test_outputs_empirical),
        )
    ]
    way, test_way = squares[0].mean(), squares[2].mean()
    torch.testing.assert_close(check.prediction_error.square(), squares[1] / way)
    scale = max(way, test_way)
    torch.testing.assert_close(check.test_prediction_error.square(), squares[3] / scale)
    whole = max(float(squares[1].mean() / way), float(squares[3].mean() / scale)) ** 0.5
    assert check.evidence.prediction_error == pytest.approx(whole)


def test_when_the_prediction_fails():
    check = training_check(network(8), X, target(X), x_test=X_TEST, steps=60, infinite=False)
    worse = torch.maximum(check.prediction_error, check.test_prediction_error).tolist()
    for fraction in (0.01, 0.1, 0.4):
        failed = [s for s, e in zip(check.steps.tolist(), worse, strict=True) if e > fraction]
        assert check.failure_time(fraction) == failed[0]
    assert check.failure_time(max(worse)) is None
    assert f"fails at step {check.failure_time()}" in check.explain()
    assert check.to_dict()["failure_time"] == check.failure_time()
    exact = training_check(RandomFeatures(), X, Y, steps=50, infinite=False)
    assert exact.failure_time(1e-6) is None
    assert "The prediction fails" not in exact.explain()


def test_the_verdict_knows_how_certain_it_is():
    check = training_check(network(8), X, target(X), x_test=X_TEST, steps=60, infinite=False)
    uncertainty = check.verdict.uncertainty
    for name in ("kernel_drift", "kernel_alignment", "prediction_error"):
        low, high = getattr(uncertainty, name)
        assert low <= getattr(check.evidence, name) <= high
    assert check.verdict.confidence == uncertainty.support[check.regime]
    assert "resampled" in check.explain()
    exact = training_check(RandomFeatures(), X, Y, steps=50, infinite=False)
    assert exact.verdict.confidence == pytest.approx(1)
    assert exact.evidence.loss_growth == pytest.approx(float(exact.loss[-1] / exact.loss[0]))


def test_a_test_set_out_of_reach_is_no_error():
    """Training on the first coordinate says nothing about the second: neither moves."""
    model = NTKLinear(2, 1, seed=3)
    x, x_test = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    check = training_check(model, x, torch.ones(1).double(), x_test=x_test, steps=20)
    assert check.test_prediction_error.tolist() == [0.0] * len(check.steps)
    assert check.regime == "lazy"


class TestRegime:
    x, x_test = normal(20, 4, seed=5), normal(20, 4, seed=6)

    def check(self, model: nn.Module, steps: int = 200, learning_rate: float | None = None):
        return training_check(
            model,
            self.x,
            target(self.x),
            x_test=self.x_test,
            y_test=target(self.x_test),
            steps=steps,
            learning_rate=learning_rate,
            infinite=False,
        )

    def test_a_wide_network_is_lazy(self):
        check = self.check(network(4096))
        assert check.regime == "lazy"
        assert float(check.loss[-1]) < 0.1 * float(check.loss[0])

    def test_a_small_output_scale_learns_features(self):
        model = Scaled(network(128), 0.03)
        # Far from the edge of stability, where runs are sensitive to rounding.
        rate = self.check(model, steps=1).max_learning_rate / 20
        check = self.check(model, steps=1000, learning_rate=rate)
        assert check.regime == "feature learning"
        assert bool((check.loss.diff() < 0).all())
        assert float(check.loss[-1]) < 0.001 * float(check.loss[0])

    def test_a_large_output_scale_is_lazy(self):
        assert self.check(Scaled(network(128), 10.0)).regime == "lazy"

    def test_drift_falls_with_width(self):
        drift = {
            width: sum(
                self.check(network(width, seed=seed), steps=100).evidence.kernel_drift
                for seed in range(2)
            )
            for width in (32, 512)
        }
        # Between 1 / width and 1 / sqrt(width), for sixteen times the width.
        assert 1 / 32 < drift[512] / drift[32] < 1 / 3
