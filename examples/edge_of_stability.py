r"""The edge of stability, and a catapult.

Gradient descent with learning rate \(\eta\) on a loss of curvature \(\lambda\) is stable below
\(\lambda = 2 / \eta\). Training does not keep away from this border. The largest eigenvalue of
the Hessian, the sharpness, rises until it is there, and then hovers about it, while the loss goes
on falling by jumps (Cohen et al. 2021). With a step so small that the network never becomes as
sharp as that, it stays below.

A run may also begin beyond the border. With \(2 / \lambda_0 < \eta < 4 / \lambda_0\), for the
largest eigenvalue \(\lambda_0\) of the initial kernel over \(n\), a wide two-layer linear network
does not diverge: its loss grows until it is catapulted to a flatter place, where the kernel's
eigenvalue is below \(2 / \eta\), and falls from there (Lewkowycz et al. 2020).

The upper panels show full-batch descent of a small tanh network on 60 handwritten digits at three
learning rates: the sharpness against \(2 / \eta\), by `curvlinops`, and the loss. The lower
panels show two-layer linear networks that tell even digits from odd: lazy, catapulted, and
diverging. `tg.Monitor` sees all of it. In each of these runs the prediction of the initial kernel
fails early, but for the lazy one.

Sources: Cohen, Kaur, Li, Kolter and Talwalkar, *Gradient descent on neural networks typically
occurs at the edge of stability* (2021); Lewkowycz, Bahri, Dyer, Sohl-Dickstein and Gur-Ari, *The
large learning rate phase of deep learning: the catapult mechanism* (2020).
"""

import math

import torch
from gallery import present
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tangency as tg
from tangency.drawing import PALETTE, horizontal, line, panels

digits = load_digits()
order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))[:60]
x = torch.tensor(digits.data)[order]
x = (x - x.mean(dim=0)) / 5
y = nn.functional.one_hot(torch.tensor(digits.target)[order], 10).double() - 0.1


def descend(model: nn.Module, x: Tensor, y: Tensor, rate: float, steps: int, **how) -> tg.Course:
    """Gradient descent, with the whole training set for a probe."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    monitor = tg.Monitor(model, x, y, probe=len(x), optimizer=optimizer, overhead=None, **how)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = (model(x) - y).square().sum() / (2 * len(x))
        loss.backward()
        optimizer.step()
        monitor.record(step, loss)
    return monitor.finish()


def tanh_network() -> nn.Module:
    """Two hidden layers, the same start each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)]
        return nn.Sequential(*layers).double()


# %% The sharpness rises to 2 / learning rate
RATES = (0.2, 0.45, 0.6)
runs = [descend(tanh_network(), x, y, r, 1500, curvature=True, per_decade=8) for r in RATES]
for rate, course in zip(RATES, runs, strict=True):
    edge = course.edge()
    print(
        f"learning rate {rate}: sharpness {edge.first:.2f} to {edge.last:.2f} times 2 / rate, "
        f"{edge.state}; the kernel's prediction fails at step {course.failure_time()}"
    )
assert runs[0].edge().state == "stable"
for course in runs[1:]:
    edge = course.edge()
    assert edge.state == "edge of stability"
    assert edge.first < 0.95
    assert abs(edge.typical - 1) < 0.2


# %% A catapult
class TwoLayers(nn.Module):
    """b^T A x / sqrt(w d): linear in its inputs, not in its parameters."""

    def __init__(self, width: int, inputs: int) -> None:
        super().__init__()
        draw = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float64}
        self.a = nn.Parameter(torch.randn(width, inputs, **draw))
        self.b = nn.Parameter(torch.randn(1, width, **draw))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a.T @ self.b.T / math.sqrt(self.a.numel())


pixels, even = torch.tensor(digits.data)[order] / 16, (torch.tensor(digits.target)[order] % 2)
parity = 1 - 2 * even.double()[:, None]
kernel = tg.EmpiricalKernel(TwoLayers(512, 64)).ntk(pixels)
top = float(torch.linalg.eigvalsh(kernel)[-1]) / len(pixels)
MULTIPLES = (1.0, 3.0, 5.0)
flights = [
    descend(TwoLayers(512, 64), pixels, parity, m / top, 40, per_decade=25) for m in MULTIPLES
]
lazy, catapulted, diverged = flights
for multiple, course in zip(MULTIPLES, flights, strict=True):
    print(f"learning rate {multiple:g} / lambda_0: {course.verdict().regime}")
    for flight in course.catapults():
        print(
            f"  a catapult: the loss rose {flight.growth:.0f} times by step {flight.peak}, and the "
            f"kernel's eigenvalue fell from {flight.before:.2f} to {flight.after:.2f} of 2 / rate"
        )
assert lazy.verdict().regime == "lazy"
assert len(catapulted.catapults()) == 1
assert catapulted.kernel_curvature[-1] < catapulted.stability_limit[-1]
assert catapulted.loss[-1] < catapulted.loss[0]
assert diverged.verdict().regime == "unstable"

# %%
titles = ["Sharpness over 2 / learning rate", "Loss", "A catapult: loss", "Kernel eigenvalue"]
figure = panels("The edge of stability, and a catapult", titles)
for rate, course, colour in zip(RATES, runs, PALETTE, strict=False):
    name, steps = f"learning rate {rate}", course.steps[1:]
    line(figure, steps, (course.sharpness / course.stability_limit)[1:], name, colour, row=1, col=1)
    line(figure, steps, course.loss[1:], name, colour, legend=False, row=1, col=2)
horizontal(figure, 1.0, "edge", row=1, col=1)
for multiple, course, colour in zip(MULTIPLES, flights, PALETTE[3:], strict=False):
    name, steps = f"{multiple:g} / λ₀", course.steps
    line(figure, steps, course.loss.clamp(max=1e4), name, colour, row=2, col=1)
    ratio = (course.kernel_curvature / course.stability_limit).clamp(max=3)
    line(figure, steps, ratio, name, colour, legend=False, row=2, col=2)
horizontal(figure, 1.0, "2 / learning rate", row=2, col=2)
figure.update_xaxes(title_text="step")
figure.update_xaxes(type="log", row=1)
figure.update_yaxes(type="log", col=2, row=1)
figure.update_yaxes(type="log", col=1, row=2)
present(figure)
