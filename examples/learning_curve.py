r"""The learning curve, predicted from one kernel matrix.

How much better would the network be with twice the data? In the kernel regime the answer stands in
the kernel matrix of the data that one has. With the eigenvalues \(\lambda_i\) of the kernel over
the distribution of the inputs and the power \(v_i^2\) of the target in its modes, regression on
\(n\) examples with a ridge \(\rho\) learns the fraction \(L_i = \lambda_i / (\lambda_i + \kappa)\)
of mode \(i\), and

$$
n = \sum_i \frac{\lambda_i}{\lambda_i + \kappa} + \frac{\rho}{\kappa} ,
\qquad
\text{test error} = \frac{n}{n - \sum_i L_i^2} \sum_i (1 - L_i)^2 \, v_i^2 .
$$

`tg.estimated_learning_curve` reads both sums off the kernel matrix of all \(m\) examples, for
every \(n\) up to \(m\): no model is fitted. Below, it is held against 28 regressions for each ridge
on random parts of 1797 digits, with the NTK of an infinitely wide network.

If eigenvalues and power fall like \(\lambda_i \sim i^{-b}\) and \(v_i^2 \sim i^{-a}\), the error
without ridge falls like \(n^{-\min(a - 1,\, 2b)}\): a **scaling law** whose exponent is known
before anything is trained. For the digits it agrees with the measured slope within its
uncertainty. It is not the last word: the eigenvalues bend (the second half of the fitted range
falls more slowly than the first), and so does the curve.

What fails, too: without a ridge and beyond half of the sample, the prediction is too good, by some
15 to 20 % at \(n = 960\) of 1797. With a ridge it is within 5 % everywhere.

The third panel says which modes \(n\) examples teach: about as many as there are examples, and
together never more (\(\sum_i L_i \le n\)). The last panel chooses the ridge on 600 examples of
which 180 have a wrong label. Leave-one-out and generalised cross-validation (which is the kernel
alignment risk estimate of Jacot et al.) see these 600 only, noise and all; the grey points are the
error against the true labels of the 1197 others. The minimum is at the same place.

Sources: Bordelon, Canatar and Pehlevan (2020); Jacot et al., *Kernel alignment risk estimator*
(2020); Wei, Hu and Steinhardt, *More than a toy* (2022); Simon et al., *The eigenlearning
framework* (2023); Golub, Heath and Wahba (1979).
"""

import torch
from gallery import present
from sklearn.datasets import load_digits
from torch import nn

import tangency as tg
from tangency import drawing

SIZES, RIDGES = (15, 30, 60, 120, 240, 480, 960), (0.0, 1.0)

images, digits = load_digits(return_X_y=True)
x = torch.from_numpy(images / 16)
y = nn.functional.one_hot(torch.from_numpy(digits)).double() - 0.1
model = nn.Sequential(
    nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
)
he = tg.Init(weight=2.0, bias=0.0)
ntk = tg.InfiniteKernel(model.double(), x[:2], init=he, parametrization="ntk").ntk(x)
print(f"mean of k(x, x): {ntk.diagonal().mean():.3g}")
K = tg.kernel_matrix(ntk)

# The curve: predicted, and measured on random parts of the data.
figure = drawing.panels(
    "Digits: generalisation, predicted and measured",
    [
        "Learning curve",
        "Eigenvalues and target power",
        "What n examples teach",
        "Choosing the ridge, n = 600",
    ],
)
for ridge, colour in zip(RIDGES, drawing.PALETTE, strict=False):
    predicted = tg.estimated_learning_curve(K, y, SIZES, ridge)
    measured = tg.measured_learning_curve(K, y, SIZES, ridge, repeats=4, seed=0)
    ratio = predicted.test_error / measured.test_error
    print(f"ridge {ridge:g}: predicted over measured", [f"{r:.2f}" for r in ratio.tolist()])
    within = (ratio - 1).abs() < (0.1 if ridge == 0 else 0.05)
    assert bool(within[:-1].all())
    assert within[-1] if ridge else 0.78 < ratio[-1] < 0.88  # beyond half of the sample
    drawing.line(
        figure, SIZES, predicted.test_error, f"ridge {ridge:g}, predicted", colour, row=1, col=1
    )
    drawing.points(
        figure,
        SIZES,
        measured.test_error,
        f"ridge {ridge:g}, measured",
        colour,
        error=2 * measured.standard_error,
        row=1,
        col=1,
    )
    if ridge == 0:
        slope = tg.curve_exponent(SIZES[2:], measured.test_error[2:])

# The scaling law: its exponent from the tails, and from the measured curve.
population = tg.population(K, y)
law = tg.scaling_law(population)
print(law)
print(f"measured from n = {SIZES[2]} on: {slope.exponent:.3f}, 95 % {slope.interval}")
assert law.interval[0] < slope.exponent < law.interval[1]
for tail, name, colour in (
    (law.eigenvalues, "eigenvalue", drawing.PALETTE[2]),
    (law.power, "target power", drawing.PALETTE[3]),
):
    ranks = torch.arange(1, 1201)
    drawing.line(figure, ranks, tail.values[:1200], name, colour, width=1, row=1, col=2)
    ends = torch.tensor([tail.start + 1, tail.stop])
    label = f"{name} ~ i^-{tail.exponent:.2f}"
    drawing.line(figure, ends, tail.law(ends), label, drawing.ACTUAL, dash="dash", row=1, col=2)

# Which modes are learned.
for n, colour in zip((15, 60, 170), drawing.PALETTE[4:], strict=False):
    learned = tg.eigenlearning(population, n).learnability
    assert learned.sum() <= n * (1 + 1e-9)
    ranks = torch.arange(1, 801)
    drawing.line(figure, ranks, learned[:800], f"learned of n = {n}", colour, row=2, col=1)

# The ridge: three in ten labels wrong, and only the 600 training examples are looked at.
generator = torch.Generator().manual_seed(0)
order = torch.randperm(len(x), generator=generator)
train, rest = order[:600], order[600:]
noisy = y[train]
noisy[:180] = noisy[:180].roll(1, dims=1)
small = tg.kernel_matrix(ntk[train][:, train])
path = tg.ridge_path(small, noisy, torch.logspace(-3, 2, 26, dtype=torch.float64))
true = torch.stack(
    [
        (
            tg.GradientFlow(small, noisy, ridge=float(r))
            .predict(torch.inf, ntk[rest][:, train])
            .test
            - y[rest]
        )
        .square()
        .sum(dim=1)
        .mean()
        for r in path.ridges
    ]
)
chosen = path.ridges.tolist().index(path.best())
print(
    f"ridge chosen by leave-one-out: {path.best():.3g}; error {true[chosen]:.4f} against "
    f"{true.min():.4f} with the best ridge and {true[0]:.4f} with the smallest"
)
assert true[chosen] < 1.05 * true.min()
for values, name, colour in (
    (path.leave_one_out, "leave-one-out", drawing.PALETTE[0]),
    (path.gcv, "GCV = KARE", drawing.PALETTE[1]),
):
    drawing.line(figure, path.ridges, values, name, colour, row=2, col=2)
drawing.points(figure, path.ridges, true, "test, true labels", drawing.ACTUAL, row=2, col=2)

figure.update_xaxes(type="log", exponentformat="power")
figure.update_yaxes(type="log", exponentformat="power")
figure.update_yaxes(type="linear", row=2, col=1)
titles = ("training examples", "mean squared error"), ("rank of the mode", "eigenvalue, power")
titles += ("rank of the mode", "fraction learned"), ("ridge", "mean squared error")
for place, (across, up) in zip(((1, 1), (1, 2), (2, 1), (2, 2)), titles, strict=True):
    figure.update_xaxes(title_text=across, row=place[0], col=place[1])
    figure.update_yaxes(title_text=up, row=place[0], col=place[1])
figure.update_layout(legend={"orientation": "h", "y": -0.12}, height=820)
present(figure)
