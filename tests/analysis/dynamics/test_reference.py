"""Against the predictions of the neural-tangents library, version 0.6.5 (JAX 0.4.25, float64).

`neural_tangents.npz` holds kernels of a two-hidden-layer ReLU network, in its parametrisation, on 8
training and 4 test inputs, and what `nt.predict` made of them, with learning rate 1: ensembles
(`ens_{get}_{time}_*` by gradient_descent_mse_ensemble), posteriors (`gp_*`, gp_inference with
diag_reg=0.1), gradient_descent with momentum 0.9 on half the mean square (`mom_*`) and on the
cross-entropy (`ce_*`), and max_learning_rate. Its squared loss is a mean over outputs too, so that
its learning rate is ours times the number of outputs.
"""

import math
from pathlib import Path

import numpy as np
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
)

from .linear_model import close

TIMES, RATE = [0.5, 7.0, 200.0, math.inf], 1 / 2


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).with_name("neural_tangents.npz")) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


@pytest.mark.parametrize("get", ["ntk", "nngp"])
def test_ensembles(reference, get):
    r = reference
    training = GradientFlow(r[f"k_{get}"], r["y"], RATE)
    ensemble = Ensemble(training, r["k_nngp"])
    found = ensemble.predict(TIMES, r[f"kt_{get}"], r["kt_nngp"], r["ko_nngp"]).test
    for index in range(4):
        close(found.mean[index], r[f"ens_{get}_{index}_mean"], 1e-11)
        close(found.covariance[index], r[f"ens_{get}_{index}_cov"], 1e-11)


@pytest.mark.parametrize(("get", "kernel"), [("nngp", "nngp"), ("ntkgp", "ntk")])
def test_posteriors(reference, get, kernel):
    r = reference
    process = GaussianProcess(r[f"k_{kernel}"], r["y"], 0.1)
    found = process.predict(r[f"kt_{kernel}"], r[f"ko_{kernel}"])
    close(found.mean, r[f"gp_{get}_mean"], 1e-11)
    close(found.covariance, r[f"gp_{get}_cov"], 1e-11)


def test_momentum_and_cross_entropy(reference):
    """By ODE solvers there, of their default tolerance."""
    r = reference
    arguments = [1.0, 5.0, 30.0], r["kt_ntk"], r["f0"], r["f0t"]
    momentum = MomentumFlow(r["k_ntk"], r["y"], RATE, momentum=0.9).predict(*arguments)
    close(momentum.train, r["mom_train"], 1e-6)
    close(momentum.test, r["mom_test"], 1e-6)
    flow = LossFlow(r["k_ntk"], r["yc"], "cross-entropy", rtol=1e-9, atol=1e-10)
    entropy = flow.predict(*arguments)
    close(entropy.train, r["ce_train"], 1e-7)
    close(entropy.test, r["ce_test"], 1e-7)


def test_largest_learning_rates(reference):
    r = reference
    plain = GradientDescent(r["k_ntk"], r["y"], RATE).max_learning_rate
    heavy = HeavyBall(r["k_ntk"], r["y"], RATE, momentum=0.9).max_learning_rate
    assert plain / RATE == pytest.approx(float(r["maxlr"]), rel=1e-10)
    assert heavy / RATE == pytest.approx(float(r["maxlr_m"]), rel=1e-10)
