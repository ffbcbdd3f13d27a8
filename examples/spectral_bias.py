r"""Spectral bias: low frequencies first, and when.

A network of inputs on the circle has a kernel that depends on the angle between two inputs only,
and the modes of such a kernel are sine and cosine. The eigenvalue \(\lambda_k\) of frequency \(k\)
is an integral over the angle, and gradient descent with learning rate \(\eta\) on half the mean
squared error takes about

$$
t_k = \frac{1}{\eta \lambda_k}
$$

steps until \(1/e\) of the error in frequency \(k\) is left. Nothing in this is measured: the
architecture and the scales of its initialisation are enough. Here a real network of width 2048 is
trained on a sum of waves of equal height, and the step at which it has learned each of them is
read off the run.

Biases matter. A network with one hidden layer of ReLU *without* them is, but for a linear part, an
even function: every odd frequency from three on has the eigenvalue zero, and is never learned.

Sources: Basri, Jacobs, Kasten and Kritchman, *The convergence rate of neural networks for learned
functions of different frequencies* (NeurIPS 2019); Bietti and Mairal, *On the inductive bias of
neural tangent kernels* (NeurIPS 2019).
"""

import math

import torch
from gallery import present
from torch import Tensor, nn

import tangency as tg
from tangency import drawing

WIDTH, EXAMPLES, FREQUENCIES = 2048, 32, (1, 2, 3, 4)

angles = 2 * math.pi * torch.arange(EXAMPLES, dtype=torch.float64) / EXAMPLES
x = torch.stack([angles.cos(), angles.sin()], dim=1)
y = sum(torch.cos(k * angles + k) for k in FREQUENCIES)
waves = tg.fourier_patterns(angles, FREQUENCIES)


def network(bias: bool) -> nn.Module:
    """One hidden layer of ReLU; weights after He, biases of variance 1, if any."""
    torch.manual_seed(0)
    hidden, top = nn.Linear(2, WIDTH, bias=bias), nn.Linear(WIDTH, 1, bias=False)
    for layer in (hidden, top):
        nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features))
    if bias:
        nn.init.normal_(hidden.bias)
    return nn.Sequential(hidden, nn.ReLU(), top).double()


def experiment(bias: bool) -> tuple[Tensor, tg.PatternLearning]:
    """Steps until 1/e of each frequency's error is left: predicted, and those of a real run."""
    model = network(bias)
    kernel = tg.InfiniteKernel(model, x, init=tg.Init(weight=2.0, bias=1.0))
    spectrum = tg.harmonic_spectrum(tg.kernel_profile(kernel, dimension=2), 2, degrees=8)
    learning_rate = 1 / float(spectrum.eigenvalues.max())
    predicted = spectrum.learning_times(learning_rate)[list(FREQUENCIES)]
    last = float(predicted[predicted.isfinite()].max())
    run = tg.training_check(
        model, x, y, steps=int(1.3 * last), learning_rate=learning_rate, records=100
    )
    return predicted, tg.learning_order(run, y, waves)


predicted, with_biases = experiment(bias=True)
predicted_without, without = experiment(bias=False)
measured, measured_without = with_biases.learning_times(), without.learning_times()

print("frequency      " + "".join(f"{k:>8}" for k in FREQUENCIES))
for name, steps in (
    ("predicted      ", predicted),
    ("measured       ", measured),
    ("without biases ", predicted_without),
    ("measured       ", measured_without),
):
    print(name + "".join(f"{step:>8.0f}" for step in steps.tolist()))

# Each frequency is learned after the one below it, at the predicted step.
assert (measured.diff() > 0).all()
assert torch.allclose(measured[1:], predicted[1:], rtol=0.15)

# Without biases frequency 4 comes before frequency 3, of which nothing is ever learned.
assert predicted_without[2] == measured_without[2] == math.inf
assert torch.allclose(measured_without[[1, 3]], predicted_without[[1, 3]], rtol=0.15)
assert float(without.errors[-1, 2]) > 0.999

figure = drawing.panels(
    "Spectral bias of a ReLU network on the circle",
    ["error left, with biases (dashed: limit kernel)", "steps until 1/e of the error is left"],
)
for i, name in enumerate(with_biases.names):
    colour, later = drawing.PALETTE[i], with_biases.times > 0
    times = with_biases.times[later]
    drawing.line(figure, times, with_biases.errors[later, i], name, colour, row=1, col=1)
    limit = with_biases.predicted["infinite width"][later, i]
    drawing.line(figure, times, limit, name, colour, dash="dash", legend=False, row=1, col=1)
for name, theory, seen, rgb in (
    ("with biases", predicted, measured, "58, 143, 196"),
    ("without biases", predicted_without, measured_without, "217, 130, 43"),
):
    for kind, steps, opacity, size in (("theory", theory, 0.35, 18), ("measured", seen, 1, 7)):
        colour, at = f"rgba({rgb}, {opacity})", {"row": 1, "col": 2}
        drawing.points(figure, FREQUENCIES, steps, f"{name}: {kind}", colour, size=size, **at)
never = {"text": "never, without biases", "showarrow": False, "textangle": -90}
figure.add_annotation(x=3, y=1.3, font_color=drawing.INFINITE, row=1, col=2, **never)
figure.update_xaxes(type="log", dtick=1, title_text="step", row=1, col=1)
figure.update_yaxes(range=[0, 1.05], row=1, col=1)
figure.update_xaxes(title_text="frequency", dtick=1, row=1, col=2)
figure.update_yaxes(type="log", dtick=1, exponentformat="power", row=1, col=2)
present(figure)
