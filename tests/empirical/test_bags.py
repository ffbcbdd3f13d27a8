"""Tables that are looked up in bags, against plain autograd: sums, means, largest entries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from empirical.cases import DTYPE, Lambda, linear, reference, tokens
from empirical.test_exactness import assert_equal
from tangency.empirical import EmpiricalKernel, contraction
from tangency.examples import Examples

MODES = ("sum", "mean", "max")
ROWS, WIDTH, LENGTH = 7, 3, 6


def table(mode: str, **options: object) -> nn.EmbeddingBag:
    """Entries of few values: every bag has several largest ones."""
    bag = nn.EmbeddingBag(ROWS, WIDTH, mode=mode, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        bag.weight.copy_(torch.randint(3, (ROWS, WIDTH)) - 1)
        bag.weight[2] = bag.weight[4]
    return bag


def rows(m: nn.Module, x: Tensor) -> Tensor:
    return m.e(x)


def fixed_offsets(m: nn.Module, x: Tensor) -> Tensor:
    """Bags of two, none and four of each example's indices."""
    starts = torch.arange(x.shape[0])[:, None] * LENGTH + torch.tensor([0, 2, 2])
    return m.e(x.flatten(), starts.flatten()).reshape(x.shape[0], -1)


def given_offsets(m: nn.Module, x: Tensor, offsets: Tensor) -> Tensor:
    starts = torch.arange(x.shape[0])[:, None] * LENGTH + offsets
    return m.e(x.flatten(), starts.flatten()).reshape(x.shape[0], -1)


def ends_too(m: nn.Module, x: Tensor) -> Tensor:
    return m.e(x.flatten(), torch.arange(0, x.shape[0] * LENGTH + 1, LENGTH))


def two_bags(m: nn.Module, x: Tensor) -> Tensor:
    return m.e(x.reshape(-1, LENGTH // 2)).reshape(x.shape[0], -1)


def padded(n: int) -> Tensor:
    """The first example is padding alone, of the others every second index."""
    x = tokens(LENGTH, ROWS)(n)
    x[0], x[:, ::2] = 1, 1
    return x


def with_offsets(n: int) -> Examples:
    """Bags of any sizes, empty ones among them."""
    draw = torch.Generator().manual_seed(n)
    inner = torch.randint(LENGTH + 1, (n, 2), generator=draw).sort(1).values
    return tokens(LENGTH, ROWS)(n), torch.cat([torch.zeros(n, 1, dtype=torch.int64), inner], 1)


USES: dict[str, tuple[Callable[..., Tensor], dict[str, object], Callable[[int], Examples], int]] = {
    "rows": (rows, {}, tokens(LENGTH, ROWS), 1),
    "rows of short integers": (rows, {}, lambda n: tokens(LENGTH, ROWS)(n).int(), 1),
    "padded rows": (rows, {"padding_idx": 1}, padded, 1),
    "fixed offsets": (fixed_offsets, {}, tokens(LENGTH, ROWS), 3),
    "given offsets": (given_offsets, {}, with_offsets, 3),
    "given offsets and padding": (given_offsets, {"padding_idx": 1}, with_offsets, 3),
    "ends too": (ends_too, {"include_last_offset": True}, tokens(LENGTH, ROWS), 1),
    "two bags": (two_bags, {}, tokens(LENGTH, ROWS), 2),
}


def network(use: str, mode: str) -> nn.Module:
    function, options, _, bags = USES[use]
    torch.manual_seed(0)
    return Lambda(
        lambda m, *x: m.a(function(m, *x)).tanh(),
        e=table(mode, **options),
        a=linear(bags * WIDTH, 2),
    ).to(DTYPE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use", USES)
def test_bags(use: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By comparing rows and by gradients that are written out; no parameter without a site."""
    model, data = network(use, mode), USES[use][2]
    x1, x2 = data(5), data(3)
    expected = reference(model, x1, x2)[1]
    for path in ("gram", "gradients"):
        monkeypatch.setattr(contraction, "cheapest", lambda *args, p=path, **options: p)
        kernel = EmpiricalKernel(model, output="full")
        assert_equal(kernel.ntk(x1, x2), expected)
        assert_equal(kernel.diagonal(x1).ntk, reference(model, x1, x1)[1].diagonal().movedim(-1, 0))
        with kernel._subject.prepared(x1, gradients=True) as prepared:
            assert not prepared.engine.rest


def shared(m: nn.Module, x: Tensor) -> Tensor:
    """One table: looked up, in bags of all modes, and as a linear layer."""
    read = m.a(torch.cat([m.e(x).mean(1), m.largest(x), m.mean(x)], 1)).tanh()
    return m.head(read)[:, :2] if hasattr(m, "head") else read


@pytest.mark.parametrize("head", [False, True])
def test_a_shared_table(head: bool) -> None:
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {
        "e": nn.Embedding(ROWS, WIDTH),
        "largest": table("max"),
        "mean": table("mean"),
        "a": linear(3 * WIDTH, WIDTH),
    }
    if head:
        parts["head"] = nn.Linear(WIDTH, ROWS, bias=False)
    for name in {"e", "mean", "head"} & parts.keys():
        parts[name].weight = parts["largest"].weight  # type: ignore[assignment]
    model = Lambda(shared, **parts).to(DTYPE)
    x1, x2 = tokens(LENGTH, ROWS)(4), tokens(LENGTH, ROWS)(3)
    kernel = EmpiricalKernel(model, output="full")
    assert_equal(kernel.ntk(x1, x2), reference(model, x1, x2)[1])
    with kernel._subject.prepared(x1, gradients=True) as prepared:
        assert not prepared.engine.rest
