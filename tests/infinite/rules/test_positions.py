"""Maps along positions, against the operation itself on covariances in closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.infinite.images import (
    BIAS,
    COLUMNS,
    HEIGHT,
    INIT,
    WEIGHT,
    Operation,
    assert_same,
    expected,
    hidden,
    images,
    kernels,
    on_both_sides,
)
from torch import Tensor, nn

from tangency.errors import UnsupportedOperation
from tangency.infinite import InfiniteKernel

ADJACENCY = torch.rand(HEIGHT, HEIGHT, generator=torch.Generator().manual_seed(3)).double()
SIX = torch.rand(COLUMNS, 4, generator=torch.Generator().manual_seed(4)).double()


class Buffers(nn.Module):
    """Matrices that belong to the module."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", ADJACENCY)
        self.register_buffer("columns", SIX)


class Aggregate(Buffers):
    def forward(self, h: Tensor) -> Tensor:
        return self.rows @ h @ self.columns


class AddedMatrix(Buffers):
    def forward(self, h: Tensor) -> Tensor:
        return h + self.rows @ h


class Einsum(Buffers):
    def forward(self, h: Tensor) -> Tensor:
        return torch.einsum("ij,ncjw,wv->nciv", self.rows, h, self.columns)


class Normalised(Buffers):
    """A symmetric normalisation computed from the buffer."""

    def forward(self, h: Tensor) -> Tensor:
        degree = self.rows.sum(1).rsqrt()
        return (degree[:, None] * self.rows * degree) @ h


class Messages(nn.Module):
    """Entries taken along edges and added up at nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.tensor([[0, 1, 4, 4, 2], [1, 0, 0, 3, 3]]))

    def forward(self, h: Tensor) -> Tensor:
        messages = h[:, :, self.edges[0]]
        return torch.zeros_like(h).index_add(2, self.edges[1], messages) + h


LINEAR: dict[str, Operation] = {
    "zeros around": lambda h: F.pad(h, (1, 2, 0, 3)),
    "cropped and padded": lambda h: F.pad(h, (-1, 2, 1, -2)),
    "circular": lambda h: F.pad(h, (1, 2, 0, 1), mode="circular"),
    "reflected": lambda h: F.pad(h, (1, 2, 3, 0), mode="reflect"),
    "replicated": lambda h: F.pad(h, (1, 2, 3, 0), mode="replicate"),
    "zero padding module": nn.ZeroPad2d((0, 1, 2, 0)),
    "rolled": lambda h: torch.roll(h, (1, -2), (2, 3)),
    "flipped": lambda h: h.flip(-1, 2),
    "cropped": lambda h: h[:, :, 1:4, ::2],
    "one row": lambda h: h[:, :, 3:4],
    "rows listed": lambda h: h[:, :, [4, 0, 0, 2]],
    "columns selected": lambda h: h.index_select(3, torch.tensor([5, 1])),
    "repeated": lambda h: h.repeat_interleave(2, dim=2),
    "tiled": lambda h: h.repeat(1, 1, 2, 1),
    "cumulative": lambda h: h.cumsum(2),
    "joined": lambda h: torch.cat([h[:, :, 2:], h.flip(2), h[:, :, :1]], dim=2),
    "transposed": lambda h: h[:, :, :, :5].transpose(2, 3),
    "repeated mean": lambda h: h.mean(2, keepdim=True).expand(-1, -1, 4, -1),
    "deviations": lambda h: h - h.mean(3, keepdim=True),
    "difference to the next": lambda h: h[:, :, 1:] - h[:, :, :-1],
    "added to itself rolled": lambda h: h + torch.roll(h, 1, 2),
    "added to itself permuted": lambda h: h - 2 * h[:, :, [4, 0, 3, 1, 2]],
    "added to its sums": lambda h: h + h.cumsum(3),
    "added to its neighbours": lambda h: h + F.avg_pool2d(h, 3, stride=1, padding=1),
    "added to what it is mapped to": AddedMatrix(),
    "weighted": lambda h: h * torch.linspace(-1, 2, COLUMNS, dtype=h.dtype),
    "matrices": Aggregate(),
    "einsum": Einsum(),
    "computed matrix": Normalised(),
    "edges": Messages(),
}
FEW = (
    "circular",
    "rolled",
    "joined",
    "einsum",
    "edges",
    "deviations",
    "added to itself rolled",
    "added to its neighbours",
    "added to what it is mapped to",
)


@pytest.mark.parametrize(
    ("name", "readout"),
    [(name, "all") for name in LINEAR] + [(name, "flatten") for name in FEW],
)
def test_on_closed_covariances(name: str, readout: str) -> None:
    operation = LINEAR[name]
    after, ntk = (on_both_sides(k, operation) for k in hidden())
    assert_same(kernels(operation, readout), expected(after, ntk, readout))


def test_a_constant_border() -> None:
    """(P u + c 1)(P u' + c 1)' with E[relu(g)] = sd / sqrt(2 pi); constants have no NTK."""
    number, amounts = 1.5, (1, 0, 0, 2)

    def zeros(h: Tensor) -> Tensor:
        return F.pad(h, amounts)

    after, ntk = (on_both_sides(k, zeros) for k in hidden())
    border = 1 - zeros(torch.ones(1, 1, HEIGHT, COLUMNS, dtype=torch.float64))[0, 0]
    means = [
        zeros((WEIGHT * x.square().mean(1, keepdim=True) + BIAS).sqrt() / (2 * torch.pi) ** 0.5)
        for x in (images(), images(2, seed=1))
    ]
    left, right = means[0][:, 0, None, :, :, None, None], means[1][:, 0][None, :, None, None]
    after = after + number * (left * border + border[:, :, None, None] * right)
    after = after + number**2 * border[:, :, None, None] * border
    found = kernels(lambda h: F.pad(h, amounts, value=number), "all")
    assert_same(found, expected(after, ntk, "all"))


class Net(nn.Module):
    """A filter or what should be the same as one."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor], fan_in: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.filter = nn.Conv2d(8, 8, (3, 2), stride=(1, 2), padding=(1, 0), bias=False)
        self.pixel = nn.Conv2d(8, 12, 1)
        self.point = nn.Linear(8, 8, bias=False)
        self.whole = nn.Linear(fan_in, 8, bias=False)
        self.last = nn.LazyLinear(1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.function(self, torch.relu(self.first(x)))).flatten(1))


def kernel(function: Callable[[Net, Tensor], Tensor], fan_in: int = 8) -> InfiniteKernel:
    model = Net(function, fan_in).double()
    model(images(1))
    return InfiniteKernel(model, images(), init=INIT)


def net(function: Callable[[Net, Tensor], Tensor], fan_in: int = 8):
    return kernel(function, fan_in).pair(images(), images(2, seed=1))


def test_unfold_and_a_linear_layer_are_a_convolution() -> None:
    convolved = net(lambda m, h: m.filter(h))

    def unfolded(m: Net, h: Tensor) -> Tensor:
        patches = F.unfold(h, (3, 2), padding=(1, 0), stride=(1, 2))
        return m.whole(patches.transpose(1, 2)).transpose(1, 2)

    def by_windows(m: Net, h: Tensor) -> Tensor:
        windows = F.pad(h, (0, 0, 1, 1)).unfold(2, 3, 1).unfold(3, 2, 2)
        return m.whole(windows.permute(0, 2, 3, 1, 4, 5).flatten(3)).permute(0, 3, 1, 2)

    assert_same(net(unfolded, 48), convolved)
    assert_same(net(by_windows, 48), convolved)


def test_patches_of_the_input() -> None:
    """Patch embedding: a convolution whose stride is its kernel."""

    class Embedded(nn.Module):
        def __init__(self, by_hand: bool) -> None:
            super().__init__()
            self.by_hand = by_hand
            self.filter = nn.Conv2d(3, 8, (1, 3), stride=(1, 3))
            self.linear = nn.Linear(9, 8)
            self.last = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            if not self.by_hand:
                return self.last(torch.relu(self.filter(x)).mean((2, 3)))
            patches = x.unflatten(3, (2, 3)).permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)
            return self.last(torch.relu(self.linear(patches)).mean(1))

    x = images()
    x2 = images(2, seed=1)
    pairs = [InfiniteKernel(Embedded(h).double(), x, init=INIT).pair(x, x2) for h in (True, False)]
    assert_same(*pairs)


def test_pixel_shuffle_gives_independent_pixels() -> None:
    """Flattened, they are as many channels; a mean over a pixel is that of independent values."""
    assert_same(net(lambda m, h: F.pixel_shuffle(m.pixel(h), 2)), net(lambda m, h: m.pixel(h)))
    there_and_back = net(lambda m, h: F.pixel_unshuffle(F.pixel_shuffle(m.pixel(h), 2), 2))
    assert_same(there_and_back, net(lambda m, h: m.pixel(h)))

    def summed(m: Net, h: Tensor) -> Tensor:
        return F.avg_pool2d(F.pixel_shuffle(m.pixel(h), 2), 2) * 2

    assert_same(net(summed), net(lambda m, h: m.pixel(h)[:, :3]))


def test_space_to_depth_and_a_pointwise_filter_are_a_strided_filter() -> None:
    class Strided(nn.Module):
        def __init__(self, by_hand: bool) -> None:
            super().__init__()
            self.by_hand = by_hand
            self.first = nn.Conv2d(3, 8, 2, padding=(0, 0))
            self.filter = nn.Conv2d(8, 8, 2, stride=2)
            self.pixel = nn.Conv2d(32, 8, 1)
            self.last = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.first(x))[..., :4]
            h = self.pixel(F.pixel_unshuffle(h, 2)) if self.by_hand else self.filter(h)
            return self.last(torch.relu(h).mean((2, 3)))

    x = images()
    x2 = images(2, seed=1)
    pairs = [InfiniteKernel(Strided(h).double(), x, init=INIT).pair(x, x2) for h in (True, False)]
    assert_same(*pairs)


def test_channels_shuffled_and_padded() -> None:
    """The order of alike channels does not matter; channels of zeros take their share."""
    plain = net(lambda m, h: m.pixel(h))
    assert_same(net(lambda m, h: F.channel_shuffle(m.pixel(h), 3)), plain)
    padded = net(lambda m, h: F.pad(m.pixel(h), (0, 0, 0, 0, 4, 8)))
    torch.testing.assert_close(padded.nngp - BIAS, (plain.nngp - BIAS) / 2)
    torch.testing.assert_close(padded.ntk - 1, _half_forward(plain))


def _half_forward(plain) -> Tensor:
    """Half of w2 T, and the readout's own part, whose larger fan-in makes up for the zeros."""
    own = (plain.nngp - BIAS) / WEIGHT * 12 * HEIGHT * COLUMNS
    return own + (plain.ntk - 1 - own) / 2


class ByExample(nn.Module):
    """Graph layers with an adjacency, a mask and a position of each example's own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 8)
        self.last = nn.Linear(8, 1)
        self.how = how

    def forward(self, x: Tensor, adjacency: Tensor, mask: Tensor, place: Tensor) -> Tensor:
        h = torch.relu(self.first(adjacency @ x))
        if self.how == "place":
            return self.last(h[torch.arange(h.shape[0]), place])
        if self.how in ("places", "gathered"):
            if self.how == "gathered":
                index = torch.stack([place, (place + 1) % 5], dim=1)[..., None]
                return self.last(h.gather(1, index.expand(-1, -1, 8)).mean(1))
            two = torch.stack([place, (place + 1) % 5], dim=1)
            return self.last(h[torch.arange(h.shape[0]).unsqueeze(1), two].mean(1))
        h = torch.relu(self.second(adjacency @ h)) * mask[..., None]
        return self.last(h.sum(1))


def graphs(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, 4, generator=generator, dtype=torch.float64)
    adjacency = torch.rand(n, 5, 5, generator=generator, dtype=torch.float64)
    mask = (torch.rand(n, 5, generator=generator) < 0.7).double()
    return x, adjacency, mask, torch.randint(0, 5, (n,), generator=generator)


def relu_kernel(k: Tensor, own1: Tensor, own2: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    scale = (own1 * own2).sqrt()
    theta = torch.acos((k / scale).clamp(-1, 1))
    slopes = (torch.pi - theta) / (2 * torch.pi)
    return scale * torch.sin(theta) / (2 * torch.pi) + k * slopes, slopes * t


def graph_layers(one: tuple[Tensor, ...], two: tuple[Tensor, ...], depth: int):
    """The recursion of Du et al. (2019, "Graph neural tangent kernel"), `(n1, n2, T, T)`."""

    def step(pair, k, t, fan_in):
        a, b = pair[0][1], pair[1][1]
        k, t = (torch.einsum("nij,nmjl,mkl->nmik", a, z, b) for z in (k, t))
        return WEIGHT * k + BIAS, WEIGHT * t + fan_in * k + 1

    def before(pair) -> tuple[Tensor, Tensor]:
        k = torch.einsum("nic,mjc->nmij", pair[0][0], pair[1][0]) / 4
        return k, torch.zeros_like(k)

    whole = {"12": (one, two), "11": (one, one), "22": (two, two)}
    state = {key: before(pair) for key, pair in whole.items()}
    for layer in range(depth):
        state = {
            key: step(pair, *state[key], 4 if layer == 0 else 8) for key, pair in whole.items()
        }
        own1 = torch.einsum("nnii->ni", state["11"][0])
        own2 = torch.einsum("nnii->ni", state["22"][0])
        own = {"12": (own1, own2), "11": (own1, own1), "22": (own2, own2)}
        state = {
            key: relu_kernel(k, own[key][0][:, None, :, None], own[key][1][None, :, None, :], t)
            for key, (k, t) in state.items()
        }
    return state["12"]


@pytest.mark.parametrize("how", ["sum", "place", "places", "gathered"])
def test_data_along_positions(how: str) -> None:
    one, two = graphs(3, 0), graphs(2, 1)
    found = InfiniteKernel(ByExample(how).double(), one, init=INIT).pair(one, two)
    k, t = graph_layers(one, two, 2 if how == "sum" else 1)
    if how == "sum":
        left, right = one[2], two[2]
    else:
        places = [graph[3] for graph in (one, two)]
        left, right = (F.one_hot(place, 5).double() for place in places)
        if how in ("places", "gathered"):
            left, right = (
                (weights + F.one_hot((place + 1) % 5, 5)) / 2
                for weights, place in zip((left, right), places, strict=True)
            )
    k, t = (torch.einsum("ni,nmij,mj->nm", left, z, right) for z in (k, t))
    expected_ntk = WEIGHT * t + 8 * k + 1
    torch.testing.assert_close(found.nngp, WEIGHT * k + BIAS, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.ntk, expected_ntk, rtol=1e-10, atol=0)


def test_symmetric_and_diagonal_of_graphs() -> None:
    graph = graphs(4, 0)
    kernel = InfiniteKernel(ByExample("sum").double(), graph, init=INIT)
    gram, diagonal = kernel.pair(graph), kernel.diagonal(graph)
    again = kernel.pair(graph, tuple(t.clone() for t in graph))
    torch.testing.assert_close(again.nngp, gram.nngp, rtol=1e-12, atol=0)
    torch.testing.assert_close(again.ntk, gram.ntk, rtol=1e-8, atol=0)  # angles of 1e-8 for 0
    torch.testing.assert_close(diagonal.ntk, gram.ntk.diagonal())
    order = torch.tensor([2, 2, 0, 3])
    ordered = kernel.ntk(tuple(t[order] for t in graph))
    torch.testing.assert_close(ordered, gram.ntk[order][:, order], rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, h: F.pad(h, (0, 0, 0, 0, -1, 0)), "width"),
        (lambda m, h: torch.matmul(torch.ones(8, 8).double(), h.flatten(2)), "width"),
        (lambda m, h: h[:, [0, 1]], "width"),
        (lambda m, h: h[:, :, [0, 1], [2, 3]], "several dimensions"),
    ],
)
def test_refused_with_the_reason(function: Callable[[Net, Tensor], Tensor], reason: str) -> None:
    with pytest.raises(UnsupportedOperation, match=reason):
        kernel(function)
