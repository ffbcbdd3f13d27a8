"""Rules of structure by identities: one function in different words has one kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.infinite import InfiniteKernel, Init
from tangency.kernel_pair import KernelPair

TIME, FEATURES, WIDTH = 4, 5, 24
INIT = Init(weight=1.7, bias=0.2)


class Net(nn.Module):
    """Tokens through one layer, a function of its values `h` and the input, and a readout."""

    def __init__(self, function: Callable[[Net, Tensor, Tensor], Tensor], fan_in: int = WIDTH):
        super().__init__()
        self.tokens = nn.Linear(FEATURES, WIDTH)
        self.again = nn.Linear(WIDTH, WIDTH)
        self.mix = nn.Linear(TIME, TIME)
        self.last = nn.Linear(fan_in, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, torch.relu(self.tokens(x)), x))


def inputs(n: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, TIME, FEATURES, generator=generator, dtype=torch.float64)


def kernel(model: nn.Module, x: Tensor | None = None, x2: Tensor | None = None) -> KernelPair:
    x = inputs() if x is None else x
    return InfiniteKernel(model.double(), x, init=INIT).pair(x, x2)


def net(function: Callable[[Net, Tensor, Tensor], Tensor], fan_in: int = WIDTH) -> KernelPair:
    """Kernels between two sets of differing size."""
    return kernel(Net(function, fan_in), inputs(), inputs(2, seed=1))


def assert_same(a: KernelPair, b: KernelPair) -> None:
    torch.testing.assert_close(a.nngp, b.nngp, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(a.ntk, b.ntk, rtol=1e-12, atol=1e-12)


Way = Callable[[Net, Tensor, Tensor], Tensor]


def columns_first(h: Tensor) -> Tensor:
    """Tokens 0, 2, 1, 3 along a dimension that merges two axes, as windows of an image do."""
    return h.view(-1, 2, 2, WIDTH).transpose(1, 2).flatten(1, 2)


# Each list holds spellings of one function; the kernel of the first is that of all.
SAME: dict[str, list[Way]] = {
    "the third token": [
        lambda m, h, x: h[:, 2],
        lambda m, h, x: h[:, -2],
        lambda m, h, x: h.select(1, 2),
        lambda m, h, x: h.unbind(1)[2],
        lambda m, h, x: h.split(1, dim=1)[2].squeeze(1),
        lambda m, h, x: h.chunk(4, dim=1)[2][:, 0],
        lambda m, h, x: h.split([2, 2], dim=1)[1][:, 0],
        lambda m, h, x: h[:, 1:][:, 1],
        lambda m, h, x: h[:, ::2][:, 1],
        lambda m, h, x: h[:, 2:3].mean(1),
        lambda m, h, x: h.narrow(1, 2, 1).flatten(1),
        lambda m, h, x: torch.relu(m.tokens(x[:, 2])),
        lambda m, h, x: torch.stack([h[:, 0], h[:, 2]], dim=1)[:, 1],
        lambda m, h, x: torch.stack([h[:, 2], h[:, 0]], dim=2)[:, :, 0],
        lambda m, h, x: torch.cat([h[:, 1:3], h[:, :1]], dim=1)[:, 1],
        lambda m, h, x: h.transpose(1, 2)[..., 2],
        lambda m, h, x: columns_first(h)[:, 1],
        lambda m, h, x: columns_first(h)[:, 1:3][:, 0],
        lambda m, h, x: columns_first(h)[:, -3::2].mean(1) * 2 - columns_first(h)[:, 3],
        lambda m, h, x: columns_first(h).unbind(1)[1],
        lambda m, h, x: columns_first(h).split([1, 3], dim=1)[1][:, 0],
    ],
    "the mean over tokens": [
        lambda m, h, x: h.mean(1),
        lambda m, h, x: h.mean(dim=-2),
        lambda m, h, x: h.sum(1) / TIME,
        lambda m, h, x: (h[:, 0] + h[:, 1] + h[:, 2] + h[:, 3]) / 4,
        lambda m, h, x: sum(h.unbind(1)) * 0.25,
        lambda m, h, x: (h[:, ::2].mean(1) + h[:, 1::2].mean(1)) / 2,
        lambda m, h, x: h.transpose(1, 2).mean(-1),
        lambda m, h, x: torch.cat([h[:, 2:], h[:, :2]], dim=1).mean(1),
        lambda m, h, x: torch.stack(h.unbind(1)[::-1], dim=1).mean(1),
        lambda m, h, x: torch.stack([h[:, :2], h[:, 2:]], dim=1).mean((1, 2)),
        lambda m, h, x: h.unflatten(1, (2, 2)).mean(2).mean(1),
        lambda m, h, x: h.view(-1, 2, 2, WIDTH).transpose(1, 2).flatten(1, 2).mean(1),
    ],
    "two more layers on every token": [
        lambda m, h, x: m.again(torch.relu(m.again(h))).mean(1),
        lambda m, h, x: m.again(torch.relu(m.again(h.unflatten(1, (2, 2))))).mean((1, 2)),
        lambda m, h, x: sum(m.again(torch.relu(m.again(t))) for t in h.unbind(1)) / TIME,
        lambda m, h, x: torch.stack(
            [m.again(torch.relu(m.again(h[:, t]))) for t in range(TIME)], dim=1
        ).mean(1),
        lambda m, h, x: m.again(
            torch.cat([torch.relu(m.again(half)) for half in h.chunk(2, 1)], dim=1)
        ).mean(1),
    ],
    "the same width in parts": [
        lambda m, h, x: h[:, 0],
        lambda m, h, x: torch.cat(h[:, 0].chunk(3, dim=-1), dim=-1),
        lambda m, h, x: torch.cat(h[:, 0].split([4, 12, 8], dim=-1), dim=1),
        lambda m, h, x: torch.cat([h[:, 0, :7], h[:, 0, 7:]], dim=1),
        lambda m, h, x: h[:, 0].unflatten(1, (4, 6)).flatten(1),
        lambda m, h, x: h[:, 0].view(-1, 4, 6).transpose(1, 2).flatten(1),
        lambda m, h, x: h[:, 0].view(-1, 4, 6).permute(0, 2, 1).reshape(-1, WIDTH),
    ],
    "arithmetic": [
        lambda m, h, x: 3 * h[:, 0] - h[:, 1],
        lambda m, h, x: h[:, 0] + h[:, 0] + h[:, 0] - h[:, 1],
        lambda m, h, x: -(h[:, 1] - 3.0 * h[:, 0]),
        lambda m, h, x: torch.sub(h[:, 0], h[:, 1], alpha=1 / 3) * 3,
        lambda m, h, x: (h[:, 0] * 6 - 2 * h[:, 1]) / 2,
        lambda m, h, x: 1 + 3 * h[:, 0] - h[:, 1] - 1,
    ],
}


@pytest.mark.parametrize("name", SAME)
def test_spellings_of_one_function(name: str) -> None:
    first, *others = (net(way) for way in SAME[name])
    assert float(first.ntk.abs().min()) > 0.1
    for other in others:
        assert_same(first, other)


def test_the_tests_can_fail() -> None:
    """Other tokens, and other means, have other kernels."""
    reference = net(lambda m, h, x: h[:, 2])
    for way in (
        lambda m, h, x: h[:, 1],
        lambda m, h, x: h.mean(1),
        lambda m, h, x: h[:, 1:].mean(1),
    ):
        assert float((net(way).nngp / reference.nngp - 1).abs().max()) > 0.01


def hidden() -> tuple[Tensor, Tensor]:
    """Covariance and NTK of ReLU tokens, (n1, n2, T, T), written out (Cho and Saul 2009)."""
    x1, x2 = inputs(), inputs(2, seed=1)
    gram = torch.einsum("itd,jsd->ijts", x1, x2)
    before = 1.7 * gram / FEATURES + 0.2
    sd1, sd2 = ((1.7 * x.square().sum(-1) / FEATURES + 0.2).sqrt() for x in (x1, x2))
    scale = sd1[:, None, :, None] * sd2[None, :, None, :]
    cosine = before / scale
    theta = torch.arccos(cosine)
    slopes = (torch.pi - theta) / (2 * torch.pi)
    after = scale * torch.sin(theta) / (2 * torch.pi) + before * slopes
    return after, slopes * (gram + 1)


def readout(after: Tensor, ntk: Tensor, fan_in: int = WIDTH) -> KernelPair:
    """The last layer: K' = w2 K + b2, Theta' = fan_in K + 1 + w2 Theta."""
    return KernelPair(1.7 * after + 0.2, fan_in * after + 1 + 1.7 * ntk)


def test_one_linear_layer() -> None:
    x1, x2 = inputs().flatten(1), inputs(2, seed=1).flatten(1)
    found = kernel(nn.Linear(TIME * FEATURES, 1), x1, x2)
    gram = x1 @ x2.T
    assert_same(found, KernelPair(1.7 * gram / (TIME * FEATURES) + 0.2, gram + 1))


def test_kept_positions() -> None:
    """(n1, n2, T, T) with every pair of tokens; a symmetric matrix and a diagonal too."""
    after, ntk = hidden()
    expected = readout(after, ntk)
    found = net(lambda m, h, x: h)
    assert found.nngp.shape == (3, 2, TIME, TIME)
    assert_same(found, expected)
    model = Net(lambda m, h, x: h)
    x = inputs()
    gram = kernel(model, x)
    assert torch.equal(gram.ntk, gram.ntk.permute(1, 0, 3, 2))
    diagonal = InfiniteKernel(model, x, init=INIT).diagonal(x)
    assert diagonal.nngp.shape == (3, TIME)
    torch.testing.assert_close(diagonal.nngp, torch.einsum("iitt->it", gram.nngp))
    torch.testing.assert_close(diagonal.ntk, torch.einsum("iitt->it", gram.ntk))


def test_two_kept_position_axes() -> None:
    """The axes stand in the order of the output's dimensions."""
    after, ntk = hidden()
    expected = readout(after, ntk)
    found = net(lambda m, h, x: h.unflatten(1, (2, 2)).transpose(1, 2))
    nngp, theta = (
        k.view(3, 2, 2, 2, 2, 2).permute(0, 1, 3, 2, 5, 4) for k in (expected.nngp, expected.ntk)
    )
    assert_same(found, KernelPair(nngp, theta))


def test_flatten_is_the_mean_over_equal_tokens() -> None:
    after, ntk = hidden()
    same = [torch.einsum("ijtt->ij", k) / TIME for k in (after, ntk)]
    expected = readout(*same, fan_in=TIME * WIDTH)
    for way in (
        lambda m, h, x: h.flatten(1),
        lambda m, h, x: h.transpose(1, 2).flatten(1),
        lambda m, h, x: h.reshape(h.shape[0], -1),
        lambda m, h, x: torch.cat(h.unbind(1), dim=-1),
        lambda m, h, x: torch.stack(h.unbind(1), dim=1).flatten(1),
        lambda m, h, x: torch.cat([h[:, 2:], h[:, :2]], dim=1).flatten(1),
    ):
        assert_same(net(way, TIME * WIDTH), expected)


def test_mean_over_tokens_is_the_mean_over_pairs() -> None:
    expected = readout(*(k.mean((2, 3)) for k in hidden()))
    assert_same(net(lambda m, h, x: h.mean(1)), expected)


def test_a_step_in_a_slice() -> None:
    after, ntk = hidden()
    for part in (slice(0, None, 2), slice(1, 4, 2), slice(1, 3), slice(-3, None), slice(0, 4, 3)):
        expected = readout(*(k[:, :, part, part].mean((2, 3)) for k in (after, ntk)))
        assert_same(net(lambda m, h, x, part=part: h[:, part].mean(1)), expected)


def test_differing_tokens_on_the_two_readouts() -> None:
    """stack keeps the cross-covariances of what it joins."""
    after, ntk = hidden()
    order = torch.tensor([3, 0, 3])
    expected = readout(*(k[:, :, order][:, :, :, order] for k in (after, ntk)))
    assert_same(net(lambda m, h, x: torch.stack([h[:, 3], h[:, 0], h[:, 3]], dim=1)), expected)


def test_concatenation_along_the_width_weighs_by_width() -> None:
    """Data, a hidden layer and a part of another: fractions of the new width."""
    after, ntk = hidden()
    x1, x2 = inputs(), inputs(2, seed=1)
    data = torch.einsum("id,jd->ij", x1[:, 1], x2[:, 1]) / FEATURES
    total = WIDTH + 9 + FEATURES
    mean = (WIDTH * after[:, :, 0, 0] + 9 * after[:, :, 2, 2] + FEATURES * data) / total
    mean_ntk = (WIDTH * ntk[:, :, 0, 0] + 9 * ntk[:, :, 2, 2]) / total
    found = net(lambda m, h, x: torch.cat([h[:, 0], h[:, 2, 5:14], x[:, 1]], dim=-1), total)
    assert_same(found, readout(mean, mean_ntk, total))


def test_two_functions_of_one_width_joined() -> None:
    """cat([h, -h]) has the kernel of h, twice as wide."""
    expected = net(lambda m, h, x: h[:, 0])
    found = net(lambda m, h, x: torch.cat([h[:, 0], -h[:, 0]], dim=-1), 2 * WIDTH)
    torch.testing.assert_close(found.nngp, expected.nngp, rtol=1e-12, atol=0)
    after, ntk = hidden()
    assert_same(found, readout(after[:, :, 0, 0], ntk[:, :, 0, 0], 2 * WIDTH))


def test_different_parts_of_a_width_are_independent() -> None:
    """h_1 - h_2 of two halves has the covariance of two independent copies, minus means."""
    found = net(lambda m, h, x: m.tokens(x)[:, 0].chunk(2, -1)[0], 12)
    difference = net(
        lambda m, h, x: (lambda a, b: (a - b) / 2**0.5)(*m.tokens(x)[:, 0].chunk(2, -1)), 12
    )
    assert_same(found, difference)
    same = net(lambda m, h, x: (lambda a: a - a)(m.tokens(x)[:, 0].chunk(2, -1)[0]), 12)
    # u - u is zero to a rounding error of its variance, of which the standard deviation is the root
    assert float((same.nngp - 0.2).abs().max()) < 1e-7
    assert float((same.ntk - 1).abs().max()) < 1e-7


class Recurrent(nn.Module):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.inputs = nn.Linear(FEATURES, WIDTH)
        self.recurrent = nn.Linear(WIDTH, WIDTH, bias=False)
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.relu(self.inputs(x[:, 0]))
        for t in range(1, self.steps):
            state = torch.relu(self.inputs(x[:, t]) + self.recurrent(state))
        return self.last(state)


def test_a_recurrence_of_one_step_is_a_perceptron() -> None:
    after, ntk = hidden()
    found = kernel(Recurrent(1), inputs(), inputs(2, seed=1))
    assert_same(found, readout(after[:, :, 0, 0], ntk[:, :, 0, 0]))


def test_a_recurrence_by_its_recursion() -> None:
    """G_t = u2 x.x' / d + b2 + w2 kappa(G_(t-1)) and its NTK (FORMULAS 1.2, standard scaling)."""
    x1, x2 = inputs(), inputs(2, seed=1)
    both = torch.cat([x1, x2])
    kappa = theta = torch.zeros(5, 5, dtype=torch.float64)
    for t in range(TIME):
        gram = both[:, t] @ both[:, t].T
        g = 1.7 * gram / FEATURES + 0.2 + 1.7 * kappa
        theta = gram + 1 + (WIDTH * kappa + 1.7 * theta if t else 0)
        sd = g.diagonal().sqrt()
        scale = torch.outer(sd, sd)
        angle = torch.arccos((g / scale).clamp(-1, 1))
        slopes = (torch.pi - angle) / (2 * torch.pi)
        kappa, theta = scale * angle.sin() / (2 * torch.pi) + g * slopes, slopes * theta
    found = kernel(Recurrent(TIME), x1, x2)
    assert_same(found, readout(kappa[:3, 3:], theta[:3, 3:]))


def test_permuted_tokens() -> None:
    """Without position-dependent weights a mean over tokens does not see their order."""
    order = torch.tensor([2, 0, 3, 1])
    model = Net(lambda m, h, x: m.again(torch.relu(m.again(h))).mean(1))
    assert_same(
        kernel(model, inputs(), inputs(2, seed=1)),
        kernel(model, inputs()[:, order], inputs(2, seed=1)),
    )
    whole = kernel(Net(lambda m, h, x: m.again(h)), inputs())
    permuted = kernel(Net(lambda m, h, x: m.again(h)), inputs()[:, order])
    for name in ("nngp", "ntk"):
        expected = getattr(whole, name)[:, :, order][:, :, :, order]
        torch.testing.assert_close(getattr(permuted, name), expected, rtol=1e-12, atol=1e-12)


def test_factors_of_the_data() -> None:
    """A value times a number of each example and token."""
    after, ntk = hidden()
    s1, s2 = inputs()[..., 0], inputs(2, seed=1)[..., 0]
    factor = s1[:, None, :, None] * s2[None, :, None, :]
    expected = readout(after * factor, ntk * factor)
    assert_same(net(lambda m, h, x: h * x[..., :1]), expected)
    assert_same(net(lambda m, h, x: h / (1 / x[..., :1])), expected)


REFUSED: dict[str, tuple[Way, int]] = {
    "an outer product": (lambda m, h, x: (h[:, 0, :, None] @ h[:, 1, None]).flatten(1), WIDTH**2),
    "a step through the width": (lambda m, h, x: h[:, 0, ::2], WIDTH // 2),
    "a weight that mixes positions": (
        lambda m, h, x: F.linear(h.mT, m.mix.weight).flatten(1),
        WIDTH * TIME,
    ),
    "a partial sum of the width": (lambda m, h, x: h[:, 0].view(-1, 4, 6).sum(1), 6),
    "data along the width": (
        lambda m, h, x: h[:, 0] * x.flatten(1).repeat(1, 2)[:, :WIDTH],
        WIDTH,
    ),
    "a product of two layers": (lambda m, h, x: torch.tanh(h[:, 0] * m.again(h[:, 0])), WIDTH),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_limit_is_refused(name: str) -> None:
    way, fan_in = REFUSED[name]
    with pytest.raises(UnsupportedOperation, match=r"EmpiricalKernel"):
        net(way, fan_in)
