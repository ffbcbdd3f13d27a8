r"""What a residual connection, a normalisation, depth, pooling and an activation do.

Before anything is trained, the neural tangent kernel of an architecture says what it will find
easy: kernel regression with it is what a wide network does when it is trained to the end.
`tg.compare` takes several modules and the same data and lays their kernels side by side:
conditioning (how evenly fast the patterns are learned), effective rank, alignment with the targets,
the largest stable step, the leave-one-out error, and the learning curve that the kernel predicts.

Here are nine networks on 300 handwritten digits of 8 by 8 pixels, by their infinite-width kernels.
What they show:

- **Depth** alone is bad: from 2 to 16 hidden layers of ReLU the kernel flattens (the effective rank
  rises, all inputs become equally alike), its alignment with the labels falls, and the error grows
  by more than half.
- **Residual connections** undo that: 16 residual blocks are as good as 2 layers. With
  **normalisation** before each of them, the size of the signal no longer counts, and the largest
  stable step is twice as long.
- **Activations**: the linear network sees linear patterns alone and is far behind; tanh and GELU
  are a little better than ReLU here.
- **Convolutions and pooling** know that pixels are neighbours, and that what is in a corner may
  be elsewhere in the next image. On these digits, which are all centred, that brings nothing. The
  points in the last panel are the same networks on digits that were moved by up to two pixels,
  around the edges: now the convolutional kernel with pooling is the best by far (96 % right), and
  the error of all others is more than twice as large (at best 61 % right).

The dotted line there is the error of the mean of the labels.

Sources: Jacot et al. (2018); He et al. (2016); Novak et al. (2019); Arora et al. (2019); Xiao,
Pennington and Schoenholz (2020).
"""

import torch
from gallery import present
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tangency as tg
from tangency import drawing

WIDTH = 128


class Residual(nn.Module):
    """h + W phi(h), with or without LayerNorm, with a small weight."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH) if normalised else nn.Identity()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return h + 0.25 * self.layer(torch.relu(self.norm(h)))


def dense(activation: nn.Module, depth: int) -> nn.Sequential:
    """`depth` hidden layers."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, WIDTH), activation]
    for _ in range(depth - 1):
        layers += [nn.Linear(WIDTH, WIDTH), activation]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def residual(depth: int, normalised: bool) -> nn.Sequential:
    """`depth` residual blocks."""
    blocks = [Residual(normalised) for _ in range(depth)]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, WIDTH), *blocks, nn.ReLU(), nn.Linear(WIDTH, 10)
    )


def convolutional(*head: nn.Module) -> nn.Sequential:
    """Two convolutions, and a readout."""
    first, second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), *head)


networks = {
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    "ReLU, 2 layers": dense(nn.ReLU(), 2),
    "tanh, 2 layers": dense(nn.Tanh(), 2),
    "GELU, 2 layers": dense(nn.GELU(), 2),
    "ReLU, 16 layers": dense(nn.ReLU(), 16),
    "residual, 16 blocks": residual(16, normalised=False),
    "residual + LayerNorm": residual(16, normalised=True),
    "convolutional": convolutional(nn.Flatten(), nn.Linear(32 * 64, 10)),
    "convolutional + pooling": convolutional(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    ),
}

images, digits = load_digits(return_X_y=True)
pixels = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
pixels = (pixels - pixels.mean()) / pixels.std()
labels = nn.functional.one_hot(torch.from_numpy(digits)).float() - 0.1
x, y = pixels[:300], labels[:300]
generator = torch.Generator().manual_seed(0)
shifts = torch.randint(-2, 3, (300, 2), generator=generator).tolist()
moved = torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(x, shifts, strict=True)])

he = tg.Init(weight=2.0, bias=0.0)
found, found_moved = (tg.compare(networks, data, y, init=he) for data in (x, moved))
print(found)
print("moved:", found_moved)

error, error_moved = (
    {row.name: float(row.held_out.error) for row in c.rows} for c in (found, found_moved)
)
plain, deep = found["ReLU, 2 layers"], found["ReLU, 16 layers"]
assert error["linear"] > 3 * error[plain.name]
assert error[deep.name] > 1.5 * error[plain.name]
assert deep.alignment < plain.alignment
assert deep.spectrum.effective_rank > 2 * plain.spectrum.effective_rank
residual_names = ("residual, 16 blocks", "residual + LayerNorm")
assert all(error[name] < 1.05 * error[plain.name] for name in residual_names)
steps = [found[name].max_learning_rate for name in residual_names]
assert steps[1] > 1.5 * steps[0]
pooled = "convolutional + pooling"
assert error[pooled] > error[plain.name]  # centred digits
assert all(error_moved[name] > 2 * error_moved[pooled] for name in networks if name != pooled)
assert found_moved[pooled].accuracy > 0.9
assert all(row.accuracy < 0.7 for row in found_moved.rows if row.name != pooled)
assert all(row.kind == "infinite" for row in found.rows)

figure = found.figure()
drawing.points(
    figure,
    [],
    [],
    "digits moved",
    drawing.ACTUAL,
    size=9,
    row=2,
    col=2,
)
figure.data[-1].update(x=list(error_moved), y=drawing.numbers(list(error_moved.values())))
figure.update_layout(height=860)
present(figure)
