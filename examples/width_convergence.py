r"""Kernels of finite networks converge, and how wide is wide enough.

The empirical NTK of a network of width \(w\) at its random start is a sum over units, and the law
of large numbers takes it to the NTK of the infinitely wide network. Over initialisations it
varies by \(c / w\) (relative variance), and its mean is off by \(c' / w\), so that one network is
at a relative distance

$$
\sqrt{\frac{c}{w} + \frac{c'^2}{w^2}}
$$

from the limit, in the root mean square. `tg.width_study` measures both laws on a few small widths
and solves for the width that a given closeness needs. Here it is done for perceptrons with two
hidden ReLU layers on twenty handwritten digits, from widths 32 to 256; then networks of widths
512 and 1024, which the fit has never seen, are drawn and held against its prediction. For this
network the bias is so small that 40 networks of a width do not show it: what keeps a network from
its limit is the variance.

The lower panels show one row of the kernel, the first digit with all twenty: ten networks of
width 32, ten of width 1024, and the limit.

Sources: Jacot, Gabriel and Hongler (2018) for the limit; Hanin and Nica, *Finite depth and width
corrections to the neural tangent kernel* (2020), and Dyer and Gur-Ari, *Asymptotics of wide
networks from Feynman diagrams* (2020), for the powers of the width.
"""

import torch
from gallery import present
from sklearn.datasets import load_digits
from torch import nn

import tangency as tg
from tangency.drawing import EMPIRICAL, INFINITE, PALETTE, line, panels, points

WIDTHS = (32, 64, 128, 256)
HELD_OUT = (512, 1024)
x = torch.tensor(load_digits().data[:20]) / 16


def network(width: int) -> nn.Module:
    """Two hidden ReLU layers with the initialisation of He et al. (2015)."""
    layers = [nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 1)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double()


# %% The laws, fitted on small widths
study = tg.width_study(network, x, WIDTHS, seeds=40, init=tg.Init.he())
print(study)
low, high = study.variance_law.power_range
assert low < 1 < high
assert -0.65 < study.slope < -0.4

# %% Held against wide networks that the fit has not seen
check = tg.width_study(network, x, HELD_OUT, seeds=range(100, 140), init=tg.Init.he())
for width, errors in zip(HELD_OUT, check.errors, strict=True):
    measured, predicted = float(errors.square().mean().sqrt()), study.distance(width)
    print(f"width {width}: distance {measured:.3f} measured, {predicted:.3f} predicted")
    assert abs(measured / predicted - 1) < 0.25  # 40 networks know it to 8 %, the fit to 5 %

needed = study.width_for(0.05)
print(f"within 5 % of the limit: width {needed.width} ({needed.low} to {needed.high})")


# %% One row of the kernel
def rows(width: int, seeds: range) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Kernel of the first digit with all, relative to the diagonal of the limit; and the limit."""
    found = []
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = network(width)
        limit = tg.InfiniteKernel(model, x[:2], init=tg.Init.he()).ntk(x)
        found.append(tg.EmpiricalKernel(model).ntk(x[:1], x)[0] / limit.diagonal().mean())
    return found, limit[0] / limit.diagonal().mean()


narrow, _ = rows(WIDTHS[0], range(10))
wide, limit = rows(1024, range(10))
scatter = [float(torch.stack(kernels).std(dim=0).mean()) for kernels in (narrow, wide)]
assert 3 < scatter[0] / scatter[1] < 11  # sqrt(32) = 5.7

# %%
titles = ["Distance from the limit", "Variance and bias", "Width 32: ten networks", "Width 1024"]
figure = panels("Kernels of finite networks converge", titles)
widths = study.widths.double()
grid = torch.logspace(1.5, 3.1, 30).double()
laws = [study.distance(float(w)) for w in grid]
repeated = widths[:, None].expand_as(study.errors)
points(figure, repeated, study.errors, "one network", EMPIRICAL, size=4, row=1, col=1)
line(figure, grid, laws, "fitted on widths to 256", EMPIRICAL, row=1, col=1)
held = check.widths.double()[:, None].expand_as(check.errors)
points(figure, held, check.errors, "not seen by the fit", INFINITE, size=4, row=1, col=1)
points(figure, widths, study.variance, "variance", PALETTE[3], row=1, col=2)
variance = study.variance_law.coefficient / grid
line(figure, grid, variance, "c / width", PALETTE[3], dash="dot", row=1, col=2)
points(figure, widths, study.bias.square(), "squared bias", PALETTE[2], row=1, col=2)
digits = torch.arange(1, len(x) + 1)
for col, kernels in ((1, narrow), (2, wide)):
    for i, row in enumerate(kernels):
        first = col == 1 and i == 0
        line(figure, digits, row, "networks", EMPIRICAL, width=1, legend=first, row=2, col=col)
    line(figure, digits, limit, "limit", INFINITE, width=3, legend=col == 1, row=2, col=col)
    figure.update_yaxes(range=[0, 1.8], row=2, col=col)
    figure.update_xaxes(title_text="digit", row=2, col=col)
figure.update_xaxes(type="log", title_text="width", row=1)
figure.update_yaxes(type="log", row=1)
present(figure)
