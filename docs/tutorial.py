# %% [markdown]
# ## A real task and an ordinary network
#
# Handwritten digits of 8 x 8 pixels, 200 to train on and 400 to test on. The targets are one-hot,
# less their mean: the loss is the mean over examples, the sum over classes, one half.

# %%
import math

import torch
from sklearn.datasets import load_digits
from torch import nn

import tangency as tg

torch.manual_seed(0)
images, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
x = images.float() / 16
y = nn.functional.one_hot(labels, 10).float() - 0.1
x_train, y_train = x[:200], y[:200]
x_test, labels_test = x[200:600], labels[200:600]


def network(width: int) -> nn.Module:
    """Two hidden layers, weights drawn as He et al. (2015) do, biases zero."""
    model = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


def accuracy(outputs: torch.Tensor) -> float:
    """The share of the test digits whose largest output is the right one."""
    return (outputs.argmax(dim=1) == labels_test).double().mean().item()


# %% [markdown]
# ## What the network computes
#
# Tangency reads the module's own `forward`. Nothing has to be rebuilt from special layers; what
# it found can be printed.

# %%
model = network(512)
print(tg.program.capture(model, x_train[:2]))

# %% [markdown]
# ## The kernel, twice
#
# The *empirical* kernel belongs to this very network at its present parameters. The *infinite*
# kernel is what it becomes when the hidden widths grow. Both are `(n1, n2)` matrices over pairs
# of examples.

# %%
limit = tg.InfiniteKernel(model, x_train[:2], init=tg.Init.he())
now = tg.EmpiricalKernel(model)

K_limit = limit.ntk(x_train)
K_now = now.ntk(x_train)

assert K_limit.shape == K_now.shape == (200, 200)
assert torch.allclose(K_limit, K_limit.T)

# %% [markdown]
# The wider the network, the closer the two: the difference falls like one over the square root of
# the width. (In the standard parametrisation the NTK grows with the width, so each network is
# compared with a limit that has its own widths put in.)


# %%
def distance_to_limit(width: int) -> float:
    """The relative distance, in the Frobenius norm, from one network's kernel to its limit."""
    narrow = network(width)
    found = tg.EmpiricalKernel(narrow).ntk(x_train[:50])
    expected = tg.InfiniteKernel(narrow, x_train[:2], init=tg.Init.he()).ntk(x_train[:50])
    return (torch.linalg.norm(found - expected) / torch.linalg.norm(expected)).item()


distances = {width: distance_to_limit(width) for width in (16, 64, 256, 1024)}
for width, distance in distances.items():
    print(f"width {width:5d}: relative distance {distance:.3f}")

assert distances[1024] < distances[64] < distances[16]
assert distances[1024] < 0.15

# %% [markdown]
# ## What is learned, and when
#
# The eigenvectors of the kernel are the patterns that the network learns independently of each
# other, each at the speed of its eigenvalue. The digits suit this network: a few large modes
# carry most of the targets' power.

# %%
modes = tg.spectrum(K_now, y_train)
print(modes)

share = modes.power / modes.power.sum()
assert share[:20].sum() > 0.5

# %% [markdown]
# ## What training will do
#
# The kernel also says how large a step may be, and what every step does to the loss. The
# prediction needs the kernel, the targets and the outputs before training; it takes no step.

# %%
with torch.no_grad():
    f0_train, f0_test = model(x_train), model(x_test)

learning_rate = 0.25 * tg.GradientDescent(K_now, y_train).max_learning_rate
descent = tg.GradientDescent(K_now, y_train, learning_rate=learning_rate)

steps = torch.tensor([0, 1, 10, 100, 300])
predicted_loss = descent.loss(steps, f0_train=f0_train)

# %% [markdown]
# Now train it in earnest, with PyTorch's own optimiser and the same loss.

# %%
wide = network(512)
wide.load_state_dict(model.state_dict())
optimizer = torch.optim.SGD(wide.parameters(), lr=float(learning_rate))
actual_loss = []
for step in range(int(steps[-1]) + 1):
    loss = ((wide(x_train) - y_train) ** 2).sum() / (2 * len(x_train))
    if step in steps:
        actual_loss.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

for step, predicted, actual in zip(steps, predicted_loss, actual_loss, strict=True):
    print(f"step {int(step):4d}: predicted {float(predicted):.4f}, actual {actual:.4f}")

relative_error = (torch.tensor(actual_loss) - predicted_loss).abs() / torch.tensor(actual_loss)
assert relative_error[0] < 1e-4  # the same network
assert relative_error.max() < 0.25  # never far off, though the network is not infinitely wide

# %% [markdown]
# ## Where training ends
#
# After infinitely many steps the prediction is kernel regression. On digits that it has never seen,
# it is about as good as the network. Both began as a random function and keep a part of it. The
# regression with the infinite kernel from a start at zero is the mean over all such networks: that
# part averages out, and it does better.

# %%
K_test = now.ntk(x_test, x_train)
end = descent.predict(math.inf, K_test_train=K_test, f0_train=f0_train, f0_test=f0_test)

ensemble = tg.GradientFlow(K_limit, y_train)
end_limit = ensemble.predict(math.inf, K_test_train=limit.ntk(x_test, x_train))

with torch.no_grad():
    scores = {
        "network after 300 steps": accuracy(wide(x_test)),
        "its kernel, in the end": accuracy(end.test),
        "infinite kernel, in the end": accuracy(end_limit.test),
    }
for name, score in scores.items():
    print(f"{name:28s} {score:.1%}")

assert min(scores.values()) > 0.7
assert scores["infinite kernel, in the end"] > scores["network after 300 steps"]

# %% [markdown]
# ## Was the theory right for this network?
#
# `training_check` does all of this at once and gives a verdict: *lazy*, when the kernel hardly
# moved and its prediction held; *feature learning*, when it did not; and the numbers that the
# verdict rests on.

# %%
check = tg.training_check(model, x_train, y_train)
print(check)
