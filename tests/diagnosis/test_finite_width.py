"""The laws of finite width: on made-up kernels, on networks whose law is known, at other widths."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import tangency as tg
from tangency.diagnosis.finite_width.study import _studied
from tangency.errors import InvalidInput, TangencyError

from .models import normal

X = normal(6, 3, seed=1)


class OneHidden(nn.Module):
    """(1/sqrt(w)) sum_k b_k tanh(a_k . x / sqrt(d)): its kernel is a mean over units."""

    def __init__(self, width: int, inputs: int = 3) -> None:
        super().__init__()
        self.a = nn.Linear(inputs, width, bias=False, dtype=torch.float64)
        self.b = nn.Linear(width, 1, bias=False, dtype=torch.float64)
        nn.init.normal_(self.a.weight)
        nn.init.normal_(self.b.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.a(x) / math.sqrt(x.shape[1]))
        return self.b(hidden) / math.sqrt(hidden.shape[1])


def mlp(width: int) -> nn.Module:
    """Two hidden ReLU layers, He initialisation, PyTorch's parametrisation."""
    model = nn.Sequential(
        nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    ).double()
    for layer in (model[0], model[2], model[4]):
        nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features))
        nn.init.zeros_(layer.bias)
    return model


def units(count: int) -> np.ndarray:
    """Kernels of single units, (count, n, n): tanh tanh + b^2 tanh' tanh' x.x'/d."""
    rng, x = np.random.default_rng(0), X.numpy()
    u = np.tanh(rng.normal(size=(count, 3)) @ x.T / math.sqrt(3))
    b = rng.normal(size=count)
    slope = 1 - u**2
    outer = np.einsum("ki,kj->kij", slope, slope) * (x @ x.T / 3)
    return np.einsum("ki,kj->kij", u, u) + b[:, None, None] ** 2 * outer


@pytest.mark.slow
def test_a_mean_over_units_varies_as_one_over_width():
    """Variance c / width exactly, c the variance of one unit; no bias."""
    single = units(200_000)
    limit = single.mean(axis=0)
    c = single.var(axis=0).sum() / (limit**2).sum()
    study = tg.width_study(OneHidden, X, (8, 16, 32), seeds=60, infinite=False)
    law = study.variance_law
    assert law.coefficient == pytest.approx(c, rel=0.15)
    assert law.coefficient_range[0] < c < law.coefficient_range[1]
    assert law.power_range[0] < 1 < law.power_range[1]
    assert study.bias_law is None
    assert "not asked for" in study.reason
    assert "unknown" in repr(study)


def test_errors_are_distances_from_the_limit():
    study = tg.width_study(mlp, X, (8, 32), seeds=[5, 6, 7], init=tg.Init.he())
    for i, width in enumerate((8, 32)):
        kernels = []
        for j, seed in enumerate((5, 6, 7)):
            torch.manual_seed(seed)
            model = mlp(width)
            rows = []
            for x in X:
                gradients = torch.autograd.grad(model(x[None]).sum(), list(model.parameters()))
                rows.append(torch.cat([g.flatten() for g in gradients]))
            kernels.append(torch.stack(rows) @ torch.stack(rows).T)
            limit = tg.InfiniteKernel(model, X, init=tg.Init.he()).ntk(X)
            error = float((kernels[-1] - limit).norm() / limit.norm())
            assert float(study.errors[i, j]) == pytest.approx(error, rel=1e-10)
        variance = float(torch.stack(kernels).var(dim=0).sum() / limit.norm() ** 2)
        assert float(study.variance[i]) == pytest.approx(variance, rel=1e-10)
        mean = torch.stack(kernels).mean(dim=0)
        square = float((mean - limit).norm() ** 2 / limit.norm() ** 2) - variance / 3
        assert float(study.bias[i]) == pytest.approx(math.sqrt(max(0, square)), abs=1e-10)


def made_up(c: float, bias: float, networks: int, seed: int = 0):
    """Kernels limit (1 + B / w + noise of variance c / w)."""
    widths, n = torch.tensor([16, 32, 64, 128]), 5
    generator = torch.Generator().manual_seed(seed)
    limit = torch.eye(n, dtype=torch.float64).expand(4, n, n)
    scale, w = math.sqrt(n), widths.double()[:, None, None, None]
    direction = torch.ones(n, n, dtype=torch.float64) / n
    noise = torch.randn(4, networks, n, n, generator=generator, dtype=torch.float64)
    off = bias * direction / w + noise * math.sqrt(c / n**2) / w.sqrt()
    return _studied(widths, limit[:, None] + scale * off, limit, n, None)


def test_both_laws_are_recovered():
    study = made_up(c=2.0, bias=5.0, networks=60)
    assert study.variance_law.coefficient == pytest.approx(2.0, rel=0.05)
    assert study.variance_law.power == pytest.approx(1, abs=0.05)
    assert study.bias_law.coefficient == pytest.approx(5.0, rel=0.1)
    assert study.distance(64) == pytest.approx(math.sqrt(2 / 64 + 25 / 64**2), rel=0.05)
    needed = study.width_for(0.1)
    exact = (2 + math.sqrt(4 + 4 * 0.01 * 25)) / 0.02
    assert needed.width == pytest.approx(exact, rel=0.05)
    assert study.distance(needed.width) <= 0.1 < study.distance(needed.width - 2)
    # Half as close takes four times the width, less what the bias needs.
    assert 3.5 < study.width_for(0.05).width / needed.width < 4


@pytest.mark.slow
def test_intervals_hold_what_they_promise():
    """90 % intervals for c, c' and the width, over 60 made-up studies."""
    hits = np.zeros(3)
    width = (2 + math.sqrt(4 + 4 * 0.01 * 25)) / 0.02
    for seed in range(60):
        study = made_up(c=2.0, bias=5.0, networks=10, seed=seed)
        needed = study.width_for(0.1)
        ranges = (
            (study.variance_law.coefficient_range, 2.0),
            (study.bias_law.coefficient_range, 5.0),
            ((needed.low, needed.high), width),
        )
        hits += [low <= truth <= high for (low, high), truth in ranges]
    assert (hits / 60 > 0.78).all(), hits / 60


def test_no_bias_is_found_where_there_is_none():
    """The mean of few noisy kernels is off the limit by noise alone."""
    found = [made_up(c=2.0, bias=0.0, networks=8, seed=s) for s in range(8)]
    naive = math.sqrt(2.0 / 8 * sum(w**-1.0 for w in (16, 32, 64, 128)))
    assert np.mean([s.bias_law.coefficient for s in found]) < 0.5 / naive
    assert all(s.bias_law.coefficient_range[0] == 0 for s in found)


@pytest.mark.slow
def test_the_predicted_width_holds_at_a_width_that_was_not_studied():
    """Squared distances scatter as much as their mean: 50 networks know its root to 7 %."""
    he = tg.Init.he()
    study = tg.width_study(mlp, X, (24, 48, 96), seeds=60, init=he)
    assert study.variance_law.power_range[0] < 1 < study.variance_law.power_range[1]
    assert -0.6 < study.slope < -0.4
    needed = study.width_for(0.15)
    assert needed.width > 2 * 96
    assert needed.low < needed.width < needed.high < 2 * needed.low
    assert study.distance(needed.width) == pytest.approx(0.15, rel=0.02)
    check = tg.width_study(mlp, X, (8, needed.width), seeds=range(100, 150), init=he)
    reached = float(check.errors[1].square().mean().sqrt())
    assert reached == pytest.approx(0.15, rel=0.2)
    likely = study.width_for(0.2, probability=0.9)
    check = tg.width_study(mlp, X, (8, likely.width), seeds=range(200, 250), init=he)
    within = float((check.errors[1] < 0.2).double().mean())
    assert 0.8 < within < 0.98


def test_measured_scales_and_modules_without_a_limit():
    study = tg.width_study(mlp, X, (32, 64), seeds=3)
    known = tg.width_study(mlp, X, (32, 64), seeds=3, init=tg.Init.he())
    torch.testing.assert_close(study.errors, known.errors, rtol=0.3, atol=0.1)

    def unknown(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(3, width), Cumulative(), nn.Linear(width, 1)).double()

    class Cumulative(nn.Module):
        def forward(self, x):
            return x.sort(dim=1).values

    study = tg.width_study(unknown, X, (4, 8), seeds=3)
    assert study.bias_law is None
    assert study.reason
    assert bool(torch.isnan(study.bias).all())
    study.to_dict()
    with pytest.raises(TangencyError):
        tg.width_study(unknown, X, (4, 8), seeds=3, infinite=True)


def test_randomness_and_data():
    state = torch.get_rng_state()
    called = []
    study = tg.width_study(OneHidden, X, (4, 8), seeds=2, infinite=False, on_width=called.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert called == [4, 8]
    again = tg.width_study(OneHidden, X, (4, 8), seeds=2, infinite=False)
    assert torch.equal(study.errors, again.errors)
    many = normal(90, 3, seed=2)
    assert tg.width_study(OneHidden, many, (4, 8), seeds=2, infinite=False).examples == 40


def test_readable_forms():
    study = made_up(2.0, 5.0, 12)
    text = repr(study)
    assert f"{study.width_for(0.1).width}" in text
    assert "theory: -0.5" in text
    values = study.to_dict()
    assert values["slope"] == study.slope
    names = {trace.name for trace in study.figure().data}
    assert {"one network", "standard deviation", "bias of the mean"} <= names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (8,)}, "at least two"),
        ({"widths": (16, 8)}, "ascending"),
        ({"widths": (0, 8)}, "positive"),
        ({"seeds": 1}, "at least two"),
        ({"seeds": [1, 1]}, "different"),
        ({"infinite": "yes"}, "infinite is"),
        ({"x": X * math.nan}, "NaN"),
        ({"factory": lambda width: width}, "not a torch.nn.Module"),
    ],
)
def test_bad_input(arguments, message):
    given = {"factory": OneHidden, "x": X, "widths": (4, 8), "infinite": False} | arguments
    with pytest.raises(InvalidInput, match=message):
        tg.width_study(**given)


def test_bad_questions():
    study = made_up(2.0, 5.0, 6)
    for call in (lambda: study.width_for(0.0), lambda: study.width_for(math.inf)):
        with pytest.raises(InvalidInput, match="closeness"):
            call()
    with pytest.raises(InvalidInput, match="probability"):
        study.width_for(0.1, 1.0)
    with pytest.raises(InvalidInput, match="width is"):
        study.distance(0)
