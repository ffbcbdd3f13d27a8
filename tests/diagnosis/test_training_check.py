"""What a user meets: nothing is touched, everything is named, bad input is refused."""

import copy
import math

import pytest
import torch
from torch import nn

from tangency.analysis import Thresholds
from tangency.diagnosis import training_check
from tangency.diagnosis.training_run import schedule
from tangency.errors import InvalidInput, TangencyError

from .models import RandomFeatures, Scaled, network, normal, target

X, X_TEST = normal(8, 4, seed=1), normal(5, 4, seed=2)
Y = target(X)


def test_the_module_and_the_random_state_stay_as_they_were():
    model = nn.Sequential(
        nn.Linear(4, 6, dtype=torch.float64),
        nn.BatchNorm1d(6, dtype=torch.float64).eval(),
        nn.Tanh(),
        nn.Linear(6, 1, dtype=torch.float64),
    )
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=index) / 2)
    model[3].bias.requires_grad_(False)
    model(X).sum().backward()
    state = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    check = training_check(model, X, Y, steps=20)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert check.model is not model
    assert not torch.equal(check.model[0].weight, model[0].weight)
    assert torch.equal(check.model[3].bias, model[3].bias)
    assert "3.bias" not in check.parameter_movement_by_parameter
    assert torch.equal(check.model[1].running_mean, model[1].running_mean)
    assert all(p.grad is None for p in check.model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode):
    expected = training_check(network(6), X, Y, x_test=X_TEST, steps=10, infinite=False)
    with mode():
        check = training_check(network(6), X.clone(), Y.clone(), x_test=X_TEST, steps=10)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(check.outputs, expected.outputs)
    assert not check.outputs.requires_grad
    assert not check.ntk.requires_grad


def test_single_precision_and_shapes():
    model = network(6, out=2).float()
    y = normal(8, 2, seed=3)
    check = training_check(
        model, X.float(), y, x_test=X_TEST.float(), y_test=y[:5].float(), steps=50, records=10
    )
    count = len(check.steps)
    assert check.outputs.dtype == check.ntk.dtype == torch.float32
    assert check.loss.dtype == check.kernel_drift.dtype == torch.float64
    for outputs in (check.outputs, check.outputs_empirical, check.outputs_infinite):
        assert outputs.shape == (count, 8, 2)
    for outputs in (
        check.test_outputs,
        check.test_outputs_empirical,
        check.test_outputs_infinite,
    ):
        assert outputs.shape == (count, 5, 2)
    for series in (
        check.loss_empirical,
        check.loss_infinite,
        check.test_loss,
        check.test_loss_empirical,
        check.test_loss_infinite,
        check.prediction_error,
        check.test_prediction_error,
        check.parameter_movement,
    ):
        assert series.shape == (count,)
        assert bool(torch.isfinite(series).all())
    assert check.kernel_steps.shape == check.kernel_drift.shape == check.kernel_alignment.shape
    assert set(check.kernel_steps.tolist()) <= set(check.steps.tolist())
    assert check.kernel_drift[0] == 0
    assert check.ntk_test_train.shape == check.ntk_infinite_test_train.shape == (5, 8)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network(6, inputs=8)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([left, right], dim=1))[:, 0]


def test_several_inputs_and_vector_outputs():
    check = training_check(TwoInputs(), {"left": X, "right": 2 * X}, Y, steps=10, infinite=False)
    rows = torch.cat([X, 2 * X], dim=1)
    joined = training_check(TwoInputs().net, rows, Y[:, None], steps=10, infinite=False)
    torch.testing.assert_close(check.outputs, joined.outputs)


@pytest.mark.parametrize(("steps", "records"), [(1, 2), (1, 60), (7, 3), (300, 60), (10_000, 20)])
def test_schedule(steps, records):
    plan = schedule(steps, records, 1000)
    grid = plan.steps.tolist()
    assert grid[0] == 0
    assert grid[-1] == steps
    assert grid == sorted(set(grid))
    assert len(grid) <= records
    assert plan.kernel_steps[0] == 0
    assert plan.kernel_steps[-1] == steps
    assert len(plan.kernel_steps) <= 8
    assert len(plan.probe.unique()) == 64
    assert int(plan.probe.max()) == 999


class Unknown(nn.Module):
    """An operation without a rule in the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(6, out=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).cumsum(dim=1).sort(dim=1).values[:, :1]


def test_without_an_infinite_kernel():
    check = training_check(Unknown(), X, Y, steps=5)
    assert check.infinite_reason
    nothing = (
        check.ntk_infinite,
        check.nngp_infinite,
        check.loss_infinite,
        check.outputs_infinite,
    )
    assert nothing == (None, None, None, None)
    assert check.infinite_reason in check.explain()
    with pytest.raises(TangencyError):
        training_check(Unknown(), X, Y, steps=5, infinite=True)
    skipped = training_check(network(6), X, Y, steps=5, infinite=False)
    assert skipped.loss_infinite is None
    assert "infinite=False" in skipped.infinite_reason
    assert training_check(network(6), X, Y, steps=5, infinite=True).infinite_reason is None


def test_readable_forms():
    check = training_check(network(6), X, Y, x_test=X_TEST, y_test=target(X_TEST), steps=50)
    text = repr(check)
    assert check.regime in text
    assert f"{float(check.loss[-1]):.4g}" in text
    assert f"{check.learning_rate:.4g}" in text
    assert "tensor(" not in text
    assert all(len(line) <= 120 for line in text.splitlines())
    assert check.verdict.explain() in check.explain()
    assert f"{check.max_learning_rate:.4g}" in check.explain()
    assert "No test examples" not in check.explain()
    assert "No test examples" in training_check(network(6), X, Y, steps=5, infinite=False).explain()
    lines = {line.name: line for line in check.figure().data}
    assert lines["predicted"].y[-1] == pytest.approx(float(check.loss_empirical[-1]), rel=1e-4)
    assert lines["kernel drift"].y[-1] == pytest.approx(float(check.kernel_drift[-1]), rel=1e-4)
    assert lines["on test examples"].x[-1] == 50
    values = check.to_dict()
    assert "model" not in values
    assert values["loss"] is check.loss
    assert values["verdict"]["regime"] == check.regime
    assert values["evidence"]["kernel_drift"] == float(check.kernel_drift[-1])


def test_explain_tells_of_the_edge_of_stability():
    smooth = training_check(RandomFeatures(), X, normal(8, 3), steps=100, infinite=False)
    assert bool((smooth.loss.diff() < 0).all())
    assert "edge of stability" not in smooth.explain()
    jumping = training_check(Scaled(network(32), 0.1), X, Y, steps=100, infinite=False)
    rise = float((jumping.loss[1:] / jumping.loss[:-1]).max())
    assert rise > 1.05
    assert f"up to {rise:.2g} times" in jumping.explain()
    assert "edge of stability" in jumping.explain()


def test_thresholds_are_used():
    marks = Thresholds(lazy_drift=1e-9, feature_drift=1e-8, lazy_error=1e-9, feature_error=1e-8)
    check = training_check(network(64), X, Y, steps=20, infinite=False, thresholds=marks)
    assert check.regime == "feature learning"
    assert check.verdict.thresholds is marks


def test_parameters_that_start_at_zero():
    model = RandomFeatures()
    nn.init.zeros_(model.top.weight)
    check = training_check(model, X, normal(8, 3), steps=5)
    assert check.evidence.parameter_movement == float("inf")
    assert check.regime == "lazy"


def fresh() -> nn.Module:
    return network(6)


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) - self.net(x).mean()


BAD = {
    "labels": (lambda: training_check(fresh(), X, torch.arange(8)), r"one_hot\(y"),
    "test labels": (
        lambda: training_check(fresh(), X, Y, x_test=X, y_test=torch.arange(8)),
        r"one_hot\(y_test",
    ),
    "list": (lambda: training_check(fresh(), X, [1.0] * 8), "y must be a torch.Tensor"),
    "NaN": (lambda: training_check(fresh(), X, Y / 0 * 0), "y holds NaN"),
    "NaN data": (lambda: training_check(fresh(), X * torch.nan, Y), "x holds NaN"),
    "empty": (lambda: training_check(fresh(), X[:0], Y[:0]), "x is empty"),
    "count": (lambda: training_check(fresh(), X, Y[:7]), r"y has shape \(7,\).*\(8, 1\) or \(8,\)"),
    "outputs": (lambda: training_check(network(6, out=2), X, Y), r"must be \(8, 2\)\."),
    "test count": (
        lambda: training_check(fresh(), X, Y, x_test=X_TEST, y_test=Y),
        r"y_test has shape \(8,\)",
    ),
    "test data missing": (lambda: training_check(fresh(), X, Y, y_test=Y), "without x_test"),
    "test width": (lambda: training_check(fresh(), X, Y, x_test=X_TEST[:, :3]), "x_test has"),
    "width": (lambda: training_check(fresh(), X[:, :3], Y), "does not run on x"),
    "module": (lambda: training_check(lambda x: x, X, Y), "model must be"),
    "steps": (lambda: training_check(fresh(), X, Y, steps=0), "steps is 0"),
    "fraction": (lambda: training_check(fresh(), X, Y, steps=2.5), "steps is 2.5"),
    "records": (lambda: training_check(fresh(), X, Y, records=1), "records is 1"),
    "rate": (lambda: training_check(fresh(), X, Y, learning_rate=-1.0), "learning_rate is -1"),
    "infinite": (lambda: training_check(fresh(), X, Y, infinite="yes"), "infinite is 'yes'"),
    "dropout": (
        lambda: training_check(nn.Sequential(fresh(), nn.Dropout()), X, Y),
        r"'1' \(Dropout\).*eval",
    ),
    "coupled": (lambda: training_check(Coupled(), X, Y), "Coupled"),
    "frozen": (lambda: training_check(fresh().requires_grad_(False), X, Y), "frozen"),
    "fitted": (lambda: training_check(fresh(), X, fresh()(X).detach()), "nothing to learn"),
    "dead": (
        lambda: training_check(nn.Sequential(Scaled(fresh(), 1.0), nn.ReLU()), X, Y),
        "NTK is zero",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises(InvalidInput, match=message):
        call()


@pytest.mark.parametrize("rate", [3.0, 1e3, 1e30, 1e300])
def test_divergence_is_an_error_with_a_way_out(rate):
    """One that is a little too large, and ones that overflow at the first step."""
    model = nn.Sequential(network(6), nn.Linear(1, 1, dtype=torch.float64))
    border = training_check(model, X, Y, steps=1, infinite=False).max_learning_rate
    message = f"learning_rate {rate * border:.6g} diverged.*max_learning_rate = {border:.6g}"
    with pytest.raises(InvalidInput, match=message.replace("+", r"\+")):
        training_check(model, X, 10 * Y, steps=100, learning_rate=rate * border, infinite=False)


def test_units_that_die_on_the_way():
    model = nn.Sequential(nn.Linear(4, 1, dtype=torch.float64), nn.ReLU())
    nn.init.constant_(model[0].bias, 3.0)
    nn.init.ones_(model[0].weight)
    y = torch.full((8,), -10.0).double()
    border = training_check(model, X, y, steps=1, learning_rate=1e-6).max_learning_rate
    with pytest.raises(InvalidInput, match=r"learning_rate .* left no gradient: at step \d+"):
        training_check(model, X, y, steps=50, learning_rate=border / 2, infinite=False)


def test_the_chosen_learning_rate_is_lowered_where_training_fails():
    """Deep and narrow without nonlinearity, far from its target: the kernel grows at once."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(3)))
    for layer in model:
        nn.init.ones_(layer.weight)
    x, y = torch.ones(1, 1).double(), torch.full((1,), 5.0).double()
    check = training_check(model, x, y, steps=30, infinite=False)
    halvings = round(math.log2(check.max_learning_rate / check.learning_rate))
    assert check.learning_rate == check.max_learning_rate / 2**halvings
    assert halvings > 1
    assert float(check.loss[-1]) < float(check.loss[0])
    with pytest.raises(InvalidInput, match="diverged"):
        training_check(model, x, y, steps=30, learning_rate=2 * check.learning_rate, infinite=False)


def test_a_module_that_cannot_be_copied():
    model = fresh()
    model.cache = model(X)
    with pytest.raises(InvalidInput, match="cannot be copied"):
        training_check(model, X, Y)
