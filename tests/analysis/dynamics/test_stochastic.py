"""Mini-batch SGD: exact enumeration of all batches, and many simulated runs."""

import itertools
import math

import numpy as np
import pytest
import torch

from tangency.analysis.dynamics import GradientDescent, StochasticGradientDescent
from tangency.errors import InvalidInput

from .linear_model import LinearModel, close


def batches(n: int, b: int, replacement: bool) -> list[np.ndarray]:
    """How often each example is drawn, for all equally likely batches."""
    draw = (
        itertools.product(range(n), repeat=b)
        if replacement
        else itertools.combinations(range(n), b)
    )
    return [np.bincount(chosen, minlength=n).astype(float) for chosen in draw]


def enumerated(
    model: LinearModel, rate: float, b: int, steps: int, replacement: bool, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the parameters over every sequence of batches."""
    n, p = len(model.J), model.J.shape[2]
    J, residual = model.J.numpy(), (model.y - model.f0).numpy()
    paths = np.zeros((1, p))
    for _ in range(steps):
        following = []
        for counts in batches(n, b, replacement):
            errors = np.einsum("iap,sp->sia", J, paths) - residual
            gradient = np.einsum("i,sia,iap->sp", counts / b, errors, J) + ridge / n * paths
            following.append(paths - rate * gradient)
        paths = np.concatenate(following)
    return paths.mean(axis=0), np.cov(paths.T, bias=True).reshape(p, p)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.6])
@pytest.mark.parametrize("out", [1, 2])
def test_exact_over_all_sequences_of_batches(out, replacement, ridge):
    model, steps, b = LinearModel.random(4, 2, out, 5), 3, 2
    training = StochasticGradientDescent(
        model.kernel, model.y, 0.3, b, replacement=replacement, ridge=ridge
    )
    found = training.predict([0, steps], model.kernel_test, **model.starts)
    mean, covariance = enumerated(model, 0.3, b, steps, replacement, ridge)
    train, test = model.outputs(torch.from_numpy(mean))
    close(found.train.mean[1], train, 1e-12)
    close(found.test.mean[1], test, 1e-12)
    spread = torch.from_numpy(covariance)
    close(
        found.train.covariance[1], torch.einsum("iap,pq,jbq->ijab", model.J, spread, model.J), 1e-12
    )
    expected = torch.einsum("iap,pq,jbq->ijab", model.J_test, spread, model.J_test)
    close(found.test.covariance[1], expected, 1e-12)
    own = torch.einsum("iap,pq,iaq->ia", model.J_test, spread, model.J_test)
    close(found.test.variance[1], own, 1e-12)
    quick = training.predict([0, steps], model.kernel_test, **model.starts, moment="variance")
    close(quick.test.variance, found.test.variance, 1e-12)
    assert float(found.train.variance[0].abs().max()) == 0
    # The mean loss, from the second moment of the errors.
    error = (train - model.y).square().sum() + torch.einsum(
        "iap,pq,iaq->", model.J, spread, model.J
    )
    assert float(training.loss(steps, model.f0)) == pytest.approx(float(error) / 8, rel=1e-12)


@pytest.mark.parametrize("replacement", [False, True])
def test_a_shared_kernel_couples_outputs_through_the_batches(replacement):
    """f_a(x) = phi(x) . theta_a: the outputs see the same batches."""
    n, p, out = 4, 3, 2
    generator = torch.Generator().manual_seed(4)
    phi = torch.randn(n, p, dtype=torch.float64, generator=generator)
    y = torch.randn(n, out, dtype=torch.float64, generator=generator)
    J = torch.einsum("ip,ab->iabp", phi, torch.eye(out).double()).reshape(n, out, out * p)
    whole = LinearModel(J, J[:1], torch.zeros(n, out).double(), torch.zeros(1, out).double(), y)
    full = StochasticGradientDescent(whole.kernel, y, 0.3, 2, replacement=replacement)
    shared = StochasticGradientDescent(phi @ phi.mT, y, 0.3, 2, replacement=replacement)
    expected = full.predict([1, 9], whole.kernel_test)
    found = shared.predict([1, 9], phi[:1] @ phi.mT)
    close(found.train.covariance, expected.train.covariance, 1e-12)
    close(found.test.covariance, expected.test.covariance, 1e-12)
    close(found.test.variance, expected.test.variance, 1e-12)
    assert float(found.train.covariance[1, :, :, 0, 1].abs().max()) > 1e-3
    close(shared.loss([1, 9]), full.loss([1, 9]), 1e-12)
    vector = StochasticGradientDescent(phi @ phi.mT, y[:, 0], 0.3, 2, replacement=replacement)
    single = vector.predict([1, 9], phi[:1] @ phi.mT)
    assert single.train.covariance.shape == (2, n, n)
    close(single.train.covariance, found.train.covariance[..., 0, 0], 1e-12)
    one = vector.predict(9, phi[:1] @ phi.mT)
    close(one.test.covariance, single.test.covariance[1], 1e-15)


@pytest.mark.parametrize("replacement", [False, True])
def test_many_simulated_runs(replacement):
    runs, steps, n, b, rate = 4000, 60, 12, 3, 0.25
    rng = np.random.default_rng(5)
    X, X_test, y = rng.normal(size=(n, 8)), rng.normal(size=(4, 8)), rng.normal(size=n)
    theta = np.zeros((runs, 8))
    for _ in range(steps):
        if replacement:
            chosen = rng.integers(n, size=(runs, b))
        else:
            chosen = rng.random((runs, n)).argsort(axis=1)[:, :b]
        errors = np.take_along_axis(theta @ X.T - y, chosen, axis=1)
        theta = theta - rate / b * np.einsum("rb,rbp->rp", errors, X[chosen])
    training = StochasticGradientDescent(X @ X.T, y, rate, b, replacement=replacement)
    assert rate < training.max_learning_rate
    found = training.predict(steps, X_test @ X.T).test
    outputs = theta @ X_test.T
    error = (outputs.mean(axis=0) - found.mean.numpy()) / (found.std.numpy() / math.sqrt(runs))
    assert np.abs(error).max() < 4
    # Standard errors of the covariance from the runs themselves: they are not Gaussian.
    centred = outputs - outputs.mean(axis=0)
    products = np.einsum("ri,rj->rij", centred, centred)
    scatter = (products.mean(axis=0) - found.covariance.numpy()) / (
        products.std(axis=0) / math.sqrt(runs)
    )
    assert np.abs(scatter).max() < 4
    # And they are small enough to tell the two ways of drawing apart.
    other = StochasticGradientDescent(X @ X.T, y, rate, b, replacement=not replacement)
    wrong = products.mean(axis=0) - other.predict(steps, X_test @ X.T).test.covariance.numpy()
    assert np.abs(wrong / (products.std(axis=0) / math.sqrt(runs))).max() > 5


def test_shuffled_epochs_are_outside_the_model_and_less_noisy():
    runs, epochs, n, b, rate = 3000, 10, 12, 3, 0.25
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(n, 8)), rng.normal(size=n)
    theta = np.zeros((runs, 8))
    for _ in range(epochs):
        order = rng.random((runs, n)).argsort(axis=1)
        for chosen in np.split(order, n // b, axis=1):
            errors = np.take_along_axis(theta @ X.T - y, chosen, axis=1)
            theta = theta - rate / b * np.einsum("rb,rbp->rp", errors, X[chosen])
    outputs = theta @ X.T
    model = StochasticGradientDescent(X @ X.T, y, rate, b).predict(epochs * n // b).train
    assert outputs.var(axis=0).mean() < 0.5 * float(model.variance.mean())
    off = np.abs(outputs.mean(axis=0) - model.mean.numpy()) / (outputs.std(0) / math.sqrt(runs))
    assert off.max() > 10


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_largest_rate_is_where_the_second_moments_stop_shrinking(replacement, ridge):
    model, n, b, p = LinearModel.random(4, 1, 1, 6), 4, 2, 6
    J = model.J.reshape(n, p).numpy()
    training = StochasticGradientDescent(
        model.kernel, model.y, 0.1, b, replacement=replacement, ridge=ridge
    )
    bound = training.max_learning_rate
    plain = GradientDescent(model.kernel, model.y, ridge=ridge).max_learning_rate
    assert bound < plain
    # In the space of the parameters that data reach.
    basis = np.linalg.qr(J.T)[0]
    rows = J @ basis
    for relative, stable in ((0.999, True), (1.001, False)):
        rate = relative * bound
        whole = 0.0
        every = batches(n, b, replacement)
        for counts in every:
            step = np.eye(n) * (1 - rate * ridge / n) - rate / b * rows.T @ np.diag(counts) @ rows
            whole = whole + np.kron(step, step) / len(every)
        assert (np.abs(np.linalg.eigvals(whole)).max() < 1) == stable
    everything = StochasticGradientDescent(model.kernel, model.y, 0.1, 4, ridge=ridge)
    assert everything.max_learning_rate == pytest.approx(plain, rel=1e-5)
    assert everything.predict(5).train.variance.max() == 0


def test_singular_kernels_and_results():
    K, y = np.ones((3, 3)), np.array([1.0, 2.0, 3.0])
    training = StochasticGradientDescent(K, y, 0.1, 1)
    found = training.predict([0, 10, 1000], np.ones((2, 3)))
    assert bool(torch.isfinite(found.train.covariance).all())
    # Contradicting targets keep the outputs moving for ever: theta <- theta - 0.1 (theta - y_i).
    stationary = 0.1**2 * (2 / 3) / (1 - 0.9**2)
    assert float(found.test.variance[-1, 0]) == pytest.approx(stationary, rel=1e-9)
    assert math.isinf(
        StochasticGradientDescent(np.zeros((2, 2)), np.ones(2), 1.0, 1).max_learning_rate
    )
    assert "batches of 1 without" in repr(training)
    assert training.to_dict()["batch_size"] == 1
    assert len(training.figure(range(20)).data) == 6
    single = StochasticGradientDescent(K.astype(np.float32), y, 0.1, 2).predict(3)
    assert single.train.covariance.dtype == torch.float32


def test_bad_input_is_refused():
    for b in (0, 4, -1):
        with pytest.raises(InvalidInput, match="batch_size"):
            StochasticGradientDescent(np.eye(3), np.ones(3), 0.1, b)
    assert StochasticGradientDescent(np.eye(3), np.ones(3), 0.1, 4, replacement=True)
    training = StochasticGradientDescent(np.eye(3), np.ones(3), 0.1, 2)
    for times in (math.inf, 0.5):
        with pytest.raises(InvalidInput):
            training.predict(times)
