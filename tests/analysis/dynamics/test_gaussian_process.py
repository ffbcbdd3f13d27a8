"""Posteriors and likelihoods against scikit-learn, SciPy, and fitted hyperparameters."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from torch import nn

import tangency as tg
from tangency.analysis.dynamics import (
    Ensemble,
    GaussianProcess,
    GradientFlow,
    log_marginal_likelihood,
)
from tangency.errors import InvalidInput, SingularKernel

from .linear_model import LinearModel, close

RNG = np.random.default_rng(0)
X, X_TEST, Y = RNG.normal(size=(8, 2)), RNG.normal(size=(5, 2)), RNG.normal(size=(8, 3))
KERNEL = RBF(0.7)


@pytest.mark.parametrize("noise", [1e-8, 0.3])
def test_posterior_and_likelihood_are_those_of_scikit_learn(noise):
    reference = GaussianProcessRegressor(KERNEL, alpha=noise, optimizer=None).fit(X, Y)
    mean, covariance = reference.predict(X_TEST, return_cov=True)
    process = GaussianProcess(KERNEL(X), Y, noise)
    found = process.predict(KERNEL(X_TEST, X), KERNEL(X_TEST))
    close(found.mean, torch.from_numpy(mean), 1e-9)
    close(found.covariance, torch.from_numpy(covariance[..., 0]), 1e-9)
    close(found.variance[:, 1], found.covariance.diagonal(), 1e-12)
    quick = process.predict(KERNEL(X_TEST, X), KERNEL(X_TEST), moment="variance")
    close(quick.variance, found.variance, 1e-12)
    mean, covariance = reference.predict(X, return_cov=True)
    own = process.predict()
    close(own.mean, torch.from_numpy(mean), 1e-7)
    close(own.covariance, torch.from_numpy(covariance[..., 0]), 1e-7)
    close(own.variance, process.predict(moment="variance").variance, 1e-12)
    expected = reference.log_marginal_likelihood_value_
    assert float(process.log_marginal_likelihood()) == pytest.approx(expected, rel=1e-9)
    assert float(log_marginal_likelihood(KERNEL(X), Y, noise)) == pytest.approx(expected, rel=1e-9)


def test_dependent_outputs():
    model = LinearModel.random(3, 2, 2, 30)
    noise, flat = 0.2, model.J.reshape(6, 30)
    K, cross = flat @ flat.mT, model.J_test.reshape(4, 30) @ flat.mT
    own = model.J_test.reshape(4, 30) @ model.J_test.reshape(4, 30).mT
    inverse = torch.linalg.inv(K + noise * torch.eye(6).double())
    process = GaussianProcess(model.kernel, model.y, noise)
    found = process.predict(model.kernel_test, own.reshape(2, 2, 2, 2).transpose(1, 2))
    close(found.mean.reshape(-1), cross @ inverse @ model.y.reshape(-1), 1e-11)
    expected = own - cross @ inverse @ cross.mT
    close(found.covariance.transpose(1, 2).reshape(4, 4), expected, 1e-11)
    close(found.variance.reshape(-1), expected.diagonal(), 1e-11)
    density = multivariate_normal(np.zeros(6), (K + noise * torch.eye(6).double()).numpy())
    expected_density = density.logpdf(model.y.reshape(-1).numpy())
    assert float(process.log_marginal_likelihood()) == pytest.approx(expected_density)
    found_density = log_marginal_likelihood(model.kernel, model.y, noise)
    assert float(found_density) == pytest.approx(expected_density)


def test_posterior_is_where_training_of_the_last_layer_ends():
    K, cross, own = KERNEL(X), KERNEL(X_TEST, X), KERNEL(X_TEST)
    trained = Ensemble(GradientFlow(K, Y), K).predict(math.inf, cross, cross, own).test
    posterior = GaussianProcess(K, Y).predict(cross, own)
    close(trained.mean, posterior.mean, 1e-8)
    close(trained.covariance, posterior.covariance, 1e-8)


def test_duplicates():
    X2, y = np.concatenate([X, X[:1]]), np.concatenate([Y[:, 0], Y[:1, 0]])
    found = GaussianProcess(KERNEL(X2), y).predict(KERNEL(X_TEST, X2), KERNEL(X_TEST))
    close(
        found.mean,
        GaussianProcess(KERNEL(X), Y[:, 0]).predict(KERNEL(X_TEST, X), KERNEL(X_TEST)).mean,
        1e-6,
    )
    y[-1] += 1
    with pytest.raises(SingularKernel, match="noise"):
        GaussianProcess(KERNEL(X2), y)
    assert math.isfinite(float(GaussianProcess(KERNEL(X2), y, 0.1).log_marginal_likelihood()))
    y[-1] -= 1
    with pytest.raises(SingularKernel, match="noise"):
        GaussianProcess(KERNEL(X2), y).log_marginal_likelihood()
    with pytest.raises(SingularKernel, match="larger noise"):
        log_marginal_likelihood(np.ones((2, 2)), np.ones(2))


def test_gradients_of_the_likelihood():
    root = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()
    y = torch.linspace(-1, 1, 8).double().reshape(4, 2)

    def of_root(root, noise):
        return log_marginal_likelihood(root @ root.mT, y, noise)

    noise = torch.tensor(0.3).double().requires_grad_()
    assert torch.autograd.gradcheck(of_root, (root.requires_grad_(), noise))
    full = torch.randn(4, 6, 2, 9, generator=torch.Generator().manual_seed(1)).double()

    def of_features(features):
        K = torch.einsum("ixap,jxbp->ijab", features, features)
        return log_marginal_likelihood(K, y, 0.1)

    assert torch.autograd.gradcheck(of_features, (full.requires_grad_(),))


def test_gradients_through_init_and_a_fit_that_finds_the_truth():
    """The example of docs/dynamics.md: weight and bias moments by L-BFGS."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).double()

    def nngp(weight, bias):
        return tg.InfiniteKernel(model, x[:2], init=tg.Init(weight, bias)).nngp(x)

    K = nngp(1.6, 0.3) + 0.05 * torch.eye(12)
    draws = torch.linalg.cholesky(K) @ torch.randn(12, 400, generator=generator).double()
    logs = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def loss(logs):
        weight, bias, noise = logs.exp()
        return -log_marginal_likelihood(nngp(weight, bias), draws, noise)

    (gradient,) = torch.autograd.grad(loss(logs), logs)
    for index, step in enumerate(1e-4 * torch.eye(3).double()):
        ahead, behind = loss(logs.detach() + step), loss(logs.detach() - step)
        assert float(gradient[index]) == pytest.approx(float(ahead - behind) / 2e-4, rel=1e-6)

    optimizer = torch.optim.LBFGS([logs], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(logs)
        value.backward()
        return value

    optimizer.step(closure)
    weight, bias, noise = logs.detach().exp().tolist()
    # 400 outputs on 12 examples know them to a few per cent.
    assert weight == pytest.approx(1.6, rel=0.08)
    assert bias == pytest.approx(0.3, rel=0.25)
    assert noise == pytest.approx(0.05, rel=0.08)


def test_single_precision():
    K = torch.from_numpy(KERNEL(X)).float()
    process = GaussianProcess(K, Y, 0.1)
    found = process.predict(KERNEL(X_TEST, X), KERNEL(X_TEST))
    assert found.mean.dtype == found.covariance.dtype == torch.float32
    assert log_marginal_likelihood(K, Y, 0.1).dtype == torch.float32
    checked = log_marginal_likelihood(tg.kernel_matrix(K), Y, 0.1)
    assert float(checked) == float(log_marginal_likelihood(K, Y, 0.1))
    assert "noise=0.1" in repr(process)
    assert process.to_dict()["noise"] == 0.1
    assert len(found.figure().data) == 2


def test_bad_input_is_refused():
    K, process = KERNEL(X), GaussianProcess(KERNEL(X), Y, 0.1)
    with pytest.raises(InvalidInput, match="K_test_train and K_test"):
        process.predict(KERNEL(X_TEST, X))
    with pytest.raises(InvalidInput, match="K_test has shape"):
        process.predict(KERNEL(X_TEST, X), K)
    with pytest.raises(InvalidInput, match="moment"):
        process.predict(moment="all")
    for noise in (-1.0, math.nan, torch.ones(2)):
        with pytest.raises(InvalidInput, match="noise"):
            log_marginal_likelihood(K, Y, noise)
    with pytest.raises(InvalidInput, match="noise"):
        GaussianProcess(K, Y, -1.0)
    with pytest.raises(InvalidInput, match="real"):
        log_marginal_likelihood(K, np.ones(8, dtype=int))
    with pytest.raises(InvalidInput, match="not symmetric"):
        log_marginal_likelihood(np.triu(K), Y)
