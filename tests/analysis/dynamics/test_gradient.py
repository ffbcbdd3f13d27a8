"""Closed-form training against real training of models that are linear in their parameters."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge
from torch import nn

from tangency.analysis import GradientDescent, GradientFlow
from tangency.errors import InvalidInput, SingularKernel

from .linear_model import LinearModel, close

BOTH = pytest.mark.parametrize("kind", [GradientFlow, GradientDescent])


@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize(("n", "p"), [(5, 20), (6, 4)])
def test_descent_matches_sgd_step_for_step(n, p, ridge):
    model = LinearModel.random(n, m=4, out=2, p=p)
    descent = GradientDescent(model.kernel, model.y, learning_rate=0.1, ridge=ridge)
    prediction = descent.predict(torch.arange(41), model.kernel_test, **model.starts)
    assert prediction.train.shape == (41, n, 2)
    losses = descent.loss(torch.arange(41), f0_train=model.f0)
    for step, theta in enumerate(model.sgd(40, 0.1, ridge)):
        train, test = model.outputs(theta)
        close(prediction.train[step], train, 1e-11)
        close(prediction.test[step], test, 1e-11)
        real_loss = float((train - model.y).square().sum() / (2 * n))
        assert float(losses[step]) == pytest.approx(real_loss, rel=1e-9, abs=1e-14)


def test_descent_matches_sgd_of_a_linear_layer_with_a_shared_kernel():
    torch.manual_seed(0)
    n, m, d, out = 7, 5, 3, 4
    x, x_test, y = torch.randn(n, d), torch.randn(m, d), torch.randn(n, out)
    x, x_test, y = x.double(), x_test.double(), y.double()
    layer = nn.Linear(d, out).double()
    starts = {"f0_train": layer(x).detach(), "f0_test": layer(x_test).detach()}
    descent = GradientDescent(x @ x.T + 1, y, learning_rate=0.3)
    predicted = descent.predict(range(31), x_test @ x.T + 1, **starts)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    for step in range(31):
        close(predicted.train[step], layer(x).detach(), 1e-11)
        close(predicted.test[step], layer(x_test).detach(), 1e-11)
        optimizer.zero_grad()
        ((layer(x) - y).square().sum() / (2 * n)).backward()
        optimizer.step()


@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize(("n", "p"), [(5, 20), (6, 4)])
def test_flow_matches_an_ode_solver(n, p, ridge):
    model, times = LinearModel.random(n, m=3, out=2, p=p), [0.0, 0.1, 1.0, 3.0, 20.0]
    flow = GradientFlow(model.kernel, model.y, learning_rate=0.5, ridge=ridge)
    prediction = flow.predict(times, model.kernel_test, **model.starts)
    losses = flow.loss(times, f0_train=model.f0)
    for index, theta in enumerate(model.flow(times, 0.5, ridge)):
        train, test = model.outputs(theta)
        close(prediction.train[index], train, 1e-9)
        close(prediction.test[index], test, 1e-9)
        assert float(losses[index]) == pytest.approx(
            float((train - model.y).square().sum() / (2 * n)), abs=1e-9
        )


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 5),
    out=st.integers(1, 3),
    p=st.integers(1, 12),
    steps=st.integers(0, 12),
    relative_rate=st.floats(0.01, 1.2),
    ridge=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_descent_equals_the_recursion_of_the_parameters(
    n, out, p, steps, relative_rate, ridge, seed
):
    model = LinearModel.random(n, 2, out, p, seed)
    flat = model.J.reshape(-1, p).numpy()
    rate = relative_rate * 2 * n / (np.linalg.norm(flat, 2) ** 2 + ridge)
    theta, residual = np.zeros(p), (model.y - model.f0).reshape(-1).numpy()
    for _ in range(steps):
        theta = theta - rate / n * (flat.T @ (flat @ theta - residual) + ridge * theta)
    descent = GradientDescent(model.kernel, model.y, rate, ridge)
    predicted = descent.predict(steps, model.kernel_test, **model.starts)
    train, test = model.outputs(torch.from_numpy(theta))
    close(predicted.train, train, 1e-10)
    close(predicted.test, test, 1e-9)


@BOTH
def test_vector_targets_give_vectors(kind):
    model = LinearModel.random(4, 3, 1, 9)
    K, K_test, y = model.kernel[..., 0, 0], model.kernel_test[..., 0, 0], model.y[:, 0]
    training = kind(K, y, 0.1)
    matrix = kind(K, model.y, 0.1).predict(3, K_test)
    vector = training.predict(3, K_test)
    assert vector.train.shape == (4,)
    assert vector.test.shape == (3,)
    assert torch.equal(vector.train, matrix.train[:, 0])
    many = training.predict([1, 2, 3], K_test)
    assert many.train.shape == (3, 4)
    assert many.test.shape == (3, 3)
    close(many.test[2], vector.test, 1e-15)
    assert training.predict([3]).train.shape == (1, 4)
    assert training.predict(3).test is None
    # A full kernel of one output takes them too.
    close(kind(model.kernel, y, 0.1).predict(3, model.kernel_test).test, vector.test, 1e-13)


@BOTH
def test_time_zero_is_the_start(kind):
    model = LinearModel.random(5, 3, 2, 4)
    for ridge in (0.0, 1.0):
        # The learning rate at which one mode is learned in a single step: log 0 at step 0.
        largest = float(np.linalg.norm(model.J.reshape(-1, 4).numpy(), 2) ** 2)
        training = kind(model.kernel, model.y, 5 / (largest + ridge), ridge)
        start = training.predict(0, model.kernel_test, **model.starts)
        assert torch.equal(start.train, model.f0)
        assert torch.equal(start.test, model.f0_test)
        expected = float((model.f0 - model.y).square().sum() / 10)
        assert float(training.loss(0, model.f0)) == pytest.approx(expected)


@BOTH
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_limit_is_kernel_regression(kind, ridge):
    model = LinearModel.random(5, 3, 2, 30)
    K = model.J.reshape(10, 30).numpy() @ model.J.reshape(10, 30).numpy().T
    K_test = model.J_test.reshape(6, 30).numpy() @ model.J.reshape(10, 30).numpy().T
    alpha = np.linalg.solve(K + ridge * np.eye(10), (model.y - model.f0).reshape(-1).numpy())
    limit = kind(model.kernel, model.y, 0.05, ridge).predict(
        math.inf, model.kernel_test, **model.starts
    )
    close(limit.train, model.f0 + torch.from_numpy(K @ alpha).reshape(5, 2), 1e-12)
    close(limit.test, model.f0_test + torch.from_numpy(K_test @ alpha).reshape(3, 2), 1e-11)
    if ridge == 0:
        close(limit.train, model.y, 1e-12)


@BOTH
@pytest.mark.parametrize("p", [3, 30])
def test_limit_with_ridge_is_sklearn_kernel_ridge(kind, p):
    rng = np.random.default_rng(0)
    X, X_test, y = rng.normal(size=(8, p)), rng.normal(size=(4, p)), rng.normal(size=(8, 2))
    reference = KernelRidge(alpha=0.3, kernel="precomputed").fit(X @ X.T, y)
    limit = kind(X @ X.T, y, 0.05, ridge=0.3).predict(math.inf, X_test @ X.T)
    close(limit.test, torch.from_numpy(reference.predict(X_test @ X.T)), 1e-12)
    close(limit.train, torch.from_numpy(reference.predict(X @ X.T)), 1e-12)


@BOTH
def test_singular_limit_is_the_least_squares_solution(kind):
    rng = np.random.default_rng(1)
    X, X_test, y = rng.normal(size=(9, 4)), rng.normal(size=(5, 4)), rng.normal(size=9)
    theta = np.linalg.lstsq(X, y, rcond=None)[0]
    training = kind(X @ X.T, y, 0.05)
    limit = training.predict(math.inf, X_test @ X.T)
    close(limit.train, torch.from_numpy(X @ theta), 1e-12)
    close(limit.test, torch.from_numpy(X_test @ theta), 1e-12)
    # ... which is where long finite training arrives.
    late = training.predict(100_000, X_test @ X.T)
    close(late.test, limit.test, 1e-9)
    assert float(training.loss(math.inf)) == pytest.approx(((X @ theta - y) ** 2).sum() / 18)


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_duplicated_examples_with_different_targets_meet_in_the_middle(kind, dtype):
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(5, 12)).astype(dtype), rng.normal(size=5)
    X[3] = X[0]
    X_test = np.concatenate([X[:1], rng.normal(size=(2, 12)).astype(dtype)])
    training, K_test = kind(X @ X.T, y, 0.02), X_test @ X.T
    limit = training.predict(math.inf, K_test)
    middle = (y[0] + y[3]) / 2
    tolerance = 1e-4 if dtype == np.float32 else 1e-11
    for value in (limit.train[0], limit.train[3], limit.test[0]):
        assert float(value) == pytest.approx(middle, abs=tolerance)
    assert float(limit.train[1]) == pytest.approx(y[1], abs=tolerance)


@BOTH
def test_rounding_in_null_modes_does_not_grow_with_time(kind):
    rng = np.random.default_rng(3)
    X, X_test = rng.normal(size=(30, 4)), rng.normal(size=(10, 4))
    K, K_test = (X @ X.T).astype(np.float32), (X_test @ X.T).astype(np.float32)
    y = rng.normal(size=30)
    theta = np.linalg.lstsq(X, y, rcond=None)[0]
    prediction = kind(K, y, 0.1).predict([10**5, 10**9, 10**15], K_test)
    for train, test in zip(prediction.train, prediction.test, strict=True):
        close(train.double(), torch.from_numpy(X @ theta), 1e-5)
        close(test.double(), torch.from_numpy(X_test @ theta), 0.1)


def test_exact_zero_eigenvalue_grows_linearly_and_has_no_nan():
    K = np.diag([2.0, 0.0])
    for kind in (GradientFlow, GradientDescent):
        training = kind(K, np.ones(2), 0.5)
        # A test kernel with a part in the null space: alpha is seen there.
        prediction = training.predict([0, 1, 8, 1000], np.array([[0.0, 1.0]]))
        assert prediction.test[:, 0].tolist() == pytest.approx([0, 0.25, 2, 250], rel=1e-14)
        assert prediction.train[:, 1].tolist() == [0, 0, 0, 0]
        with pytest.raises(SingularKernel, match="ridge"):
            training.predict(math.inf, np.array([[0.0, 1.0]]))
        assert float(training.predict(math.inf).train[1]) == 0
        # No target there, or no reach: the limit is as good as any.
        assert float(training.predict(math.inf, np.array([[3.0, 0.0]])).test) == pytest.approx(1.5)
        calm = kind(K, np.array([1.0, 0.0]), 0.5).predict(math.inf, np.array([[3.0, 1.0]]))
        assert float(calm.test) == pytest.approx(1.5)


@BOTH
def test_kernel_of_zeros(kind):
    training = kind(np.zeros((3, 3)), np.ones(3))
    prediction = training.predict([0, 5, math.inf], np.zeros((2, 3)))
    assert float(prediction.train.abs().max()) == 0
    assert float(prediction.test.abs().max()) == 0
    assert training.max_learning_rate == math.inf
    assert training.loss([0, 5]).tolist() == [0.5, 0.5]


@settings(max_examples=25, deadline=None)
@given(
    first=st.integers(0, 30),
    second=st.integers(0, 30),
    p=st.integers(1, 12),
    kind=st.sampled_from([GradientFlow, GradientDescent]),
    seed=st.integers(0, 1000),
)
def test_semigroup(first, second, p, kind, seed):
    model = LinearModel.random(4, 3, 2, p, seed)
    training = kind(
        model.kernel, model.y, 0.9 * GradientFlow(model.kernel, model.y).max_learning_rate
    )
    middle = training.predict(first, model.kernel_test, **model.starts)
    end = training.predict(second, model.kernel_test, f0_train=middle.train, f0_test=middle.test)
    whole = training.predict(first + second, model.kernel_test, **model.starts)
    close(end.train, whole.train, 1e-11)
    close(end.test, whole.test, 1e-10)


def test_flow_is_the_limit_of_small_steps():
    model = LinearModel.random(4, 3, 2, 9)
    flow = GradientFlow(model.kernel, model.y, 1.0, ridge=0.2).predict(2.0, model.kernel_test)
    gaps = []
    for parts in (100, 1000):
        descent = GradientDescent(model.kernel, model.y, 1 / parts, ridge=0.2)
        gaps.append(
            float((descent.predict(2 * parts, model.kernel_test).test - flow.test).abs().max())
        )
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.1)


@pytest.mark.parametrize("ridge", [0.0, 2.0])
def test_stable_just_below_and_unstable_just_above_the_largest_rate(ridge):
    model = LinearModel.random(6, 2, 1, 20)
    bound = GradientDescent(model.kernel, model.y, ridge=ridge).max_learning_rate
    assert bound == pytest.approx(
        12 / (np.linalg.norm(model.J.reshape(6, 20).numpy(), 2) ** 2 + ridge)
    )
    final = GradientFlow(model.kernel, model.y, ridge=ridge).predict(math.inf).train
    for factor, grows in ((0.99, False), (1.01, True)):
        # Real training is on the same side of the bound.
        theta = model.sgd(1500, factor * bound, ridge)
        start = model.f0
        real = [float((model.outputs(t)[0]).norm()) for t in (theta[100], theta[-1])]
        descent = GradientDescent(model.kernel, model.y, factor * bound, ridge)
        ends = descent.predict([0, 1500]).train
        distance = (ends - final).flatten(1).norm(dim=1)
        assert bool(distance[1] > distance[0]) == grows
        assert (real[1] > 10 * float(start.norm())) == grows
        if grows:
            with pytest.raises(InvalidInput, match=f"max_learning_rate = {bound:.6g}"):
                descent.predict(math.inf)
            with pytest.raises(InvalidInput, match="no limit"):
                descent.loss([1, math.inf])
        else:
            close(descent.predict(math.inf).train, final, 1e-10)


def test_diverging_descent_has_no_nan():
    K = np.diag([4.0, 1.0, 0.0])
    for dtype in (np.float32, np.float64):
        for ridge in (0.0, 5.0):
            descent = GradientDescent(K.astype(dtype), np.ones(3), 100.0, ridge)
            prediction = descent.predict([10, 1001, 10**9, 10**15], np.ones((2, 3)))
            for values in (prediction.train, prediction.test, descent.loss([10, 10**15])):
                assert not bool(values.isnan().any())
            assert float(prediction.train[-1].abs().max()) > 1e100


def test_small_eigenvalues_are_learned_to_full_relative_precision():
    small, steps = 1e-11, 7
    K = np.diag([1.0, small])
    for kind in (GradientFlow, GradientDescent):
        learned = kind(K, np.ones(2), 1.0).predict(steps).train[1]
        assert float(learned) == pytest.approx(steps * small / 2, rel=1e-9, abs=0)


def test_many_steps_at_the_edge_of_stability_keep_their_digits():
    # One mode with factor -(1 - 2^-30): an even number of steps leaves nearly everything.
    factor = 1 - 2.0**-30
    descent = GradientDescent(np.ones((1, 1)), np.ones(1), 1 + factor)
    values = descent.predict([2, 3]).train[:, 0]
    assert float(values[0]) == pytest.approx(2 * 2.0**-30 - 2.0**-60, rel=1e-12)
    assert float(values[1]) == pytest.approx(1 + factor**3, rel=1e-15)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), relative_rate=st.floats(0.01, 0.5), p=st.integers(1, 12))
def test_loss_never_rises_below_half_the_largest_rate(seed, relative_rate, p):
    model = LinearModel.random(4, 1, 2, p, seed)
    rate = relative_rate * GradientDescent(model.kernel, model.y).max_learning_rate
    for kind in (GradientFlow, GradientDescent):
        losses = kind(model.kernel, model.y, rate).loss(range(60), f0_train=model.f0)
        assert bool((losses.diff() <= 1e-15 * losses[0]).all())


def test_results_follow_the_kernel():
    K = torch.eye(3) * 2
    training = GradientFlow(K, np.ones((3, 2)))
    prediction = training.predict([0.5, 1.0], np.ones((4, 3)))
    assert prediction.train.dtype == torch.float32
    assert prediction.test.dtype == torch.float32
    assert training.loss(1.0).dtype == torch.float32
    assert training.loss(1.0).shape == ()
    double = GradientFlow(K.double(), np.ones((3, 2))).predict(1.0)
    close(prediction.train[1].double(), double.train, 1e-7)


def test_times_of_every_kind():
    training = GradientDescent(np.eye(2), np.ones(2), 0.5)
    expected = [0.25, 1 - 0.75**2]
    for times in ([1, 2], (1.0, 2.0), np.array([1, 2]), torch.tensor([1, 2]), range(1, 3)):
        assert training.predict(times).train[:, 0].tolist() == pytest.approx(expected)
    for time in (2, 2.0, np.int64(2), np.array(2), torch.tensor(2)):
        assert float(training.predict(time).train[0]) == pytest.approx(expected[1])


@BOTH
@pytest.mark.parametrize(
    "times",
    [-1, [1, -2], math.nan, [], [[1.0]], "soon", None, 1j, torch.zeros(2, 2)],
)
def test_bad_times_are_refused(kind, times):
    with pytest.raises(InvalidInput, match="times"):
        kind(np.eye(2), np.ones(2), 0.5).predict(times)


def test_descent_refuses_parts_of_steps():
    descent = GradientDescent(np.eye(2), np.ones(2), 0.5)
    with pytest.raises(InvalidInput, match=r"whole steps, got 2\.5"):
        descent.predict([1, 2.5])
    with pytest.raises(InvalidInput, match="whole steps"):
        descent.loss(0.1)


@BOTH
def test_bad_arguments_are_refused(kind):
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidInput, match="learning_rate"):
            kind(np.eye(2), np.ones(2), rate)
    for ridge in (-1e-9, math.nan, math.inf):
        with pytest.raises(InvalidInput, match="ridge"):
            kind(np.eye(2), np.ones(2), ridge=ridge)
    with pytest.raises(InvalidInput, match="y_train"):
        kind(np.eye(2), np.array([0, 1]))
    with pytest.raises(InvalidInput, match=r"positive semi-definite.*ridge above 0\.5"):
        kind(np.diag([1.0, -0.5]), np.ones(2), ridge=0.4)
    # A ridge above the negative eigenvalue makes the system definite.
    limit = kind(np.diag([1.0, -0.5]), np.ones(2), ridge=1.0, learning_rate=0.1).predict(math.inf)
    assert limit.train.tolist() == pytest.approx([0.5, -1.0])


@BOTH
def test_initial_outputs_come_together_or_not_at_all(kind):
    training, K_test = kind(np.eye(2), np.ones(2), 0.5), np.ones((3, 2))
    with pytest.raises(InvalidInput, match="f0_test is missing"):
        training.predict(1, K_test, f0_train=np.ones(2))
    with pytest.raises(InvalidInput, match="f0_train is missing"):
        training.predict(1, K_test, f0_test=np.ones(3))
    with pytest.raises(InvalidInput, match="without K_test_train"):
        training.predict(1, f0_train=np.ones(2), f0_test=np.ones(3))
    with pytest.raises(InvalidInput, match="f0_train must be laid out as y_train"):
        training.predict(1, f0_train=np.ones((2, 1)))
    with pytest.raises(InvalidInput, match=r"f0_test has shape \(2,\).*3 examples"):
        training.predict(1, K_test, f0_train=np.ones(2), f0_test=np.ones(2))
    with pytest.raises(InvalidInput, match="K_test_train"):
        training.predict(1, np.ones((3, 4)))


def test_printing_and_dictionary():
    training = GradientDescent(np.eye(2) * 4, np.ones((2, 3)), 0.25, ridge=1.0)
    text = repr(training)
    for word in ("GradientDescent", "2 examples", "3 outputs", "0.25", "ridge=1", "0.8"):
        assert word in text
    prediction = training.predict([1, 2])
    assert "2 times" in repr(prediction)
    assert "time 3" in repr(training.predict(3))
    assert prediction.to_dict()["test"] is None
    assert prediction.to_dict()["times"].tolist() == [1, 2]


def test_nothing_global_is_touched():
    state = torch.get_rng_state()
    training = GradientFlow(torch.eye(3), torch.ones(3))
    training.predict([1.0, math.inf], torch.ones(2, 3))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
