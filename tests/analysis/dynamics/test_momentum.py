"""Momentum in closed form against torch.optim.SGD, exact recursions and an ODE solver."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from tangency.analysis.dynamics import (
    GradientDescent,
    GradientFlow,
    HeavyBall,
    LinearizedTraining,
    MomentumFlow,
    Nesterov,
)
from tangency.errors import InvalidInput

from .linear_model import LinearModel, close

DISCRETE = pytest.mark.parametrize("kind", [HeavyBall, Nesterov])


def options(kind: type, momentum: float) -> dict:
    return {"momentum": momentum, "nesterov": kind is Nesterov and momentum > 0}


def exact(kind: type, step: float, momentum: float, k: int) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Error left and parameter after k steps down step theta^2 / 2 - theta, in 350 digits."""
    with mpmath.workdps(350):
        x, b = mpmath.mpf(step), mpmath.mpf(momentum)
        # velocity' = b velocity + x theta - 1; theta' = theta - velocity', or with Nesterov
        # theta - (x theta - 1) - b velocity'.
        velocity = [x, b, -1]
        theta = [1 - x - b * x, -b * b, 1 + b] if kind is Nesterov else [1 - x, -b, 1]
        theta_k = (mpmath.matrix([theta, velocity, [0, 0, 1]]) ** k)[0, 2]
        return 1 - x * theta_k, theta_k


def one_mode(kind: type, step: float, momentum: float, k: int) -> tuple[float, float]:
    """The same two numbers as predicted; the test kernel is 1 and shows phi itself."""
    training = kind(np.array([[step]]), np.ones(1), 1.0, momentum=momentum)
    prediction = training.predict(k, np.array([[1.0]]))
    return float(prediction.mode_errors[0]), float(prediction.test[0])


@DISCRETE
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_matches_sgd_step_for_step(kind, ridge, momentum):
    model = LinearModel.random(5, m=4, out=2, p=7)
    rate = 0.5 * kind(model.kernel, model.y, 1.0, ridge, momentum=momentum).max_learning_rate
    training = kind(model.kernel, model.y, rate, ridge, momentum=momentum)
    prediction = training.predict(torch.arange(61), model.kernel_test, **model.starts)
    for step, theta in enumerate(model.sgd(60, rate, ridge, **options(kind, momentum))):
        train, test = model.outputs(theta)
        close(prediction.train[step], train, 1e-11)
        close(prediction.test[step], test, 1e-11)
        real = float((train - model.y).square().sum() / 10)
        assert float(prediction.loss[step]) == pytest.approx(real, rel=1e-9, abs=1e-14)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([HeavyBall, Nesterov]),
    momentum=st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.999]),
    relative=st.floats(1e-12, 1.05),
    k=st.integers(0, 80),
)
def test_one_mode_against_exact_arithmetic(kind, momentum, relative, k):
    bound = kind(np.eye(1), np.ones(1), 1.0, momentum=momentum).max_learning_rate
    step = relative * bound
    left, learned = exact(kind, step, momentum, k)
    found_left, found_learned = one_mode(kind, step, momentum, k)
    assert found_left == pytest.approx(float(left), rel=1e-10, abs=1e-12 * max(1, abs(float(left))))
    assert found_learned == pytest.approx(float(learned), rel=1e-10, abs=1e-12)


@DISCRETE
@pytest.mark.parametrize("momentum", [0.25, 0.64, 0.81])
@pytest.mark.parametrize("shift", [0.0, 1e-15, -1e-15, 1e-9, -1e-9])
def test_double_roots(kind, momentum, shift):
    double = (1 - math.sqrt(momentum)) ** 2
    if kind is Nesterov:
        double = ((1 - momentum) / (1 + momentum)) ** 2
    for k in (1, 10, 60):
        left, learned = exact(kind, double + shift, momentum, k)
        found = one_mode(kind, double + shift, momentum, k)
        assert found == pytest.approx((float(left), float(learned)), rel=1e-11)


@DISCRETE
@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("k", [1, 37, 10**4, 10**6, 10**9])
def test_small_modes_and_many_steps_keep_their_digits(kind, momentum, k):
    for step in (1e-8, 1e-13, 1e-18):
        left, learned = exact(kind, step, momentum, k)
        found_left, found_learned = one_mode(kind, step, momentum, k)
        assert found_learned == pytest.approx(float(learned), rel=1e-12, abs=0)
        assert found_left == pytest.approx(float(left), rel=1e-10, abs=1e-14)


@DISCRETE
def test_late_decay_is_right_in_relative_terms(kind):
    for step, momentum, k in ((0.5, 0.25, 600), (0.002, 0.5, 60_000), (0.03, 0.9, 3000)):
        left = exact(kind, step, momentum, k)[0]
        assert 1e-300 < abs(left) < 1e-50
        # The factor carries its own rounding k times.
        assert one_mode(kind, step, momentum, k)[0] == pytest.approx(
            float(left), rel=1e-15 * k * 10, abs=0
        )


@DISCRETE
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("ridge", [0.0, 1.5])
def test_stable_just_below_and_unstable_just_above_the_largest_rate(kind, ridge, momentum):
    model = LinearModel.random(6, 2, 1, 20)
    largest = np.linalg.norm(model.J.reshape(6, 20).numpy(), 2) ** 2 + ridge
    factor = 2 * (1 + momentum) if kind is HeavyBall else 2 * (1 + momentum) / (1 + 2 * momentum)
    bound = kind(model.kernel, model.y, 1.0, ridge, momentum=momentum).max_learning_rate
    assert bound == pytest.approx(factor * 6 / largest)
    for relative, grows in ((0.9, False), (1.1, True)):
        visited = model.sgd(600, relative * bound, ridge, **options(kind, momentum))
        training = kind(model.kernel, model.y, relative * bound, ridge, momentum=momentum)
        assert (float(visited[-1].norm()) > 1e3 * float(visited[5].norm())) == grows
        assert (float(training.contraction.max()) > 1) == grows
        if grows:
            with pytest.raises(InvalidInput, match="no limit"):
                training.predict(math.inf)
        else:
            flow = GradientFlow(model.kernel, model.y, ridge=ridge)
            close(training.predict(math.inf).train, flow.predict(math.inf).train, 1e-12)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from([HeavyBall, Nesterov]),
    momentum=st.floats(0.0, 0.99),
    relative=st.floats(0.001, 1.5),
)
def test_contraction_is_the_spectral_radius(kind, momentum, relative):
    training = kind(np.eye(1), np.ones(1), 1.0, momentum=momentum)
    x = relative * training.max_learning_rate
    b = momentum
    matrix = np.array([[1 - x, b], [-x, b]])
    if kind is Nesterov:
        matrix = np.array([[1 - (1 + b) * x, b * b], [-x, b]])
    radius = np.abs(np.linalg.eigvals(matrix)).max()
    # At double roots, eigvals itself is right to the root of a rounding only.
    assert float(kind(np.eye(1), np.ones(1), x, momentum=b).contraction[0]) == pytest.approx(
        radius, abs=3e-8
    )


@DISCRETE
def test_divergence_and_null_modes_without_nan(kind):
    K = np.diag([4.0, 1.0, 0.0])
    for dtype in (np.float32, np.float64):
        for ridge in (0.0, 5.0):
            training = kind(K.astype(dtype), np.ones(3), 100.0, ridge, momentum=0.9)
            steps = [10, 1001, 10**9, 10**15]
            prediction = training.predict(steps, np.ones((2, 3)))
            values = (prediction.train, prediction.test, prediction.mode_errors)
            assert not any(bool(v.isnan().any()) for v in (*values, training.loss(steps)))
            assert float(prediction.train[-1].abs().max()) > 1e100
    still = kind(np.zeros((2, 2)), np.ones(2), 1.0, momentum=0.5).predict([0, 5, math.inf])
    assert float(still.train.abs().max()) == 0
    assert still.loss.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("kind", [GradientFlow, GradientDescent, HeavyBall, Nesterov, MomentumFlow])
def test_null_modes_are_the_limit_of_small_ones(kind):
    reach, y = np.array([[0.0, 1.0]]), np.ones(2)
    times = [1, 5, 60]
    null = kind(np.diag([1.0, 0.0]), y, 0.3).predict(times, reach).test
    small = kind(np.diag([1.0, 1e-9]), y, 0.3).predict(times, reach).test
    assert float(null.min()) > 0
    close(null / small, torch.ones(3, 1).double(), 1e-6)


def test_no_momentum_is_gradient_descent():
    model = LinearModel.random(5, 3, 2, 30)
    steps = torch.tensor([0, 1, 2, 30, 1000])
    plain = GradientDescent(model.kernel, model.y, 0.1, 0.3)
    for kind in (HeavyBall, Nesterov):
        training = kind(model.kernel, model.y, 0.1, 0.3, momentum=0.0)
        assert training.max_learning_rate == pytest.approx(plain.max_learning_rate)
        close(training.contraction, plain.contraction, 1e-14)
        close(
            training.predict(steps, model.kernel_test).test,
            plain.predict(steps, model.kernel_test).test,
            1e-11,
        )


@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.95])
def test_momentum_flow_against_an_ode_solver(momentum, ridge):
    model, times = LinearModel.random(5, 3, 2, 4), [0.0, 0.1, 2.0, 30.0]
    n, p = 5, 4
    J, residual = model.J.reshape(-1, p).numpy(), (model.y - model.f0).reshape(-1).numpy()

    def move(_: float, state: np.ndarray) -> np.ndarray:
        theta, velocity = state[:p], state[p:]
        force = 0.2 / n * (J.T @ (J @ theta - residual) + ridge * theta)
        return np.concatenate([velocity, -(1 - momentum) * velocity - force])

    solved = solve_ivp(move, (0, 30), np.zeros(2 * p), "DOP853", times, rtol=1e-12, atol=1e-13)
    flow = MomentumFlow(model.kernel, model.y, 0.2, ridge, momentum=momentum)
    prediction = flow.predict(times, model.kernel_test, **model.starts)
    for index, theta in enumerate(solved.y[:p].T):
        train, test = model.outputs(torch.from_numpy(theta))
        close(prediction.train[index], train, 1e-9)
        close(prediction.test[index], test, 1e-9)


@pytest.mark.parametrize("shift", [0.0, 1e-14, -1e-14, 1e-8, -1e-8, 1e-4, -1e-4])
@pytest.mark.parametrize("time", [1e-3, 1.0, 40.0])
def test_momentum_flow_near_its_double_root(shift, time):
    momentum = 0.6
    damping = mpmath.mpf(1) - mpmath.mpf(momentum)
    step = float(damping**2 / 4) * (1 + shift)
    with mpmath.workdps(60):
        damping = 1 - mpmath.mpf(momentum)
        root = mpmath.sqrt(mpmath.mpc(damping**2 - 4 * mpmath.mpf(step)) + mpmath.mpf(10) ** -50)
        slow, fast = (-damping + root) / 2, (-damping - root) / 2
        e = (slow * mpmath.exp(fast * time) - fast * mpmath.exp(slow * time)) / (slow - fast)
        expected = float(e.real), float((1 - e.real) / step)
    assert one_mode(MomentumFlow, step, momentum, time) == pytest.approx(expected, rel=1e-9)


def test_small_steps_follow_the_momentum_flow():
    """Learning rate and (1 - momentum)^2 shrink together; both kinds come to the same limit."""
    model = LinearModel.random(4, 3, 2, 9)
    rate, damping, end = 0.5, 0.4, 24
    flow = MomentumFlow(model.kernel, model.y, rate, momentum=1 - damping).predict(end).train
    for kind in (HeavyBall, Nesterov):
        gaps = []
        for parts in (500, 5000):
            training = kind(model.kernel, model.y, rate / parts**2, momentum=1 - damping / parts)
            gaps.append(float((training.predict(end * parts).train - flow).abs().max()))
        assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.1)


def time_by_walking(training: LinearizedTraining, level: float, steps: int) -> float:
    """The first step at which the loss is at most the level, looked at one by one."""
    below = (training.loss(range(steps)) <= level).nonzero()
    return float(below[0]) if len(below) else math.inf


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([HeavyBall, Nesterov, GradientDescent]),
    relative=st.floats(0.01, 1.1),
    ridge=st.sampled_from([0.0, 0.5]),
    level=st.floats(1e-6, 2.0),
    seed=st.integers(0, 100),
)
def test_time_to_loss_is_the_first_step(kind, relative, ridge, level, seed):
    model = LinearModel.random(3, 1, 2, 8, seed)
    rate = relative * kind(model.kernel, model.y, ridge=ridge).max_learning_rate
    training = kind(model.kernel, model.y, rate, ridge=ridge)
    walked = time_by_walking(training, level, 3000)
    found = training.time_to_loss(level)
    assert found == walked or (math.isinf(walked) and found >= 3000)


def test_time_to_loss_where_the_loss_rises_again():
    # A ridge and steps that overshoot in one mode: the loss is low at odd steps.
    descent = GradientDescent(np.diag([1.0, 10.0]), np.array([2.0, 1.0]), 0.34, ridge=1.0)
    assert bool((descent.loss(range(20)).diff() > 0).any())
    for level in torch.linspace(0.3, 1.2, 60).tolist():
        assert descent.time_to_loss(level) == time_by_walking(descent, level, 200)
    # A slow swing, whose first pass through zero is late and short.
    slow = HeavyBall(np.eye(1), np.ones(1), 1e-8, momentum=0.99999)
    losses = slow.loss(range(20_000))
    first = float((losses <= 1e-5).nonzero()[0])
    assert 10_000 < first < 19_000
    assert slow.time_to_loss(1e-5) == first


def test_time_to_loss_of_flows():
    K, y = np.diag([2.0, 0.5]), np.array([1.0, 0.0])
    flow = GradientFlow(K, y, 0.3)
    # Loss 1/4 exp(-2 eta l t / n) falls to 1/100.
    assert flow.time_to_loss(0.01) == pytest.approx(math.log(25) / (2 * 0.3 * 2 / 2), rel=1e-12)
    assert flow.time_to_loss(0.25) == 0
    assert flow.time_to_loss(0.01, f0_train=np.array([2.0, 0.0])) == flow.time_to_loss(0.01)
    assert GradientFlow(K, y, ridge=1.0).time_to_loss(0.001) == math.inf
    assert GradientFlow(np.zeros((2, 2)), y).time_to_loss(0.1) == math.inf
    slow = MomentumFlow(K, y, 0.3, momentum=0.5)
    time = slow.time_to_loss(0.01)
    assert float(slow.loss(time)) == pytest.approx(0.01, rel=1e-9)
    earlier = torch.linspace(0, time * (1 - 1e-9), 5000, dtype=torch.float64)
    assert float(slow.loss(earlier).min()) > 0.01
    late = GradientDescent(np.array([[1e-6]]), np.ones(1)).time_to_loss(1e-3)
    assert late == math.ceil(math.log(0.5 / 1e-3) / 2 / -math.log1p(-1e-6))
    with pytest.raises(InvalidInput, match="loss"):
        flow.time_to_loss(-1.0)


@pytest.mark.parametrize("kind", [HeavyBall, Nesterov, MomentumFlow])
def test_bad_momentum_is_refused(kind):
    for momentum in (-0.1, 1.0, math.nan):
        with pytest.raises(InvalidInput, match="momentum"):
            kind(np.eye(2), np.ones(2), 0.1, momentum=momentum)
    if kind is not MomentumFlow:
        with pytest.raises(InvalidInput, match="whole steps"):
            kind(np.eye(2), np.ones(2), 0.1).predict(0.5)


@pytest.mark.parametrize("kind", [GradientFlow, GradientDescent, HeavyBall, Nesterov, MomentumFlow])
def test_results_show_themselves(kind):
    model = LinearModel.random(5, 3, 2, 8)
    training = kind(model.kernel, model.y, 0.05, ridge=0.1)
    figure = training.figure()
    assert len(figure.data) >= 3
    assert kind.__name__ in repr(training)
    about = training.to_dict()
    assert about["kind"] == kind.__name__
    assert about["contraction"].shape == (10,)
    prediction = training.predict([1, 2], model.kernel_test)
    assert set(prediction.to_dict()) >= {"times", "train", "test", "loss", "mode_errors"}
    close(prediction.loss, training.loss([1, 2]), 0)
    with pytest.raises(InvalidInput, match="several times"):
        training.predict(1).figure()
