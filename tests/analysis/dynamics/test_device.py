"""Kernels on another device: results come there, and are those of the CPU."""

import pytest
import torch

from tangency.analysis.dynamics import (
    Ensemble,
    GaussianProcess,
    GradientDescent,
    GradientFlow,
    HeavyBall,
    LossFlow,
    MomentumFlow,
    Nesterov,
    StochasticGradientDescent,
    log_marginal_likelihood,
)

from .linear_model import LinearModel, close

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on(device: str) -> list[torch.Tensor]:
    """A bit of everything, computed on the device."""
    model = LinearModel.random(5, 3, 2, 30)
    K, K_test, y = (t.to(device) for t in (model.kernel, model.kernel_test, model.y))
    own = torch.eye(6, dtype=torch.float64).reshape(3, 2, 3, 2).transpose(1, 2).to(device) * 99
    found = []
    for kind in (GradientFlow, GradientDescent, HeavyBall, Nesterov, MomentumFlow):
        training = kind(K, y, 0.05)
        prediction = training.predict([0, 3, 50], K_test)
        found += [prediction.train, prediction.test, prediction.loss, training.contraction]
        found.append(torch.tensor(training.time_to_loss(0.01), device=device))
        training.figure()
        test = Ensemble(training, K).predict([0, 3], K_test, K_test, own).test
        found += [test.mean, test.covariance]
    flow = LossFlow(K, torch.tensor([0, 1, 0, 1, 1], device=device), "cross-entropy")
    found.append(flow.predict([0.0, 2.0], K_test).test)
    batches = StochasticGradientDescent(K, y, 0.05, 2)
    found.append(batches.predict([0, 3], K_test).test.covariance)
    found.append(torch.tensor(batches.max_learning_rate, device=device))
    posterior = GaussianProcess(K, y, 0.1).predict(K_test, own)
    found += [posterior.covariance, log_marginal_likelihood(K, y, 0.1)]
    generator = torch.Generator().manual_seed(0)
    found.append(posterior.sample(3, generator))
    return found


def test_results_are_those_of_the_cpu():
    for here, there in zip(on("cpu"), on("cuda"), strict=True):
        assert there.device.type == "cuda"
        close(there.cpu(), here, 1e-8)
