r"""Each mode decays at its own rate.

Gradient descent learns a network's targets mode by mode. Along the eigenvector \(v_i\) of the
neural tangent kernel, with eigenvalue \(\lambda_i\), the error is multiplied in every step by

$$
1 - \frac{\eta \lambda_i}{n} ,
$$

whatever happens in the other modes. With heavy-ball momentum \(\beta\) a quadratic takes the place
of that factor, \(z^2 - (1 + \beta - \eta \lambda_i / n) \, z + \beta = 0\): the stiff modes have
complex roots of size \(\sqrt\beta\), swing, and shrink at that rate all together; the slow ones are
learned \(1 / (1 - \beta)\) times faster than without momentum.

A real network of width 4096 is trained on two classes of handwritten digits, with and without
momentum. The dots are its errors, projected on eigenvectors of the kernel at initialisation. The
lines are the prediction, made before training from that kernel alone.

Sources: Jacot, Gabriel and Hongler, *Neural tangent kernel* (NeurIPS 2018), section 5; Lee et al.,
*Wide neural networks of any depth evolve as linear models under gradient descent* (NeurIPS 2019);
Polyak, *Some methods of speeding up the convergence of iteration methods* (1964).
"""

import torch
from gallery import present
from sklearn.datasets import load_digits
from torch import nn

import tangency as tg
from tangency import drawing

STEPS = 400
MODES = [0, 1, 3, 9, 29]

# Two classes of digits, targets -1 and 1.
digits = load_digits()
chosen = (digits.target == 3) | (digits.target == 8)
x = torch.tensor(digits.data[chosen][:120], dtype=torch.float32) / 16
y = torch.tensor(2.0 * (digits.target[chosen][:120] == 3) - 1, dtype=torch.float32)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 1))
start = {name: p.detach().clone() for name, p in model.named_parameters()}
f0 = model(x).detach()[:, 0]

# What the kernel says before training.
K = tg.kernel_matrix(tg.EmpiricalKernel(model).ntk(x))
trainings = {
    "gradient descent": tg.GradientDescent(K, y),
    "momentum 0.9": tg.HeavyBall(K, y, momentum=0.9),
}
for training in trainings.values():
    training.learning_rate = 0.2 * tg.GradientDescent(K, y).max_learning_rate
modes = K.eigensystem.vectors[:, MODES].float()
initial = modes.T @ (f0 - y)


def measured(learning_rate: float, momentum: float) -> torch.Tensor:
    """The error of the real network in each mode, over its initial one, before every step."""
    model.load_state_dict(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
    errors = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        outputs = model(x)[:, 0]
        errors.append(modes.T @ (outputs.detach() - y) / initial)
        ((outputs - y).square().sum() / (2 * len(y))).backward()
        optimizer.step()
    return torch.stack(errors)


figure = drawing.panels("Each mode decays at its own rate", list(trainings))
steps = torch.arange(STEPS)
shown = torch.unique(torch.logspace(0, 2.6, 45).long().clamp(max=STEPS - 1))
for column, (name, training) in enumerate(trainings.items(), start=1):
    predicted = training.predict(steps, f0_train=f0).mode_errors[:, MODES]
    real = measured(training.learning_rate, getattr(training, "momentum", 0.0)).double()
    gap = (real - predicted).square().mean(dim=0).sqrt()
    print(f"{name}: learning rate {training.learning_rate:.3g}")
    for index, mode in enumerate(MODES):
        place = {"row": 1, "col": column, "legend": column == 1}
        eigenvalue = float(K.eigensystem.values[mode])
        label, colour = f"mode {mode + 1} (λ = {eigenvalue:.3g})", drawing.PALETTE[index]
        drawing.line(figure, steps[1:], predicted[1:, index], label, colour, **place)
        place["legend"] = False
        drawing.points(figure, shown, real[shown, index], label, colour, size=5, **place)
        print(
            f"  mode {mode + 1:2d}: shrinks by {float(training.contraction[mode]):.5f} a step; "
            f"real training is {float(gap[index]):.3f} off, as a root mean square over the run"
        )
    # As far as the kernel stands still: a twentieth of the initial error.
    assert float(gap.max()) < 0.05
    # The modes are told apart: the last has hardly begun when the first is done.
    assert float(predicted[80, 0].abs()) < 0.1 < 0.7 < float(predicted[80, -1])

figure.update_xaxes(type="log", dtick=1, title_text="step")
figure.update_yaxes(title_text="error left in the mode", col=1)
present(figure)
