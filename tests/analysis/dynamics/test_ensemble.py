"""Ensembles over initialisation: against exact propagation of random starts, and real networks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tangency.analysis.dynamics import (
    Ensemble,
    GaussianProcess,
    GradientDescent,
    GradientFlow,
    HeavyBall,
    MomentumFlow,
    Nesterov,
    StochasticGradientDescent,
    memory,
)
from tangency.errors import InvalidInput, SingularKernel

from .linear_model import LinearModel, close

KINDS = [GradientFlow, GradientDescent, HeavyBall, Nesterov, MomentumFlow]


class RandomStarts:
    """f(x) = J(x) theta, theta_0 ~ N(0, spread): everything after it is affine in theta_0."""

    def __init__(self, n: int, m: int, out: int, p: int, seed: int = 0) -> None:
        self.model = LinearModel.random(n, m, out, p, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        root = torch.randn(p, p, dtype=torch.float64, generator=generator)
        self.spread = root @ root.mT / p
        self.rows = torch.cat([self.model.J.reshape(-1, p), self.model.J_test.reshape(-1, p)])
        self.n, self.m, self.out, self.p = n, m, out, p

    def blocks(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """J matrix J^T between training, test and training, and test examples."""
        whole = self.rows @ matrix @ self.rows.mT
        cut, out = self.n * self.out, self.out

        def laid_out(block: Tensor) -> Tensor:
            a, b = block.shape[0] // out, block.shape[1] // out
            return block.reshape(a, out, b, out).transpose(1, 2)

        return laid_out(whole[:cut, :cut]), laid_out(whole[cut:, :cut]), laid_out(whole[cut:, cut:])

    def trained(self, theta: Tensor, steps: int, rate: float, ridge: float, kind: type) -> Tensor:
        """Parameters after real SGD from the columns of theta_0, all of them at once."""
        moving = torch.nn.Parameter(theta.clone())
        momentum = 0.0 if kind is GradientDescent else 0.8
        optimizer = torch.optim.SGD([moving], lr=rate, momentum=momentum, nesterov=kind is Nesterov)
        J, y = self.model.J.reshape(-1, self.p), self.model.y.reshape(-1, 1)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (J @ moving - y).square().sum() + ridge * (moving - theta).square().sum()
            (loss / (2 * self.n)).backward()
            optimizer.step()
        return moving.detach()


@pytest.mark.parametrize("kind", [GradientDescent, HeavyBall, Nesterov])
@pytest.mark.parametrize(("out", "ridge"), [(1, 0.0), (2, 0.0), (2, 0.6)])
def test_mean_and_covariance_are_those_of_sgd_from_random_starts(kind, out, ridge):
    starts = RandomStarts(5, 3, out, p=9)
    ntk, ntk_test, _ = starts.blocks(torch.eye(9, dtype=torch.float64))
    nngp, nngp_test, nngp_own = starts.blocks(starts.spread)
    options = {} if kind is GradientDescent else {"momentum": 0.8}
    training = kind(ntk, starts.model.y, 0.15, ridge=ridge, **options)
    found = Ensemble(training, nngp).predict([0, 1, 7, 40], ntk_test, nngp_test, nngp_own)
    for index, steps in enumerate((0, 1, 7, 40)):
        # theta_k = slope theta_0 + offset
        offset = starts.trained(torch.zeros(9, 1).double(), steps, 0.15, ridge, kind)
        slope = starts.trained(torch.eye(9).double(), steps, 0.15, ridge, kind) - offset
        mean = starts.rows @ offset
        train, _, test = starts.blocks(slope @ starts.spread @ slope.mT)
        cut = 5 * out
        close(found.train.mean[index], mean[:cut].reshape(5, out), 1e-11)
        close(found.test.mean[index], mean[cut:].reshape(3, out), 1e-11)
        close(found.train.covariance[index], train, 1e-11)
        close(found.test.covariance[index], test, 1e-11)
        own = test.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1)
        close(found.test.variance[index], own, 1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_variance_alone_and_one_time(kind):
    starts = RandomStarts(5, 3, 2, p=9)
    ntk, ntk_test, _ = starts.blocks(torch.eye(9, dtype=torch.float64))
    nngp, nngp_test, nngp_own = starts.blocks(starts.spread)
    ensemble = Ensemble(kind(ntk, starts.model.y, 0.15), nngp)
    whole = ensemble.predict([0, 3], ntk_test, nngp_test, nngp_own)
    quick = ensemble.predict([0, 3], ntk_test, nngp_test, nngp_own, moment="variance")
    single = ensemble.predict(3, ntk_test, nngp_test, nngp_own)
    assert quick.test.covariance is None
    for part in ("train", "test"):
        close(getattr(quick, part).variance, getattr(whole, part).variance, 1e-12)
        close(getattr(single, part).covariance, getattr(whole, part).covariance[1], 1e-12)
    # The same kernel for every output.
    shared = Ensemble(kind(ntk[..., 0, 0], starts.model.y, 0.15), nngp[..., 0, 0])
    tests = (ntk_test[..., 0, 0], nngp_test[..., 0, 0], nngp_own[..., 0, 0])
    found = shared.predict([0, 3], *tests)
    assert found.test.mean.shape == found.test.variance.shape == (2, 3, 2)
    assert found.test.covariance.shape == (2, 3, 3)
    assert found.test.variance[1, :, 0].tolist() == pytest.approx(
        found.test.covariance[1].diagonal().tolist()
    )
    # Losses: of the mean, and of the spread in both outputs.
    mean_loss = (found.train.mean - starts.model.y).square().sum((1, 2))
    total = (mean_loss + found.train.variance.sum((1, 2))) / 10
    close(shared.loss([0, 3]), total, 1e-12)
    own_loss = (whole.train.mean - starts.model.y).square().sum((1, 2))
    close(ensemble.loss([0, 3]), (own_loss + whole.train.variance.sum((1, 2))) / 10, 1e-12)


def test_limits():
    starts = RandomStarts(5, 3, 1, p=20)
    ntk, ntk_test, _ = (b[..., 0, 0] for b in starts.blocks(torch.eye(20, dtype=torch.float64)))
    nngp, nngp_test, nngp_own = (b[..., 0, 0] for b in starts.blocks(starts.spread))
    ensemble = Ensemble(GradientFlow(ntk, starts.model.y), nngp)
    end = ensemble.predict(math.inf, ntk_test, nngp_test, nngp_own)
    A = torch.linalg.solve(ntk, ntk_test.mT).mT
    expected = nngp_own + A @ nngp @ A.mT - A @ nngp_test.mT - nngp_test @ A.mT
    close(end.test.covariance, expected, 1e-10)
    assert float(end.train.variance.abs().max()) < 1e-12
    # Training the last layer only: the formula of Lee et al. 2019, and the posterior at the end.
    last = Ensemble(GradientFlow(nngp, starts.model.y, 0.3), nngp)
    middle = last.predict(4.0, nngp_test, nngp_test, nngp_own).test.covariance
    values, vectors = torch.linalg.eigh(nngp)
    learned = vectors @ torch.diag((1 - torch.exp(-2 * 0.3 * values * 4 / 5)) / values) @ vectors.mT
    close(middle, nngp_own - nngp_test @ learned @ nngp_test.mT, 1e-11)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    time=st.sampled_from([0, 1, 5, 100, 10_000]),
    ridge=st.sampled_from([0.0, 0.3]),
    p=st.integers(5, 12),
    seed=st.integers(0, 1000),
)
def test_no_ensemble_is_surer_than_the_posterior(kind, time, ridge, p, seed):
    """Of all linear predictions from the initial outputs the posterior leaves the least error."""
    starts = RandomStarts(5, 3, 1, p, seed)
    ntk, ntk_test, _ = (b[..., 0, 0] for b in starts.blocks(torch.eye(p, dtype=torch.float64)))
    nngp, nngp_test, nngp_own = (b[..., 0, 0] for b in starts.blocks(starts.spread))
    training = kind(ntk, starts.model.y[:, 0], ridge=ridge)
    training.learning_rate = 0.5 * training.max_learning_rate
    found = Ensemble(training, nngp).predict(time, ntk_test, nngp_test, nngp_own).test
    posterior = GaussianProcess(nngp, starts.model.y[:, 0]).predict(nngp_test, nngp_own)
    excess = torch.linalg.eigvalsh(found.covariance - posterior.covariance)
    assert float(excess.min()) > -1e-7 * float(nngp_own.diagonal().max())


def test_singular_kernels_and_duplicates():
    starts = RandomStarts(6, 3, 1, p=4)
    ntk, ntk_test, _ = (b[..., 0, 0] for b in starts.blocks(torch.eye(4, dtype=torch.float64)))
    nngp, nngp_test, nngp_own = (b[..., 0, 0] for b in starts.blocks(starts.spread))
    found = Ensemble(GradientDescent(ntk, starts.model.y, 0.1), nngp).predict(
        [10, 10**6, math.inf], ntk_test, nngp_test, nngp_own
    )
    for outputs in (found.train, found.test):
        assert bool(torch.isfinite(outputs.covariance).all())
        assert float(outputs.variance[-1].max()) < 1e-9
    zeros = Ensemble(GradientFlow(np.zeros((2, 2)), np.ones(2)), np.eye(2))
    with pytest.raises(SingularKernel):
        zeros.predict(math.inf, np.ones((1, 2)), np.zeros((1, 2)), np.eye(1))


def test_bad_input_is_refused():
    training = GradientFlow(np.eye(3), np.ones(3))
    ensemble = Ensemble(training, np.eye(3))
    row, own = np.ones((2, 3)), np.eye(2)
    for arguments, match in (
        ((row,), "three kernels"),
        ((row, row, np.eye(3)), "nngp_test"),
        ((row, np.ones((4, 3)), own), "rows"),
        ((row, np.ones((2, 4)), own), "nngp_test_train"),
        ((row, row, -own), "negative diagonal"),
    ):
        with pytest.raises(InvalidInput, match=match):
            ensemble.predict(1.0, *arguments)
    with pytest.raises(InvalidInput, match="moment"):
        ensemble.predict(1.0, moment="mean")
    with pytest.raises(InvalidInput, match="shape"):
        Ensemble(training, np.eye(4))
    with pytest.raises(InvalidInput, match="closed form"):
        Ensemble(np.eye(3), np.eye(3))
    with pytest.raises(InvalidInput, match="negative diagonal"):
        Ensemble(training, -np.eye(3))


def test_covariances_that_do_not_fit_into_memory_are_refused(monkeypatch):
    training = GradientDescent(np.eye(3), np.ones(3), 0.1)
    trainings = (
        Ensemble(training, np.eye(3)),
        StochasticGradientDescent(np.eye(3), np.ones(3), 1, 2),
    )
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 40)  # 1600 bytes
    for random in trainings:
        random.predict(range(5))
        with pytest.raises(InvalidInput, match="GiB"):
            random.predict(range(9))
        random.predict(range(9), moment="variance")


def test_results_show_themselves():
    ensemble = Ensemble(GradientFlow(np.eye(3), np.ones((3, 2))), np.eye(3))
    assert "GradientFlow" in repr(ensemble)
    assert ensemble.to_dict()["training"]["kind"] == "GradientFlow"
    kernels = (np.ones((4, 3)) / 2, np.ones((4, 3)) / 2, np.eye(4))
    assert len(ensemble.figure(np.linspace(0, 9, 20)).data) == 6
    assert len(ensemble.figure(np.linspace(0, 9, 20), *kernels).data) == 8
    at_end = ensemble.predict(math.inf, *kernels)
    assert len(at_end.figure(np.array([3.0, 1.0, 2.0, 0.0])).data) == 2
    assert "test (4, 2)" in repr(at_end)
    assert set(at_end.to_dict()["test"]) == {"mean", "variance", "covariance", "times"}
    with pytest.raises(InvalidInput, match="x has 3"):
        at_end.figure(np.arange(3.0))
