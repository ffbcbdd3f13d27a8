"""Any loss by an ODE solver: against closed forms, flows of the parameters, and real training."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import solve_ivp
from scipy.special import expit, softmax
from torch import Tensor, nn

import tangency as tg
from tangency.analysis.dynamics import GradientFlow, LossFlow
from tangency.errors import InvalidInput

from .linear_model import LinearModel, close

TIMES = [0.0, 0.3, 2.0, 11.0]
TIGHT = {"rtol": 1e-10, "atol": 1e-11}
CLASSES = torch.tensor([0, 2, 1, 1, 2])
SIGNS = torch.tensor([[1.0, -1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]]).double()


@pytest.mark.parametrize("ridge", [0.0, 0.8])
@pytest.mark.parametrize("method", ["DOP853", "LSODA"])
def test_squared_loss_is_the_closed_form(method, ridge):
    model = LinearModel.random(5, 3, 2, 7)
    closed = GradientFlow(model.kernel, model.y, 0.4, ridge)
    solved = LossFlow(model.kernel, model.y, "squared", 0.4, ridge, method=method, **TIGHT)
    expected = closed.predict(TIMES, model.kernel_test, **model.starts)
    found = solved.predict(TIMES, model.kernel_test, **model.starts)
    close(found.train, expected.train, 1e-8)
    close(found.test, expected.test, 1e-8)
    close(found.loss, expected.loss, 1e-8)
    close(solved.loss(2.0, model.f0), closed.loss(2.0, model.f0), 1e-8)


def test_tolerances_are_those_of_the_solver():
    model = LinearModel.random(5, 3, 2, 7)
    exact = GradientFlow(model.kernel, model.y, 0.4).predict(2.0).train
    errors, work = [], []
    for rtol in (1e-3, 1e-6, 1e-9):
        flow = LossFlow(model.kernel, model.y, "squared", 0.4, rtol=rtol, atol=rtol)
        errors.append(float((flow.predict(2.0).train - exact).abs().max()))
        work.append(flow.evaluations)
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] < 1e-2
    assert errors[1] < 1e-5
    assert errors[2] < 1e-8
    assert work == sorted(set(work))


def gradient(loss: str, outputs: np.ndarray, n: int) -> np.ndarray:
    """Of the mean loss in the outputs (n, out), by hand."""
    if loss == "cross-entropy":
        return (softmax(outputs, axis=1) - np.eye(3)[CLASSES]) / n
    if loss == "logistic":
        return -SIGNS.numpy() * expit(-SIGNS.numpy() * outputs) / n
    return np.clip(outputs - 2 * SIGNS.numpy(), -1, 1) / n


@pytest.mark.parametrize("loss", ["cross-entropy", "logistic", "huber"])
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_other_losses_against_a_flow_of_the_parameters(loss, ridge):
    out = 3 if loss == "cross-entropy" else 2
    model, n, p, rate = LinearModel.random(5, 4, out, 6), 5, 6, 0.7
    y = {"cross-entropy": CLASSES, "logistic": SIGNS, "huber": 2 * SIGNS}[loss]
    J = model.J.reshape(-1, p).numpy()

    def velocity(_: float, theta: np.ndarray) -> np.ndarray:
        outputs = model.f0.numpy() + (J @ theta).reshape(n, out)
        return -rate * (J.T @ gradient(loss, outputs, n).reshape(-1) + ridge / n * theta)

    solved = solve_ivp(velocity, (0, 11), np.zeros(p), "RK45", TIMES, rtol=1e-11, atol=1e-12)
    flow = LossFlow(model.kernel, y, loss, rate, ridge, **TIGHT)
    found = flow.predict(TIMES, model.kernel_test, **model.starts)
    for index, theta in enumerate(solved.y.T):
        train, test = model.outputs(torch.from_numpy(theta))
        close(found.train[index], train, 1e-8)
        close(found.test[index], test, 1e-8)


def test_cross_entropy_against_real_training_of_a_linearised_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    x, x_test, rate, time = torch.randn(5, 4).double(), torch.randn(3, 4).double(), 0.5, 4
    kernel = tg.EmpiricalKernel(model, output="full")
    flow = LossFlow(kernel.ntk(x), CLASSES, "cross-entropy", rate, **TIGHT)
    starts = {"f0_train": model(x).detach(), "f0_test": model(x_test).detach()}
    found = flow.predict(time, kernel.ntk(x_test, x), **starts)
    gaps = []
    for parts in (12, 24):
        linear = tg.linearize(model)
        optimizer = torch.optim.SGD(linear.parameters(), lr=rate / parts)
        for _ in range(time * parts):
            optimizer.zero_grad()
            F.cross_entropy(linear(x), CLASSES).backward()
            optimizer.step()
        gaps.append((linear(x_test) - found.test).detach())
    # Euler's error is linear in the step: two runs extrapolate to the flow.
    assert float(gaps[1].abs().max()) < 0.02
    close(2 * gaps[1] - gaps[0], torch.zeros(3, 3).double(), 2e-4)


def test_functions_as_losses():
    model = LinearModel.random(5, 4, 3, 20)

    def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
        assert outputs.shape == (5, 3)
        return F.cross_entropy(outputs, targets)

    K = model.kernel[..., 0, 0]
    by_name = LossFlow(K, CLASSES, "cross-entropy", 0.5).predict(TIMES)
    assert by_name.train.shape == (4, 5, 3)
    close(LossFlow(K, CLASSES, smoothed, 0.5).predict(TIMES).train, by_name.train, 1e-12)
    one_hot = F.one_hot(CLASSES, 3).double()
    close(LossFlow(K, one_hot, "cross-entropy", 0.5).predict(TIMES).train, by_name.train, 1e-5)
    more = LossFlow(K, CLASSES.numpy(), "cross-entropy", 0.5, outputs=4).predict(TIMES)
    assert more.train.shape == (4, 5, 4)

    def quartic(outputs: Tensor, targets: Tensor) -> Tensor:
        assert outputs.shape == targets.shape == (5,)
        return (outputs - targets).pow(4).mean() / 4

    flow = LossFlow(np.eye(5), np.linspace(1, 2, 5), quartic, **TIGHT)
    # r' = -r^3 / n
    left = 1 / np.sqrt(1 / np.linspace(1, 2, 5) ** 2 + 2 * 3.0 / 5)
    found = flow.predict(3.0)
    assert found.train.tolist() == pytest.approx(np.linspace(1, 2, 5) - left, rel=1e-8)
    assert found.train.dtype == torch.float64


def test_solutions_are_resumed():
    model = LinearModel.random(5, 4, 3, 20)
    flow = LossFlow(model.kernel, CLASSES, "cross-entropy", 0.5)
    flow.predict(40.0)
    first = flow.evaluations
    again = flow.predict(40.0, model.kernel_test)
    assert flow.evaluations == first
    later = flow.predict([40.0, 44.0], model.kernel_test)
    assert flow.evaluations - first < first / 2
    close(later.train[0], again.train, 0)
    # Earlier times, in any order, and the same as from a fresh start.
    mixed = flow.predict([44.0, 3.0, 41.0, 0.0], model.kernel_test)
    fresh = LossFlow(model.kernel, CLASSES, "cross-entropy", 0.5, **TIGHT)
    close(mixed.test, fresh.predict([44.0, 3.0, 41.0, 0.0], model.kernel_test).test, 1e-4)
    # Another start is another solution.
    other = flow.predict(3.0, f0_train=model.f0)
    assert float((other.train - mixed.train[1]).abs().max()) > 0.1
    # From one process to another.
    flow.predict(44.0)
    state = flow.state()
    resumed = LossFlow(model.kernel, CLASSES, "cross-entropy", 0.5)
    resumed.load_state(state)
    close(resumed.predict(50.0).train, flow.predict(50.0).train, 1e-10)
    assert resumed.evaluations < first / 2
    assert state["time"] == 44.0
    with pytest.raises(InvalidInput, match="predict first"):
        LossFlow(model.kernel, CLASSES, "cross-entropy").state()
    with pytest.raises(InvalidInput, match="another problem"):
        LossFlow(np.eye(2), np.ones(2), "huber").load_state(state)


def test_time_to_loss():
    model = LinearModel.random(5, 3, 2, 20)
    closed = GradientFlow(model.kernel, model.y, 0.4)
    expected = closed.time_to_loss(0.05, model.f0)
    fresh = LossFlow(model.kernel, model.y, "squared", 0.4, **TIGHT)
    assert fresh.time_to_loss(0.05, model.f0) == pytest.approx(expected, rel=1e-8)
    # Between times that are known, and beyond them.
    for known in ([expected / 2, 2 * expected], [expected / 2], [2 * expected]):
        flow = LossFlow(model.kernel, model.y, "squared", 0.4, **TIGHT)
        flow.predict(known, f0_train=model.f0)
        assert flow.time_to_loss(0.05, model.f0) == pytest.approx(expected, rel=1e-8)
        assert float(flow.loss(expected, model.f0)) == pytest.approx(0.05, rel=1e-7)
    assert flow.time_to_loss(1e9, model.f0) == 0
    assert flow.time_to_loss(0.0, model.f0, until=3.0) == math.inf
    assert flow.time_to_loss(0.0, model.f0, until=1.0) == math.inf
    ridge = LossFlow(model.kernel, model.y, "squared", 0.4, ridge=5.0)
    floor = float(GradientFlow(model.kernel, model.y, 0.4, 5.0).loss(math.inf))
    assert ridge.time_to_loss(0.9 * floor, until=1000.0) == math.inf
    assert math.isfinite(ridge.time_to_loss(1.1 * floor, until=1000.0))
    for arguments in ((math.nan,), (0.1, None)):
        with pytest.raises(InvalidInput, match="until"):
            flow.time_to_loss(*arguments, until=1.0 if len(arguments) == 1 else -1.0)


def test_zero_and_single_precision_kernels():
    still = LossFlow(np.zeros((3, 3)), np.ones(3), "huber").predict([1.0, 5.0])
    assert float(still.train.abs().max()) == 0
    K = torch.eye(3) * 2
    found = LossFlow(K, np.ones((3, 2)), "squared").predict([0.5, 1.0], np.ones((4, 3)))
    assert found.train.dtype == found.test.dtype == found.loss.dtype == torch.float32
    assert found.mode_errors is None


def test_results_show_themselves():
    flow = LossFlow(np.eye(3), np.ones(3), "huber", ridge=0.1)
    assert "huber" in repr(flow)
    assert flow.to_dict()["state"] is None
    assert len(flow.figure(np.linspace(0, 5, 20)).data) == 4
    about = flow.to_dict()
    assert about["evaluations"] == flow.evaluations > 0
    json.dumps({k: v for k, v in about.items() if k != "state"})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"loss": "hinge"}, "hinge"),
        ({"loss": "logistic", "y_train": np.array([0.0, 1.0])}, "-1"),
        ({"loss": "cross-entropy", "y_train": np.ones(2)}, "classes"),
        ({"loss": "cross-entropy", "y_train": np.ones((2, 2))}, "probabilities"),
        ({"loss": "cross-entropy", "y_train": np.array([0, -1])}, "start at 0"),
        ({"loss": "cross-entropy", "y_train": np.array([0, 3]), "outputs": 2}, "class 3"),
        ({"loss": "cross-entropy", "y_train": np.array([0, 1, 1])}, "classes of 2"),
        ({"loss": "squared", "y_train": np.array([0, 1])}, "y_train"),
        ({"loss": "squared", "outputs": 3}, "outputs=3"),
        ({"method": "Euler"}, "Euler"),
        ({"rtol": 0.0}, "rtol"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"ridge": -1.0}, "ridge"),
        ({"K_train": np.array([[1.0, math.nan], [0.0, 1.0]])}, "NaN"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    given = {"K_train": np.eye(2), "y_train": np.array([1.0, -1.0]), "loss": "huber", **arguments}
    with pytest.raises(InvalidInput, match=match):
        LossFlow(**given)


def test_bad_losses_are_refused():
    def vector(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - targets

    def counted(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs > targets).double().mean()

    def infinite(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.log().mean()

    for loss, match in ((vector, "one number"), (counted, "autograd"), (infinite, "not finite")):
        with pytest.raises(InvalidInput, match=match):
            LossFlow(np.eye(2), np.ones(2), loss).predict(1.0)
    flow = LossFlow(np.eye(2), np.ones(2), "huber")
    for times in (math.inf, [-1.0], math.nan):
        with pytest.raises(InvalidInput):
            flow.predict(times)
    with torch.no_grad():
        assert flow.predict(1.0).train.shape == (2,)
