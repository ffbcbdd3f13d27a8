"""The edge of stability and catapults, in real training of small networks."""

import math

import pytest
import torch
from tests.diagnosis.models import normal, seeded, target
from torch import nn

import tangency as tg


class TwoLayers(nn.Module):
    """b^T act(A x) / sqrt(w d), the network in which catapults were derived."""

    def __init__(self, width: int, inputs: int, act=lambda v: v) -> None:
        super().__init__()
        draw = {"generator": seeded(0), "dtype": torch.float64}
        self.a = nn.Parameter(torch.randn(width, inputs, **draw))
        self.b = nn.Parameter(torch.randn(1, width, **draw))
        self.act = act

    def forward(self, x):
        hidden = self.act(x @ self.a.T / math.sqrt(x.shape[1]))
        return hidden @ self.b.T / math.sqrt(self.b.shape[1])


def descend(model, x, y, rate, steps, **how):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    monitor = tg.Monitor(model, x, y, optimizer=optimizer, overhead=None, **how)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = (model(x) - y).square().sum() / (2 * len(x))
        loss.backward()
        optimizer.step()
        monitor.record(step, loss)
    return monitor.finish()


X = normal(20, 6, seed=2).abs()
Y = (X[:, :1] - X[:, 1:2]).sign()


def lambda_0(model):
    kernel = tg.EmpiricalKernel(model).ntk(X)
    return float(torch.linalg.eigvalsh(kernel)[-1]) / len(X)


@pytest.mark.parametrize(
    ("multiple", "phase"), [(1.0, "lazy"), (3.0, "catapult"), (5.0, "divergence")]
)
def test_three_phases_of_the_learning_rate(multiple, phase):
    """Below 2 / lambda_0, up to 4 / lambda_0, and above (Lewkowycz et al. 2020)."""
    model = TwoLayers(512, 6)
    rate = multiple / lambda_0(model)
    course = descend(model, X, Y, rate, 60, per_decade=20)
    assert float(course.kernel_curvature[0] / course.stability_limit[0]) == pytest.approx(
        multiple / 2, rel=1e-6
    )
    assert (course.overflowed is not None) == (phase == "divergence")
    if phase == "lazy":
        assert course.catapults() == ()
        assert course.verdict().regime == "lazy"
        assert course.edge().state == "stable"
    elif phase == "catapult":
        (found,) = course.catapults()
        assert found.before > 1 > found.after
        assert found.growth > 3
        assert float(course.kernel_curvature[-1]) < float(course.stability_limit[-1])
        assert float(course.loss[-1]) < float(course.loss[0])
        assert course.verdict().regime in ("between", "feature learning")
        assert "A catapult" in course.explain()
    else:
        assert course.verdict().regime == "unstable"


@pytest.mark.slow
def test_sharpness_rises_to_the_edge_and_stays_there():
    """Full-batch descent on a small tanh network (Cohen et al. 2021)."""
    x = normal(40, 5, seed=3)
    y = target(x)[:, None]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    ).double()
    twin = nn.Sequential(*(type(m)(*_sizes(m)) for m in model)).double()
    twin.load_state_dict(model.state_dict())
    rate = 0.4
    course = descend(model, x, y, rate, 3000, curvature=True, per_decade=10)
    edge = course.edge()
    assert edge.first < 0.8
    assert edge.state == "edge of stability"
    assert edge.reached > 10
    assert edge.typical == pytest.approx(1, abs=0.15)
    assert "edge of stability" in course.explain()
    # The same network with a smaller step goes on to a sharper place, and never meets the edge.
    calm = descend(twin, x, y, rate / 8, 3000, curvature=True, per_decade=5)
    assert calm.edge().state == "stable"
    assert float(calm.sharpness[-1]) > float(course.sharpness[0])


def _sizes(module):
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else ()
