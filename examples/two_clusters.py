r"""Two clusters, noisy labels, and what the kernel makes of them.

Ten examples on a line lie in two clusters of five, with the labels \(-1\) and \(+1\) and a little
noise. How hard is it to fit the noise? The answer is a question of geometry. Two examples whose
features are the distance \(d\) apart force the smallest eigenvalue of the kernel matrix below
\(d^2 / 2\), and any function through both has

$$
\lVert f \rVert^2 \ge \frac{(y_i - y_j)^2}{d^2} .
$$

So as the clusters shrink, the squared norm \(y^\top K^{-1} y\) explodes for noisy labels, while for
labels without noise it stays where it is. How fast it explodes depends on how smooth the kernel is.
The NTK of a ReLU network has a kink where its inputs meet: \(d^2\) shrinks like the size of the
cluster, and the norm grows like one over it. That of a GELU network is smooth, the five examples
of a cluster become dependent to fourth order, and the norm grows like the size to the power
\(-8\).

Between the points the ReLU kernel joins the noisy labels by nearly straight lines. The GELU kernel
swings, from label to label by far more than they differ, within a hair's breadth of the data. Ten
examples with the same labels that lie well apart cause none of it: a small norm, and a curve that
overshoots no more than a smooth curve must.

The last panel trains real networks of width 512 for 1000 steps. With tight clusters the means are
learned at once, and then the loss stands still at the level of the noise, which lies in hopeless
modes. With the same labels well apart it goes on falling. Scale the output by \(10^4\), which
makes training lazy (Chizat, Oyallon and Bach 2019), and both runs follow the kernel to three
digits. Without the scale they fall behind it, the tight clusters most: hardly any neuron has its
kink inside so small a cluster, and training moves the kinks, so that within the cluster the kernel
does not stay what it was. Where examples lie close together the kernel regime ends first.

Sources: the eigenvalue bound is the Rayleigh quotient of \(e_i - e_j\), the norm bound is its
inverse by Cauchy and Schwarz. On smooth kernels on clustered points: Schaback, *Error estimates
and condition numbers for radial basis function interpolation* (1995); on the kink of the ReLU
kernel: Bietti and Mairal, *On the inductive bias of neural tangent kernels* (2019).
"""

import math

import torch
from gallery import present
from torch import Tensor, nn

import tangency as tg
from tangency import drawing

clean = torch.tensor([-1.0] * 5 + [1.0] * 5, dtype=torch.float64)
noise = 0.3 * torch.randn(10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
labels = clean + noise
places = torch.tensor([-1, -0.7, 0, 0.25, 1], dtype=torch.float64)
apart = torch.linspace(-4, 4, 10, dtype=torch.float64)


def clusters(size: float) -> Tensor:
    """Five examples around -1 and five around +1, each within `size`."""
    return torch.cat([-1 + size * places, 1 + size * places])


def limit_kernel(activation: type[nn.Module]) -> tg.InfiniteKernel:
    """Of a network with two hidden layers."""
    layers = nn.Linear(1, 256), activation(), nn.Linear(256, 256), activation(), nn.Linear(256, 1)
    init = tg.Init(weight=2.0, bias=1.0)
    example = torch.zeros(2, 1, dtype=torch.float64)
    model = nn.Sequential(*layers).double()
    return tg.InfiniteKernel(model, example, init=init, parametrization="ntk")


kernels = {"ReLU": limit_kernel(nn.ReLU), "GELU": limit_kernel(nn.GELU)}
figure = drawing.panels(
    "Noisy labels in tight clusters",
    [
        "Squared RKHS norm",
        "Across a cluster of size 0.1",
        "The same labels well apart",
        "Real networks",
    ],
)

figure.update_xaxes(type="log", exponentformat="power", title_text="cluster size", row=1, col=1)
figure.update_yaxes(type="log", exponentformat="power", title_text="norm squared", row=1, col=1)
figure.update_xaxes(title_text="position, in units of the size", row=1, col=2)
figure.update_xaxes(title_text="input", row=2, col=1)
figure.update_xaxes(type="log", exponentformat="power", title_text="step", row=2, col=2)
figure.update_yaxes(type="log", exponentformat="power", title_text="loss", row=2, col=2)

# 1. The norm, as the clusters shrink.
for (name, kernel), colour in zip(kernels.items(), drawing.PALETTE, strict=False):
    sizes = torch.logspace(-3 if name == "ReLU" else -1.2, -0.5, 8, dtype=torch.float64)
    norms, quiet, bounds = [], [], []
    for size in sizes.tolist():
        K = tg.kernel_matrix(kernel.ntk(clusters(size)[:, None]))
        found = tg.geometry(K, labels, threshold=0.5)
        pairs = found.duplicates
        assert found.eigenvalues[-1] <= pairs.eigenvalue_bounds.min()
        assert found.targets.rkhs_norm >= found.conflict.max()
        norms.append(found.targets.rkhs_norm)
        bounds.append(float(found.conflict.max()))
        quiet.append(tg.geometry(K, clean).targets.rkhs_norm)
    growth = tg.curve_exponent(sizes[:4], norms[:4]).exponent
    print(f"{name}: the norm grows like size^-{growth:.2f}; without noise it is {quiet[0]:.2f}")
    assert abs(growth - (1 if name == "ReLU" else 8)) < 0.1
    assert max(quiet) < 2
    curves = ((norms, "noisy", "solid"), (bounds, "pair bound", "dot"), (quiet, "clean", "dash"))
    for values, label, dash in curves:
        drawing.line(figure, sizes, values, f"{name}, {label}", colour, dash=dash, row=1, col=1)


# 2 and 3. What happens between the points.
def interpolant(kernel: tg.InfiniteKernel, x: Tensor, line: Tensor) -> Tensor:
    """The limit of training, on the points of `line`."""
    flow = tg.GradientFlow(kernel.ntk(x[:, None]), labels)
    return flow.predict(math.inf, kernel.ntk(line[:, None], x[:, None])).test


size = 0.1
across = torch.linspace(-1, 1, 201, dtype=torch.float64)
whole = torch.linspace(-4.3, 4.3, 301, dtype=torch.float64)
low, high = labels[5:].aminmax()
for (name, kernel), colour in zip(kernels.items(), drawing.PALETTE, strict=False):
    tight = interpolant(kernel, clusters(size), 1 + size * across)
    beyond = float(torch.maximum(low - tight, tight - high).max())
    print(f"{name}: between labels of {low:.2f} to {high:.2f} it goes {beyond:.2f} beyond them")
    assert beyond < 0.01 if name == "ReLU" else beyond > 0.8
    drawing.line(figure, across, tight, name, colour, row=1, col=2)
    loose = interpolant(kernel, apart, whole)
    beyond = torch.maximum(loose - labels.max(), labels.min() - loose)[whole.abs() <= 4].max()
    norm = tg.geometry(kernel.ntk(apart[:, None]), labels).targets.rkhs_norm
    print(f"{name}, well apart: {beyond:.2f} beyond, with a norm of {norm:.2f}")
    assert beyond < 0.2
    assert norm < 20
    drawing.line(figure, whole, loose, name, colour, legend=False, row=2, col=1)
drawing.points(figure, places, labels[5:], "labels", drawing.ACTUAL, size=8, row=1, col=2)
drawing.points(figure, apart, labels, "labels", drawing.ACTUAL, size=8, legend=False, row=2, col=1)


# 4. Real networks under gradient descent.
def wide_network() -> nn.Module:
    """Two hidden layers of width 512, weights after He, biases of variance 1."""
    torch.manual_seed(0)
    layers = [nn.Linear(1, 512), nn.Linear(512, 512), nn.Linear(512, 1, bias=False)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features))
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double()


def train(x: Tensor, rate: float, scale: float) -> Tensor:
    """Losses of scale * (network - network at its start) after `steps`."""
    model = wide_network()
    start = model(x).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate / scale**2)
    losses = []
    for step in range(1, int(steps[-1]) + 1):
        optimizer.zero_grad()
        loss(scale * (model(x) - start)[:, 0]).backward()
        optimizer.step()
        if step in steps:
            losses.append(loss(scale * (model(x).detach() - start)[:, 0]))
    return torch.stack(losses)


def loss(outputs: Tensor) -> Tensor:
    return (outputs - labels).square().sum() / (2 * len(labels))


steps = torch.unique(torch.logspace(0, 3, 16).round().long())
within = labels.reshape(2, 5) - labels.reshape(2, 5).mean(dim=1, keepdim=True)
level = float(within.square().sum() / 20)
for name, x, colour in (
    ("size 0.01", clusters(0.01), drawing.PALETTE[2]),
    ("well apart", apart, drawing.PALETTE[3]),
):
    K = tg.kernel_matrix(tg.EmpiricalKernel(wide_network()).ntk(x[:, None]))
    rate = 10 / float(tg.spectrum(K).eigenvalues[0])  # half the largest stable one
    predicted = tg.GradientDescent(K, labels, learning_rate=rate).loss(steps)
    lazy, real = train(x[:, None], rate, 1e4), train(x[:, None], rate, 1.0)
    print(
        f"{name}, loss after 1000 steps over the noise: predicted {predicted[-1] / level:.4f}, "
        f"lazy {lazy[-1] / level:.4f}, as it is {real[-1] / level:.4f}"
    )
    assert torch.allclose(lazy, predicted, rtol=1e-3)
    assert real[-1] > 0.95 * level if name == "size 0.01" else real[-1] < 0.3 * level
    drawing.line(figure, steps, predicted, f"{name}, predicted", colour, row=2, col=2)
    drawing.points(figure, steps, lazy, f"{name}, lazy", colour, row=2, col=2)
    drawing.line(figure, steps, real, f"{name}, real", colour, dash="dot", row=2, col=2)
drawing.horizontal(figure, level, "noise within the clusters", row=2, col=2)

figure.update_layout(legend={"orientation": "h", "y": -0.12}, height=820)
present(figure)
