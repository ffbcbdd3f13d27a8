"""Estimates from samples: closed values, standard errors, seeds, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import numpy as np
import pytest
import torch
from tests.infinite.sampling.networks import SAMPLED, Tokens
from torch import Tensor, nn

from tangency.errors import InvalidInput, UnsupportedOperation
from tangency.infinite import InfiniteKernel, Init
from tangency.infinite.sampling.estimation import Estimate
from tangency.infinite.sampling.gaussians import GaussianVectors


class OneLayer(nn.Module):
    """A layer without bias over tokens, an operation on them, and a layer without bias."""

    def __init__(self, operation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.first = nn.Linear(5, 8, bias=False)
        self.last = nn.Linear(8, 1, bias=False)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.first(x)))


def estimated(operation: Callable[[Tensor], Tensor], x: Tensor, **options: object) -> Estimate:
    model = OneLayer(operation).double()
    init = Init(weight=1.0, bias=0.0)
    kernel = InfiniteKernel(
        model,
        x,
        init=init,
        numerical="sample",
        parametrization="ntk",
        **options,  # type: ignore[arg-type]
    )
    return kernel.estimate(x)


def tokens(n: int, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, count, 5, generator=generator, dtype=torch.float64)


def test_square_of_the_maximum_of_two_gaussians() -> None:
    """E max(a, b)^2 = (s_a^2 + s_b^2) / 2 for centred a, b, and 1 in E of the squared slopes."""
    x = tokens(3, 2)
    result = estimated(lambda h: h.amax(1), x, samples=40000)
    variances = x.square().mean(2)
    exact = variances.mean(1)
    error = result.nngp_error.diagonal()
    assert bool(((result.nngp.diagonal() - exact).abs() < 4 * error).all())
    assert float((error / exact).max()) < 0.02
    # The NTK is E[max^2] + E[1_a] s_a^2 + E[1_b] s_b^2, with probability 1/2 each.
    error = result.ntk_error.diagonal()
    assert bool(((result.ntk.diagonal() - 2 * exact).abs() < 4 * error).all())


def test_softmax_of_two_gaussians_by_quadrature() -> None:
    """softmax([a, b])_1 = sigmoid(a - b), of a Gaussian a - b."""
    x = tokens(1, 2)
    result = estimated(lambda h: torch.softmax(h, 1)[:, 0], x, samples=40000)
    variance = float((x[0, 0] - x[0, 1]).square().mean())
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    values = 1 / (1 + np.exp(-nodes * math.sqrt(variance)))
    exact = float((weights * values**2).sum() / weights.sum())
    assert abs(float(result.nngp) - exact) < 4 * float(result.nngp_error)
    slopes = (values * (1 - values)) ** 2
    ntk = exact + float((weights * slopes).sum() / weights.sum()) * variance
    assert abs(float(result.ntk) - ntk) < 4 * float(result.ntk_error)


def test_a_maximum_over_copies_is_the_copy() -> None:
    """Equal inputs have equal samples: the covariance of the Gaussians is singular."""
    x = tokens(3, 1).expand(3, 4, 5).contiguous()
    copied = estimated(lambda h: h.amax(1), x)
    single = estimated(lambda h: h[:, 0].clone(), x)
    assert bool(((copied.nngp - single.nngp).abs() < 4 * copied.nngp_error).all())
    twice = torch.cat([x[:1], x[:1]])
    equal = estimated(lambda h: h.amax(1), twice)
    torch.testing.assert_close(equal.ntk, equal.ntk[0, 0].expand(2, 2), rtol=1e-5, atol=0)


def test_zero_inputs_give_zeros() -> None:
    x = tokens(3, 2)
    x[1] = 0
    result = estimated(lambda h: h.amax(1), x)
    assert bool(torch.isfinite(result.ntk).all())
    assert float(result.nngp[1].abs().max()) == 0


@pytest.mark.parametrize("name", ["max pooling", "lstm", "dependent gate"])
def test_gram_matrices_are_positive_semi_definite(name: str) -> None:
    case = SAMPLED[name]
    model = case.factory(16, 1).double()
    x = case.inputs(6)
    x = torch.cat([x, x[:2] + 1e-7, x[:1]])
    kernel = InfiniteKernel(model, x, numerical="sample", samples=512)
    for matrix in kernel.pair(x):
        assert torch.equal(matrix, matrix.T)
        assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-9 * float(matrix.diagonal().mean())


def _kernel(model: nn.Module, x: Tensor, **options: object) -> InfiniteKernel:
    return InfiniteKernel(model, x, numerical="sample", **options)  # type: ignore[arg-type]


def test_standard_errors_are_honest() -> None:
    """The spread over seeds is what the standard errors say, and falls as 1 / sqrt(samples)."""
    case = SAMPLED["amax"]
    model, x = case.factory(16, 1).double(), case.inputs()
    few, many = (
        [_kernel(model, x, samples=count, seed=s).estimate(x) for s in range(24)]
        for count in (1024, 16384)
    )
    for results in (few, many):
        spread = torch.stack([r.ntk for r in results]).std(0)
        said = torch.stack([r.ntk_error for r in results]).square().mean(0).sqrt()
        ratio = float(spread.norm() / said.norm())
        assert 0.6 < ratio < 1.6
    gain = float(
        torch.stack([r.ntk_error for r in few]).norm()
        / torch.stack([r.ntk_error for r in many]).norm()
    )
    assert 3 < gain < 5.3


def test_seeds() -> None:
    """Equal seeds give equal results, whatever the caller's random state, which stays as it is."""
    case = SAMPLED["amax"]
    model, x = case.factory(16, 1).double(), case.inputs()
    state = torch.get_rng_state()
    first = _kernel(model, x, seed=3).pair(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again, other = _kernel(model, x, seed=3).pair(x), _kernel(model, x, seed=4).pair(x)
    assert torch.equal(first.ntk, again.ntk)
    assert not torch.allclose(first.ntk, other.ntk, rtol=1e-6)
    torch.set_rng_state(state)


@pytest.mark.parametrize("name", ["max pooling", "post-activation residual"])
def test_calls_on_the_same_data_agree(name: str) -> None:
    """Beginning with the same examples, a larger data set has the same samples of them."""
    case = SAMPLED[name]
    x = case.inputs(5)
    kernel = _kernel(case.factory(16, 1).double(), x, samples=512)
    whole = kernel.pair(x)
    for part, full in zip(kernel.pair(x[:2], x[2:]), whole, strict=True):
        torch.testing.assert_close(part, full[:2, 2:], rtol=1e-6, atol=1e-8)
    for part, full in zip(kernel.pair(x[:3]), whole, strict=True):
        torch.testing.assert_close(part, full[:3, :3], rtol=1e-6, atol=1e-8)
    for part, full in zip(kernel.diagonal(x), whole, strict=True):
        torch.testing.assert_close(part, full.diagonal(), rtol=1e-6, atol=1e-8)


def test_single_precision_data() -> None:
    case = SAMPLED["amax"]
    model, x = case.factory(16, 1).double(), case.inputs()
    wide = _kernel(model, x).estimate(x)
    narrow = _kernel(model.float(), x.float()).estimate(x.float())
    assert narrow.ntk.dtype == narrow.ntk_error.dtype == torch.float32
    torch.testing.assert_close(narrow.ntk.double(), wide.ntk, rtol=1e-4, atol=1e-4)


def test_what_is_exact_stays_exact() -> None:
    """An option that nothing needs changes nothing."""
    x = tokens(4, 2)
    model = Tokens(16, 1, torch.tanh).double()
    kernel = InfiniteKernel(model, x, numerical="sample")
    assert not kernel.sampled
    assert torch.equal(kernel.ntk(x), InfiniteKernel(model, x).ntk(x))
    assert float(kernel.estimate(x).ntk_error.abs().max()) == 0


@pytest.mark.parametrize("name", SAMPLED)
def test_nothing_is_sampled_unasked(name: str) -> None:
    case = SAMPLED[name]
    model = case.factory(16, 1).double()
    with pytest.raises(UnsupportedOperation, match='numerical="sample"'):
        InfiniteKernel(model, case.inputs()).ntk(case.inputs())


def test_indices_are_refused() -> None:
    x = tokens(2, 3)
    model = Tokens(8, 1, lambda h: h * h.max(dim=1, keepdim=True).indices).double()
    with pytest.raises(UnsupportedOperation, match="indices"):
        InfiniteKernel(model, x, numerical="sample")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numerical": "monte carlo"}, "numerical is"),
        ({"numerical": "sample", "samples": 7}, "samples=7"),
        ({"numerical": "sample", "seed": -1}, "seed=-1"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        InfiniteKernel(SAMPLED["amax"].factory(8, 1), SAMPLED["amax"].inputs(), **options)  # type: ignore[arg-type]


def test_too_many_positions_are_refused_before_any_work() -> None:
    x = tokens(2, 400_000)  # twenty TB
    model = OneLayer(lambda h: h.amax(1)).double()
    with pytest.raises(InvalidInput, match="400000 positions of 2 examples"):
        InfiniteKernel(model, x, numerical="sample").pair(x)


def test_vectors_drawn_one_after_another_have_the_joint_covariance() -> None:
    """Block by block, with a block that is uncorrelated and one that repeats an earlier vector."""
    generator = torch.Generator().manual_seed(0)
    sizes = (3, 2, 4)
    root = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    root[3:5, :3] = 0
    root[:3, 3:] = 0
    root[3:5, 5:] = 0
    whole = root @ root.T  # vectors 0 and 1 are uncorrelated; both are correlated with vector 2
    parts = torch.split(torch.arange(9), sizes)
    vectors, drawn = GaussianVectors(), list[Tensor]()
    count = 200_000
    for k, index in enumerate((*parts, parts[0])):
        earlier: dict[Hashable, Tensor] = {
            j: whole[index][:, (*parts, parts[0])[j]] for j in range(k) if {j, k} != {0, 1}
        }
        if k == 3:
            earlier.pop(1)
        noise = torch.randn(len(index), count, generator=generator, dtype=torch.float64)
        row = vectors.row(whole[index][:, index].clone(), earlier)
        drawn.append(vectors.extend(k, row, noise))
    samples = torch.cat(drawn[:3])
    torch.testing.assert_close(samples @ samples.T / count, whole, rtol=0.03, atol=0.1)
    torch.testing.assert_close(drawn[3], drawn[0], rtol=0, atol=1e-4)
