"""The conjugate kernel against hidden layers computed by hand, and against its limit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empirical.cases import Lambda, case_of, encoder, linear, real
from tangency import InfiniteKernel, Init
from tangency.empirical import EmpiricalKernel
from tangency.errors import InvalidInput

DTYPE = torch.float64


def close(value: Tensor, expected: Tensor, rtol: float = 1e-12) -> bool:
    assert value.shape == expected.shape
    return float((value - expected).abs().max()) <= rtol * float(expected.abs().max())


def moments(h1: Tensor, h2: Tensor) -> Tensor:
    return h1.flatten(1) @ h2.flatten(1).T / h1.flatten(1).shape[1]


def double(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().to(DTYPE).eval()


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    )


def test_last_hidden_layer() -> None:
    model, x1, x2 = double(network), real(4)(70), real(4)(3)
    kernel = EmpiricalKernel(model, output=0)
    with torch.no_grad():
        assert close(kernel.conjugate(x1, x2), moments(model[:5](x1), model[:5](x2)))
        gram = kernel.conjugate(x1)
        assert close(gram, moments(model[:5](x1), model[:5](x1)))
        assert torch.equal(gram, gram.T)
        inner = kernel.conjugate(x1, x2, layer="3")
        assert close(inner, moments(model[:3](x1), model[:3](x2)))
        assert close(kernel.conjugate(x1, x2, layer="4"), moments(model[:4](x1), model[:4](x2)))


def test_positions_count_as_width() -> None:
    model = double(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    )
    x1, x2 = real(2, 5, 5)(4), real(2, 5, 5)(3)
    found = EmpiricalKernel(model).conjugate(x1, x2)
    with torch.no_grad():
        assert close(found, moments(model[:2](x1), model[:2](x2)))


@pytest.mark.parametrize("n", [5, 40])
def test_tokens_first(n: int) -> None:
    """Also with as many tokens as examples: the first dimension is not taken for the batch."""
    model = double(
        lambda: Lambda(
            lambda m, x: m.b(m.a(x.transpose(0, 1)).tanh()).mean(0), a=linear(4, 6), b=linear(6, 2)
        )
    )
    x = real(5, 4)(n)
    with torch.no_grad():
        h = model.a(x).tanh()
    assert close(EmpiricalKernel(model).conjugate(x), moments(h, h))


def test_branches_on_data() -> None:
    """What a batch does as a whole is not what its examples do alone."""
    model = double(
        lambda: Lambda(
            lambda m, x: m.b(m.a(x).tanh()) if float(x.sum()) > 0 else m.b(m.a(x).relu()),
            a=linear(4, 6),
            b=linear(6, 2),
        )
    )
    x = real(4)(12)
    with torch.no_grad():
        h = [m.tanh() if r.sum() > 0 else m.relu() for r, m in zip(x, model.a(x), strict=True)]
    assert close(EmpiricalKernel(model).conjugate(x), moments(torch.stack(h), torch.stack(h)))


def test_layers_of_a_frozen_encoder_are_reached() -> None:
    """Without gradients torch runs such layers as one operation, past their linear layers."""
    model = double(lambda: nn.Sequential(nn.Linear(4, 4), encoder(norm_first=False)))
    model[1].requires_grad_(False)
    x, seen = real(5, 4)(3), []
    with model[1].linear2.register_forward_pre_hook(lambda m, args: seen.append(args[0])):
        model(x)
    h = seen[-1].detach()
    assert close(EmpiricalKernel(model).conjugate(x), moments(h, h))


def test_chosen_outputs_and_losses_have_the_same() -> None:
    model, x = double(network), real(4)(6)
    expected = EmpiricalKernel(model).conjugate(x)
    assert close(EmpiricalKernel(model, output=lambda out: out[:, 0]).conjugate(x), expected)
    loss = EmpiricalKernel(model, output=F.cross_entropy)
    assert close(loss.conjugate((x, torch.arange(6) % 3)), expected)


def test_hooks_are_removed() -> None:
    model, x = double(network), real(4)(3)
    EmpiricalKernel(model).conjugate(x)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_half_precision_is_accumulated_in_single() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 4096), nn.ReLU(), nn.Linear(4096, 1)), torch.randn(5, 8)
    model, x = model.bfloat16(), x.bfloat16()
    found = EmpiricalKernel(model).conjugate(x)
    h = model[:2](x).detach().double()
    assert found.dtype is torch.bfloat16
    assert close(found.double(), moments(h, h), 2**-8)


def test_it_is_the_nngp_kernel_of_a_wide_network() -> None:
    """w2 times the kernel, up to 1/sqrt(width) of a single draw."""
    torch.manual_seed(0)
    width = 20_000
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1)).to(DTYPE)
    nn.init.normal_(model[0].weight, std=(2 / 4) ** 0.5)
    nn.init.zeros_(model[0].bias)
    x = real(4)(5)
    limit = InfiniteKernel(model, x, init=Init(2.0)).nngp(x)
    assert close(2 * EmpiricalKernel(model).conjugate(x), limit, 8 / width**0.5)


def test_refusals() -> None:
    model, x = network(), torch.randn(3, 4)
    with pytest.raises(InvalidInput, match=r"'head' is no module.*0, 3, 5"):
        EmpiricalKernel(model).conjugate(x, layer="head")
    bare = Lambda(lambda m, x: x @ m.w, w=nn.Parameter(torch.randn(4, 2)))
    with pytest.raises(InvalidInput, match="no linear or convolutional layer"):
        EmpiricalKernel(bare).conjugate(x)
    branching = Lambda(
        lambda m, x: m.a(x) if float(x[0, 0]) > 0 else m.b(m.a(x)), a=linear(4, 2), b=linear(2, 2)
    )
    with pytest.raises(InvalidInput, match=r"differs from example to example \(sizes \[2, 4\]\)"):
        EmpiricalKernel(branching).conjugate(x * torch.tensor([[1.0], [-1], [1]]) * x[:, :1].sign())
    with pytest.raises(InvalidInput, match="differs from example to example"):
        EmpiricalKernel(branching).conjugate(x.abs(), -x.abs())
    looked_up = case_of("embedding").model()
    with pytest.raises(InvalidInput, match=r"given torch\.int64"):
        EmpiricalKernel(looked_up).conjugate(case_of("embedding").data(3), layer="e")
    unused = Lambda(lambda m, x: x @ m.a.weight.T, a=linear(4, 2))
    with pytest.raises(InvalidInput, match="called"):
        EmpiricalKernel(unused).conjugate(x)
    dropping = nn.Sequential(nn.Linear(4, 9), Lambda(lambda m, x: F.dropout(x)), nn.Linear(9, 2))
    with pytest.raises(InvalidInput, match=r"'1' \(Lambda\) makes the outputs random"):
        EmpiricalKernel(dropping).conjugate(x)
