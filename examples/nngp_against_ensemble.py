r"""A trained ensemble against theory: mean and spread, at any step.

Train many wide networks, each from its own random start, and look at how their outputs scatter.
Before training they are draws of a Gaussian process with the NNGP kernel \(K\). Training moves each
of them linearly, by the NTK \(\Theta\), and what comes out is Gaussian again: after \(t\) steps,
with \(A_t = \Theta_* \Theta^{-1} ( I - (I - \eta \Theta / n)^t )\),

$$
\mu_t = A_t \, y ,
\qquad
\Sigma_t = K_{**} + A_t K A_t^\top - A_t K_*^\top - K_* A_t^\top .
$$

Here 60 networks of width 1024 learn five points on a circle. The band is theory, two standard
deviations on either side; the points are the ensemble. The dashed lines in the last panel are
Bayesian inference with the NNGP kernel. Gradient descent is something else: it ends at another
mean, and its spread is *never below* that of the posterior, since \(\Sigma_t\) is the error
variance of a linear prediction from the initial outputs, and the posterior's is the least that
there is. (Only training nothing but the last layer ends in the posterior.)

The networks train in the NTK parametrisation, in which both layers count. That is no more than a
learning rate for each parameter: \(\sigma_w^2 / \text{fan-in}\) for weights and \(\sigma_b^2\) for
biases, times \(\eta\).

Sources: Lee et al., *Wide neural networks of any depth evolve as linear models under gradient
descent* (NeurIPS 2019), section 2.3; Lee et al., *Deep neural networks as Gaussian processes* (ICLR
2018); He, Lakshminarayanan and Teh, *Bayesian deep ensembles via the neural tangent kernel*
(NeurIPS 2020).
"""

import math

import torch
from gallery import present
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import tangency as tg
from tangency import drawing

COUNT, WIDTH, MOMENTS = 60, 1024, (3, 30, 1500)
WEIGHT, BIAS = 2.0, 0.05  # second moments, of weights times fan-in


def on_circle(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def moment(name: str, p: Tensor) -> float:
    """Second moment of one entry of a parameter at initialisation."""
    return BIAS if name.endswith("bias") else WEIGHT / p.shape[-1]


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
    for name, p in model.named_parameters():
        nn.init.normal_(p, std=math.sqrt(moment(name, p)))
    return model


angles = torch.tensor([-2.2, -1.6, -0.2, 1.0, 2.0])
grid = torch.linspace(-math.pi, math.pi, 61)
x, x_test, y = on_circle(angles), on_circle(grid), torch.tensor([1.0, 0.4, -0.8, 0.9, 0.1])

# Theory: three kernels, one training, any step.
torch.manual_seed(0)
limit = tg.InfiniteKernel(
    network(), x[:2], init=tg.Init(weight=WEIGHT, bias=BIAS), parametrization="ntk"
)
train, cross, test = (
    limit.pair(*pair) for pair in ((x.double(),), (x_test.double(), x.double()), (x_test.double(),))
)
training = tg.GradientDescent(train.ntk, y.double())
training.learning_rate = 0.2 * training.max_learning_rate
theory = tg.Ensemble(training, train.nngp).predict(MOMENTS, cross.ntk, cross.nngp, test.nngp).test
posterior = tg.GaussianProcess(train.nngp, y.double()).predict(cross.nngp, test.nngp)

# Practice: all networks side by side, one optimizer.
parameters, _ = stack_module_state([network() for _ in range(COUNT)])
skeleton = network()
ensemble = vmap(lambda p, inputs: functional_call(skeleton, p, (inputs,))[:, 0], (0, None))
optimizer = torch.optim.SGD(
    {"params": [p], "lr": training.learning_rate * moment(name, p)}
    for name, p in parameters.items()
)
outputs = []
for step in range(max(MOMENTS) + 1):
    if step in MOMENTS:
        outputs.append(ensemble(parameters, x_test).detach().double())
    optimizer.zero_grad()
    ((ensemble(parameters, x) - y).square().sum() / (2 * len(y))).backward()
    optimizer.step()

figure = drawing.panels(
    "60 networks of width 1024, and theory", [f"after {t} steps" for t in MOMENTS], columns=3
)
for column, (step, real) in enumerate(zip(MOMENTS, outputs, strict=True), 1):
    mean, std = theory.mean[column - 1], theory.std[column - 1]
    place = {"row": 1, "col": column, "legend": column == 1}
    drawing.band(
        figure, grid, mean - 2 * std, mean + 2 * std, "theory, ±2 std", drawing.INFINITE, **place
    )
    drawing.line(figure, grid, mean, "theory, mean", drawing.INFINITE, **place)
    drawing.points(
        figure,
        grid[::3],
        real.mean(0)[::3],
        "ensemble, mean ±2 std",
        drawing.EMPIRICAL,
        size=5,
        error=2 * real.std(0)[::3],
        **place,
    )
    # Both moments, in units of their standard errors over COUNT networks.
    off = (real.mean(0) - mean) / (std / math.sqrt(COUNT))
    spread = (real.var(0) / std.square() - 1) / math.sqrt(2 / (COUNT - 1))
    print(
        f"step {step}: mean {float(off.abs().mean()):.2f} standard errors off on average, "
        f"variance {float(spread.abs().mean()):.2f}"
    )
    assert float(off.abs().max()) < 4.5
    assert float(off.abs().mean()) < 2
    assert float(spread.abs().mean()) < 2
drawing.points(figure, angles, y, "targets", "#222222", size=8, row=1, col=3)
for sign in (-2, 2):
    drawing.line(
        figure,
        grid,
        posterior.mean + sign * posterior.std,
        "NNGP posterior, ±2 std",
        drawing.ACTUAL,
        dash="dash",
        row=1,
        col=3,
        legend=sign > 0,
    )
figure.update_xaxes(title_text="angle")
present(figure)

# The spread is never below the posterior's, and clearly above it between the data.
assert bool((theory.variance >= posterior.variance - 1e-9).all())
excess = float((theory.std[-1] / posterior.std.clamp(min=1e-3)).max()) - 1
print(f"at the end the ensemble spreads up to {excess:.0%} wider than the NNGP posterior")
assert excess > 0.2
