"""Every series of a course against plain autograd and plain loops."""

import copy
import json
import sys

import pytest
import torch
from tests.diagnosis.models import Scaled, network, normal, target
from torch import nn

import tangency as tg
from tangency.analysis import alignment, kernel_drift
from tangency.diagnosis.monitor import Monitor, monitor_checkpoints
from tangency.errors import InvalidInput, MissingDependency, UnsupportedOperation

X = normal(10, 4, seed=1)
Y = normal(10, 2, seed=2)


def jacobian(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(n, out, parameters), one row at a time."""
    rows = []
    for output in model(x).flatten():
        gradients = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows).reshape(*model(x).shape, -1)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def descend(model, x, y, rate, steps, monitor=None, states=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = (model(x) - y).square().sum() / (2 * len(x))
        loss.backward()
        optimizer.step()
        if monitor is not None:
            monitor.record(step, loss)
        if states is not None:
            states.append((step, copy.deepcopy(model.state_dict())))


@pytest.fixture(scope="module")
def run():
    model = network(7, out=2)
    states = [(0, copy.deepcopy(model.state_dict()))]
    monitor = Monitor(model, X, Y, learning_rate=0.3, curvature=True, overhead=None)
    descend(model, X, Y, 0.3, 6, monitor, states)
    return states, monitor.finish()


def test_kernels_outputs_and_linearisation(run):
    states, course = run
    assert course.steps.tolist() == [step for step, _ in states]
    model = network(7, out=2)
    first = jacobian(model, X)
    start, theta = model(X).detach(), flat(model)
    for record, (_, state) in enumerate(states):
        model.load_state_dict(state)
        J = jacobian(model, X)
        kernel = torch.einsum("iap,jap->ij", J, J) / 2
        torch.testing.assert_close(course.kernels[record], kernel)
        torch.testing.assert_close(course.outputs[record], model(X).detach())
        linear = start + first @ (flat(model) - theta)
        torch.testing.assert_close(course.linearized[record], linear)
        if record:
            error = (linear - model(X).detach()).norm() / (model(X).detach() - start).norm()
            assert float(course.linearization_error[record]) == pytest.approx(float(error))
        curvature = torch.linalg.svdvals(J.reshape(20, -1))[0] ** 2 / 10
        assert float(course.kernel_curvature[record]) == pytest.approx(float(curvature))
        moved = float((flat(model) - theta).norm() / theta.norm())
        assert float(course.movement[record]) == pytest.approx(moved)
        for name, series in course.movement_by_layer.items():
            before, now = states[0][1][f"{name}.weight"], state[f"{name}.weight"]
            expected = float((now - before).norm() / before.norm())
            assert float(series[record]) == pytest.approx(expected)
    assert course.linearization_error[0] == 0


def test_series_of_kernels(run):
    _, course = run
    kernels = course.kernels
    centre = torch.eye(10).double() - 0.1
    for t in range(len(kernels)):
        assert float(course.drift[t]) == pytest.approx(kernel_drift(kernels[0], kernels[t]))
        assert float(course.alignment_initial[t]) == pytest.approx(
            alignment(kernels[0], kernels[t])
        )
        assert float(course.alignment_final[t]) == pytest.approx(alignment(kernels[-1], kernels[t]))
        K, ideal = centre @ kernels[t] @ centre, centre @ Y @ Y.T @ centre
        expected = (K * ideal).sum() / K.norm() / ideal.norm()
        assert float(course.target_alignment[t]) == pytest.approx(float(expected))
        weights = torch.linalg.eigvalsh(kernels[t]) / kernels[t].trace()
        rank = float(torch.exp(-(weights * weights.log()).sum()))
        assert float(course.effective_rank[t]) == pytest.approx(rank)
        if t:
            change = (kernels[t] - kernels[t - 1]).norm() / kernels[t - 1].norm()
            assert float(course.velocity[t]) == pytest.approx(float(change))
            turn = 1 - alignment(kernels[t - 1], kernels[t])
            assert float(course.turning[t]) == pytest.approx(turn, rel=1e-4)


def test_loss_and_sharpness_against_the_whole_hessian(run):
    states, course = run
    model = network(7, out=2)
    shapes = [p.shape for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]

    def loss(theta):
        parts = theta.split([s.numel() for s in shapes])
        values = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        f = torch.func.functional_call(model, values, (X,))
        return (f - Y).square().sum() / (2 * len(X))

    for record in (0, len(states) - 1):
        model.load_state_dict(states[record][1])
        theta = flat(model)
        hessian = torch.autograd.functional.hessian(loss, theta)
        top = float(torch.linalg.eigvalsh(hessian)[-1])
        assert float(course.sharpness[record]) == pytest.approx(top, rel=1e-5)
        assert float(course.loss[record]) == pytest.approx(float(loss(theta)))
    assert course.learning_rate.tolist() == [0.3] * 7
    assert course.stability_limit.tolist() == pytest.approx([2 / 0.3] * 7)
    # What the loop says of a step is the loss before it.
    torch.testing.assert_close(course.training_loss[1:], course.loss[:-1])
    assert course.training_loss[0] == course.training_loss[1]


class Cube(torch.autograd.Function):
    """Written by hand, without a derivative in forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Cubed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network(3)

    def forward(self, x):
        return Cube.apply(self.net(x))


def test_sharpness_without_forward_mode():
    """Reverse mode twice, against finite differences; tiny networks leave Lanczos no room."""
    model, y = Cubed(), target(X)
    assert Monitor(network(3), X, y, curvature=True)._observer._sharpness._forward_mode
    monitor = Monitor(model, X, y, curvature=True)
    assert not monitor._observer._sharpness._forward_mode
    course = monitor.course
    parameters = list(model.parameters())
    start, size = flat(model), sum(p.numel() for p in parameters)

    def gradient(theta):
        torch.nn.utils.vector_to_parameters(theta, parameters)
        loss = (model(X)[:, 0] - y).square().sum() / 20
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    steps = 1e-5 * torch.eye(size, dtype=torch.float64)
    hessian = torch.stack([(gradient(start + h) - gradient(start - h)) / 2e-5 for h in steps])
    top = float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[-1])
    assert float(course.sharpness[0]) == pytest.approx(top, rel=1e-5)
    tiny = nn.Linear(1, 1, dtype=torch.float64)
    x = X[:, :1]
    course = Monitor(tiny, x, y, curvature=True).course
    features = torch.cat([x, torch.ones_like(x)], dim=1)
    top = float(torch.linalg.eigvalsh(features.T @ features / 10)[-1])
    assert float(course.sharpness[0]) == pytest.approx(top)


class Forgetful(torch.autograd.Function):
    """A product whose gradient in the second factor forgets that it depends on the first."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return (g * b).sum_to_size(a.shape), (g * a.detach()).sum_to_size(b.shape)


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network(3)
        self.scale = nn.Parameter(torch.full((1,), 2.0, dtype=torch.float64))

    def forward(self, x):
        return Forgetful.apply(self.net(x), self.scale)


def test_wrong_second_derivatives_are_refused():
    with pytest.raises(UnsupportedOperation, match="curvature=False"):
        Monitor(Product(), X, target(X), curvature=True)
    assert float(Monitor(Product(), X, target(X)).course.kernel_curvature[0]) > 0


def test_velocity_counts_steps_between_records():
    model = network(6)
    monitor = Monitor(model, X, target(X), overhead=None)
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)
    assert monitor.record(5)
    course = monitor.finish()
    assert float(course.velocity[1]) == pytest.approx(float(course.drift[1]) / 5)


def test_checkpoints_give_what_a_live_monitor_gives(run):
    states, course = run
    other = network(7, out=2, seed=5)
    before = copy.deepcopy(other.state_dict())
    prefixed = ((t, {f"_orig_mod.{k}": v for k, v in state.items()}) for t, state in states)
    replayed = monitor_checkpoints(other, prefixed, X, Y, learning_rate=0.3, curvature=True)
    for name in ("steps", "kernels", "outputs", "linearized", "movement", "loss"):
        torch.testing.assert_close(getattr(replayed, name), getattr(course, name))
    torch.testing.assert_close(replayed.sharpness, course.sharpness, rtol=1e-4, atol=0)
    torch.testing.assert_close(other.state_dict(), before)
    with pytest.raises(InvalidInput, match="sort them"):
        monitor_checkpoints(other, [states[1], states[0]], X, Y)
    with pytest.raises(InvalidInput, match="no checkpoints"):
        monitor_checkpoints(other, [], X, Y)
    with pytest.raises(InvalidInput, match="no parameter"):
        monitor_checkpoints(other, [(0, {"a": torch.ones(1)})], X, Y)


def test_probe_is_small_and_drawn_by_its_seed():
    x, y = normal(50, 4, seed=3), normal(50, seed=4)
    probes = [Monitor(network(5), x, y, probe=8, seed=s).course.probe for s in (0, 0, 1)]
    assert torch.equal(probes[0], probes[1])
    assert not torch.equal(probes[0], probes[2])
    assert len(probes[0].unique()) == 8
    course = Monitor(network(5), x, y, probe=8).course
    torch.testing.assert_close(course.outputs[0], network(5)(x[course.probe]).detach())


def test_large_outputs_take_their_top_eigenvalue_without_the_whole_kernel(monkeypatch):
    whole = Monitor(network(7, out=2), X, Y).course
    monkeypatch.setattr("tangency.diagnosis.monitor.observer.WHOLE", 10)
    parts = Monitor(network(7, out=2), X, Y).course
    torch.testing.assert_close(parts.kernels, whole.kernels)
    torch.testing.assert_close(parts.kernel_curvature, whole.kernel_curvature)


def test_cross_entropy_and_labels():
    model, labels = network(6, out=3), torch.arange(10) % 3
    cross_entropy = torch.nn.functional.cross_entropy
    monitor = Monitor(model, X, labels, loss=cross_entropy, curvature=True, overhead=None)
    course = monitor.course
    assert float(course.loss[0]) == pytest.approx(float(cross_entropy(model(X), labels).detach()))
    onehot = torch.nn.functional.one_hot(labels).double()
    twin = Monitor(model, X, onehot, overhead=None).course
    assert float(course.target_alignment[0]) == pytest.approx(float(twin.target_alignment[0]))
    assert course.catapults() == ()
    assert course.edge() is None


def test_optimizers_and_what_they_allow():
    for optimizer, limit in (
        (torch.optim.SGD(network(3).parameters(), lr=0.1, momentum=0.5), 30.0),
        (torch.optim.SGD(network(3).parameters(), lr=0.1, momentum=0.5, nesterov=True), 15.0),
        (torch.optim.SGD(network(3).parameters(), lr=0.1, weight_decay=0.1), None),
        (torch.optim.Adam(network(3).parameters(), lr=0.1), None),
    ):
        course = Monitor(network(3), X, target(X), optimizer=optimizer).course
        assert float(course.learning_rate[0]) == pytest.approx(0.1)
        found = float(course.stability_limit[0])
        assert (found != found) if limit is None else found == pytest.approx(limit)
    with pytest.raises(InvalidInput, match="not both"):
        Monitor(network(3), X, target(X), optimizer=optimizer, learning_rate=0.1)


def test_a_run_that_overflows_is_unstable():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)).double()
    monitor = Monitor(model, X, target(X), learning_rate=10.0, overhead=None)
    descend(model, X, target(X)[:, None], 10.0, 30, monitor)
    course = monitor.finish()
    assert course.overflowed is not None
    assert course.verdict().regime == "unstable"
    assert f"step {course.overflowed}" in course.explain()
    assert not monitor.record(99)
    course.to_dict()


def test_readable_forms(run):
    _, course = run
    text = repr(course)
    assert course.verdict().regime in text
    assert "nan" not in text
    assert all(len(row) <= 120 for row in text.splitlines())
    figure = course.figure()
    json.loads(figure.to_json())
    assert {"kernel drift", "sharpness", "stability limit", "turning per step"} <= {
        t.name for t in figure.data
    }
    values = course.to_dict()
    assert values["drift"] is course.drift
    assert values["verdict"]["confidence"] == course.verdict().confidence
    fails = course.failure_time(1e-6)
    assert fails == 1
    assert course.failure_time(1e6) is None
    assert "stayed its linearisation" in course.explain() or "fails at step" in course.explain()


def test_a_network_that_does_not_move_has_no_verdict():
    model = network(5)
    monitor = Monitor(model, X, target(X))
    with pytest.raises(InvalidInput, match="only the record of the start"):
        monitor.finish().verdict()
    monitor.record(3)
    assert monitor.finish().verdict().regime == "lazy"
    with pytest.raises(InvalidInput, match="step is 2"):
        monitor.record(2)
    assert "2 records" in repr(monitor)


def test_what_cannot_be_measured_is_a_warning(monkeypatch):
    monitor = Monitor(network(3), X, target(X), overhead=None)

    def refuse():
        raise InvalidInput("no kernel today")

    monkeypatch.setattr(monitor._observer, "observe", refuse)
    with pytest.warns(UserWarning, match="no record of step 1: no kernel today"):
        assert not monitor.record(1)
    assert len(monitor.course.steps) == 1


def test_scaled_models_in_single_precision():
    """Outputs that are a small difference of large ones: kernels come from the module inside."""
    net = network(32).float()
    x, y = X.float(), target(X).float()
    model = tg.scaled(net, 100.0)
    rate = 1e-5
    monitor = Monitor(model, x, y, learning_rate=rate, overhead=None)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    for step in range(1, 6):
        optimizer.zero_grad()
        ((model(x)[:, 0] - y).square().sum() / 20).backward()
        optimizer.step()
        assert monitor.record(step)
    course = monitor.finish()
    expected = 1e4 * tg.EmpiricalKernel(copy.deepcopy(net).double()).ntk(X)
    torch.testing.assert_close(course.kernels[-1], expected, rtol=1e-3, atol=1.0)
    top = torch.linalg.eigvalsh(expected)[-1] / 10
    assert float(course.kernel_curvature[-1]) == pytest.approx(float(top), rel=1e-3)
    assert course.verdict().regime == "lazy"


def test_without_curvlinops(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(MissingDependency, match=r"tangency\[curvature\]"):
        Monitor(network(3), X, target(X), curvature=True)
    assert bool(torch.isnan(Monitor(network(3), X, target(X)).course.sharpness).all())


BAD = {
    "labels": (lambda: Monitor(network(3), X, torch.arange(10)), "cross_entropy"),
    "count": (lambda: Monitor(network(3), X, target(X)[:9]), "10 examples"),
    "outputs": (lambda: Monitor(network(3, out=2), X, target(X)), r"must be \(n, 2\)"),
    "list": (lambda: Monitor(network(3), X, [0.0] * 10), "must be a torch.Tensor"),
    "NaN": (lambda: Monitor(network(3), X, target(X) * torch.nan), "y_probe holds NaN"),
    "data": (lambda: Monitor(network(3), X * torch.nan, target(X)), "x_probe holds NaN"),
    "probe": (lambda: Monitor(network(3), X, target(X), probe=0), "probe is 0"),
    "rate": (lambda: Monitor(network(3), X, target(X), learning_rate=-1.0), "learning_rate"),
    "frozen": (lambda: Monitor(network(3).requires_grad_(False), X, target(X)), "frozen"),
    "loss": (lambda: Monitor(network(3), X, Y, loss=lambda f, y: f - y[:, :1]), "one number"),
    "coupled": (
        lambda: Monitor(nn.Sequential(Scaled(network(3), 1.0), nn.Softmax(dim=0)), X, target(X)),
        "couples",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises(InvalidInput, match=message):
        call()
