r"""Initialisation decides how deep a network can be.

Signals and gradients pass through a deep network block by block. In a wide one, what a block does
to them is known before any training: the squared length of a state goes from \(q\) to
\(q' = \sigma_w^2 \, \mathbb{E}\,\varphi(\sqrt{q} z)^2 + \sigma_b^2\), and the squares of gradients
are multiplied by

$$
\chi_1 = \sigma_w^2 \, \mathbb{E}\,\varphi'(\sqrt{q^*} z)^2
$$

per block once lengths have settled at \(q^*\). With \(\chi_1 < 1\) (**ordered**) gradients vanish
and all inputs become alike; with \(\chi_1 > 1\) (**chaotic**) gradients explode and inputs that are
near become unlike. In between, on the critical line \(\chi_1 = 1\), networks can be deep. Off
the line, depth is limited to a few depth scales \(\xi = 1 / \lvert \ln \chi_1 \rvert\).

`tg.phase_diagram` computes all of this from the module (whose repeated block it finds), through its
infinite-width kernel. The second panel holds it against training: tanh networks of 5 to 40 layers
are trained on digits, each with the best of three learning rates. What is left of the loss after 90
steps is shown (yellow: nothing), and the line is \(6 \, \xi\), the depth at which
`tg.trainability` stops calling a network trainable. (Their weights are drawn orthogonal, which has
the same limit and scatters less at a width of 32.)

The third panel is what He's, LeCun's and PyTorch's default initialisation do to gradients in a ReLU
network of 30 layers: lines are the theory, points one real network of width 256 each. The last one
is the condition number of the NTK on 6 digits: in the ordered phase it explodes with depth, so that
gradient descent cannot tell inputs apart; on the critical line it stays; in the chaotic phase
it goes to one, and the network learns each example by heart.

Sources: Poole et al. (2016); Schoenholz et al., *Deep information propagation* (2017); He et al.
(2015); Xiao, Pennington and Schoenholz, *Disentangling trainability and generalization* (2020).
"""

import math

import torch
from gallery import present
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tangency as tg
from tangency import drawing

BIAS, DEPTHS, RATES, STEPS = 0.05, (5, 10, 20, 40), (0.01, 0.03, 0.1), 90

images, digits = load_digits(return_X_y=True)
x = torch.from_numpy(images[:100]).float()
x = (x - x.mean(dim=0)) / x.std()
y = nn.functional.one_hot(torch.from_numpy(digits[:100])).float()
constant = float((y - y.mean(dim=0)).square().sum(dim=1).mean() / 2)


def network(depth: int, width: int, activation: nn.Module) -> nn.Sequential:
    """64 inputs, `depth` equal hidden layers, 10 outputs."""
    layers: list[nn.Module] = [nn.Linear(64, width)]
    for _ in range(depth):
        layers += [activation, nn.Linear(width, width)]
    return nn.Sequential(*layers, activation, nn.Linear(width, 10))


def drawn(model: nn.Module, weight: float, bias: float) -> nn.Module:
    """With orthogonal weights of variance weight / fan_in, and Gaussian biases."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.orthogonal_(p, math.sqrt(weight), generator)
        else:
            nn.init.normal_(p, 0.0, math.sqrt(bias), generator)
    return model


def loss_left(depth: int, weight: float) -> float:
    """Loss after training over that of the best constant, with the best of the learning rates."""
    losses = []
    for rate in RATES:
        model = drawn(network(depth, 32, nn.Tanh()), weight, BIAS)
        descent = torch.optim.SGD(model.parameters(), lr=rate)
        for _ in range(STEPS):
            descent.zero_grad()
            loss: Tensor = (model(x) - y).square().sum(dim=1).mean() / 2
            loss.backward()
            descent.step()
        losses.append(float(loss.detach()) if torch.isfinite(loss) else math.inf)
    return min(min(losses) / constant, 1.5)


# The phases of a tanh network.
model = network(3, 32, nn.Tanh())
weights = torch.linspace(0.4, 4.4, 21)
diagram = tg.phase_diagram(model, x, weights=weights, biases=[0.0, 0.02, BIAS, 0.1, 0.2, 0.3])
print(diagram)
assert abs(float(diagram.critical[0]) - 1) < 1e-6  # tanh without biases
figure = drawing.panels(
    "Initialisation and depth",
    [
        "Phases of tanh: ln χ<sub>1</sub>",
        f"Loss left after training, biases of variance {BIAS}",
        "ReLU, 30 blocks: squared gradients",
        "Conditioning of the NTK (tanh)",
    ],
)
figure.add_heatmap(
    x=drawing.numbers(diagram.weights),
    y=drawing.numbers(diagram.biases),
    z=[drawing.numbers(row) for row in diagram.chi_1.log()],
    zmid=0,
    zmin=-1,
    zmax=1,
    zsmooth="best",
    colorscale=[[0, drawing.EMPIRICAL], [0.5, "#f4f4f2"], [1, drawing.INFINITE]],
    showscale=False,
    row=1,
    col=1,
)
drawing.line(
    figure, diagram.critical, diagram.biases, "critical line", "#333333", width=3, row=1, col=1
)

# How deep a network can be trained, and how deep theory says.
tried = (0.6, 1.0, 1.4, 1.76, 2.6, 4.2)
left = [[loss_left(depth, weight) for weight in tried] for depth in DEPTHS]
for depth, row in zip(DEPTHS, left, strict=True):
    print(f"{depth:>3} layers, loss left:", [f"{loss:.2f}" for loss in row])
figure.add_heatmap(
    x=[str(weight) for weight in tried],
    y=list(DEPTHS),
    z=left,
    zmin=0,
    zmax=1,
    colorscale="Viridis",
    reversescale=True,
    showscale=False,
    hovertemplate="w2 %{x}<br>%{y} layers<br>loss left %{z:.2f}<extra></extra>",
    row=1,
    col=2,
)
fine = tg.phase_diagram(model, x, weights=tried, biases=[BIAS])
scales = 6 / fine.chi_1[0].log().abs()
figure.add_scatter(
    x=[str(weight) for weight in tried],
    y=drawing.numbers(scales.clamp(max=60)),
    mode="lines+markers",
    name="six depth scales",
    line={"color": "#333333", "width": 3},
    row=1,
    col=2,
)
deepest = dict(zip(tried, left[-1], strict=True))
assert deepest[1.76] < 0.7  # critical: learned
assert deepest[0.6] > 0.98  # ordered: the mean of the targets, no more
assert deepest[4.2] > 0.85  # chaotic
for k, weight in enumerate(tried):
    for depth, row in zip(DEPTHS, left, strict=True):
        if depth > 2 * scales[k]:
            assert row[k] > 0.7, (weight, depth)

# Standard initialisations of a ReLU network: what they do to gradients.
names = ("He", "LeCun", "PyTorch default")
relu = network(30, 256, nn.ReLU())
table = tg.initialisations(relu, x)
print(table)
moments = {"He": (2.0, 0.0), "LeCun": (1.0, 0.0), "PyTorch default": (1 / 3, 1 / (3 * 256))}
for name, colour in zip(names, drawing.PALETTE[2:], strict=False):
    blocks = torch.arange(31)
    theory = table[name].through
    real = tg.trainability(drawn(relu, *moments[name]), x[:6], standard=False).measured
    for found, draw in ((theory, drawing.line), (real, drawing.points)):
        logs = torch.cat([found.gains.log(), torch.zeros(1)]).flip(0).cumsum(0).flip(0)
        style = {"legend": draw is drawing.line, "row": 2, "col": 1}
        draw(figure, blocks, logs.exp(), name, colour, **style)
    assert abs(theory.gradient - real.gradient) < 3
verdicts = {name: table[name].judgement.state for name in names}
print(verdicts)
assert verdicts["He"] == "trainable"
assert verdicts["LeCun"] == "vanishing gradients"

# The NTK against depth.
critical = float(diagram.critical[2])
for weight, name, colour in (
    (0.8, "ordered", drawing.EMPIRICAL),
    (critical, "critical", "#333333"),
    (4.0, "chaotic", drawing.INFINITE),
):
    init = tg.Init(weight=weight, bias=BIAS)
    depth = tg.ntk_against_depth(model, x[:6], depth=30, init=init, parametrization="ntk")
    assert depth.phase == name
    print(f"{name}: condition number {depth.condition[30]:.3g} after 30 blocks")
    drawing.line(figure, depth.depths, depth.condition, f"w2 = {weight:.3g}", colour, row=2, col=2)

figure.update_yaxes(type="log", exponentformat="power", row=2)
figure.update_xaxes(title_text="weight moment w2", row=1)
figure.update_yaxes(title_text="bias moment b2", row=1, col=1)
figure.update_yaxes(title_text="layers", range=[2.5, 50], row=1, col=2)
figure.update_xaxes(title_text="block", row=2)
figure.update_yaxes(title_text="squared gradient, last = 1", row=2, col=1)
figure.update_yaxes(title_text="condition number", row=2, col=2)
figure.update_layout(legend={"orientation": "h", "y": -0.12}, height=820)
present(figure)
