"""Models on which the empirical kernel is held against plain autograd, and that reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tangency import examples
from tangency.empirical import EmpiricalKernel
from tangency.empirical.preparation import Preparations
from tangency.empirical.recording import Recording
from tangency.examples import Examples

DTYPE = torch.float64


@dataclass(frozen=True)
class Case:
    """`model()` makes the module in float64, `data(n)` n examples for it."""

    name: str
    make: Callable[[], nn.Module]
    data: Callable[[int], Examples]

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().double().eval()  # complex parameters stay complex


def reference_jacobian(model: nn.Module, x: Examples) -> tuple[Tensor, Tensor]:
    """Outputs (n, out) and gradients (n, out, parameters): one example, one output at a time."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    outputs, rows = [], []
    for i in range(examples.count(x)):
        args, kwargs = examples.arguments(examples.take(x, slice(i, i + 1)))
        output = model(*args, **kwargs).reshape(-1)
        outputs.append(output.detach())
        jacobian = []
        for value in output:
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            flat = [
                torch.zeros_like(p) if g is None else g.to_dense()
                for p, g in zip(parameters, gradients, strict=True)
            ]
            real = [torch.view_as_real(g) if g.is_complex() else g for g in flat]
            jacobian.append(torch.cat([g.reshape(-1) for g in real]))
        rows.append(torch.stack(jacobian))
    return torch.stack(outputs), torch.stack(rows)


def reference(model: nn.Module, x1: Examples, x2: Examples) -> tuple[Tensor, Tensor]:
    """NNGP and NTK in full, (n1, n2, out, out)."""
    f1, j1 = reference_jacobian(model, x1)
    f2, j2 = reference_jacobian(model, x2)
    return (
        torch.einsum("ia,jb->ijab", f1, f2),
        torch.einsum("iap,jbp->ijab", j1, j2),
    )


def real(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(
        n, *shape, dtype=DTYPE, generator=torch.Generator().manual_seed(100 + n)
    )


def tokens(length: int, vocabulary: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(
        vocabulary, (n, length), generator=torch.Generator().manual_seed(100 + n)
    )


class Lambda(nn.Module):
    """A module of named parts and a function of (module, *inputs)."""

    def __init__(self, function: Callable[..., Tensor], **parts: object) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        # With its own signature, which torch.export reads.
        self.forward = MethodType(function, self)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def tied_embedding() -> nn.Module:
    model = Lambda(
        lambda m, x: m.head(torch.tanh(m.layer(m.embedding(x).mean(1)))),
        embedding=nn.Embedding(7, 4),
        layer=nn.Linear(4, 4),
        head=nn.Linear(4, 7, bias=False),
    )
    model.head.weight = model.embedding.weight
    return model


def tied_linears() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)
    )
    model[2].weight = model[0].weight
    return model


def shared_bias() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    model[2].bias = model[0].bias
    return model


def frozen_layer() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


def recurrent(m: Lambda, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape[0], 4, dtype=x.dtype)
    for t in range(x.shape[1]):
        h = torch.tanh(m.into(x[:, t]) + m.step(h))
    return m.out(h)


def branching(m: Lambda, x: Tensor) -> Tensor:
    return m.first(x) if float(x.sum()) > 0 else m.second(m.first(x).tanh())


def untracked(m: Lambda, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = m.first(x).mean(-1, keepdim=True)
    return m.second(m.first(x).tanh() * scale)


def experts(m: Lambda, x: Tensor) -> Tensor:
    """The two best of three layers for every token (Shazeer et al., 2017)."""
    tokens = x.flatten(0, 1)
    weights, best = m.gate(tokens).softmax(-1).topk(2)
    total = torch.zeros_like(tokens)
    for i, layer in enumerate((m.a, m.b, m.c)):
        row, rank = torch.where(best == i)
        total = total.index_add(0, row, layer(tokens[row]).tanh() * weights[row, rank, None])
    return m.out(total.view_as(x).sum(1))


def spectral_convolution(m: Lambda, x: Tensor) -> Tensor:
    """A layer of a Fourier neural operator (Li et al., 2021), with complex weights."""
    modes = torch.einsum("nck,cdk->ndk", torch.fft.rfft(m.entry(x))[..., :3], m.weight)
    return m.out(torch.fft.irfft(modes, n=6).tanh().flatten(1))


class StraightThrough(torch.autograd.Function):
    """Sign forward, identity backward: a gradient that no recorded graph shows."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def aliased() -> nn.Module:
    model = Lambda(lambda m, x: x @ m.held[0] + m.layer(x), weight=parameter(4, 3))
    model.layer = nn.Linear(4, 3)
    model.held = [model.weight]
    return model


def lora() -> nn.Module:
    model = Lambda(
        lambda m, x: m.base(x).relu() @ m.base.weight + m.up(m.down(x)),
        base=nn.Linear(4, 4),
        down=nn.Linear(4, 2, bias=False),
        up=nn.Linear(2, 4, bias=False),
    )
    model.base.requires_grad_(False)
    return model


def encoder(*, norm_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, norm_first=norm_first)


def rectified_in_place() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))


def with_statistics() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    model[1].running_mean.copy_(torch.randn(5))
    model[1].running_var.copy_(torch.rand(5) + 0.5)
    return model


def linear(inputs: int, outputs: int, **options: bool) -> nn.Linear:
    return nn.Linear(inputs, outputs, **options)


IMAGE = real(2, 5, 5)
SEQUENCE = real(5, 4)


class Shifted(nn.Module):
    """Parameters added, subtracted, repeated and multiplied, with every kind of broadcasting."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.scalar, self.row = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.randn(3))
        self.column, self.table = (
            nn.Parameter(torch.randn(5, 1)),
            nn.Parameter(torch.randn(1, 5, 3)),
        )
        self.token = nn.Parameter(torch.randn(1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.add(self.a(x), self.row, alpha=0.5) - self.column
        h = torch.sub(self.table, h.tanh(), alpha=2) * self.scalar
        h = self.column * h + self.table
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), h * self.table], dim=1)
        return h.tanh().sum(1)


def with_random_affine(model: nn.Module) -> nn.Module:
    """Norms that do something, in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


CASES = [
    Case("mlp", mlp, real(4)),
    Case("tied linears", tied_linears, real(4)),
    Case("tied embedding", tied_embedding, tokens(3, 7)),
    Case(
        "layer called three times",
        lambda: Lambda(
            lambda m, x: m.out(m.a(m.a(m.a(x).tanh()).tanh())), a=linear(4, 4), out=linear(4, 2)
        ),
        real(4),
    ),
    Case(
        "weight and its transpose",
        lambda: Lambda(lambda m, x: F.linear(m.a(x).tanh(), m.a.weight.t()), a=linear(4, 6)),
        real(4),
    ),
    Case("shared bias", shared_bias, real(4)),
    Case(
        "weight also penalised",
        lambda: Lambda(lambda m, x: m.a(x) * m.a.weight.sum(), a=linear(4, 3)),
        real(4),
    ),
    Case(
        "bias used as a scale",
        lambda: Lambda(
            lambda m, x: m.b((m.a(x) * m.a.bias).tanh()), a=linear(4, 3), b=linear(3, 2)
        ),
        real(4),
    ),
    Case(
        "weight as input of another layer",
        lambda: Lambda(lambda m, x: m.a(x) @ m.b(m.a.weight), a=linear(4, 3), b=linear(4, 2)),
        real(4),
    ),
    Case(
        "bare parameters",
        lambda: Lambda(
            lambda m, x: m.a(x * m.scale + m.shift).relu().sum(-1, keepdim=True) * m.gain,
            a=linear(4, 5),
            scale=parameter(4),
            shift=parameter(4),
            gain=parameter(2),
        ),
        real(4),
    ),
    Case(
        "einsum with a weight",
        lambda: Lambda(
            lambda m, x: torch.einsum("npi,hio->npho", x, m.w).tanh().sum((1, 2)),
            w=parameter(2, 4, 3),
        ),
        SEQUENCE,
    ),
    Case(
        "conv1d",
        lambda: nn.Sequential(nn.Conv1d(5, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)),
        SEQUENCE,
    ),
    Case(
        "conv2d",
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(27, 2)
        ),
        IMAGE,
    ),
    Case(
        "grouped and dilated conv",
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 2, groups=2, dilation=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        IMAGE,
    ),
    Case(
        "transposed conv",
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 3, 2, stride=2), nn.ReLU(), nn.AvgPool2d(5), nn.Flatten()
        ),
        IMAGE,
    ),
    Case(
        "embedding",
        lambda: Lambda(
            lambda m, x: m.a(m.e(x)).tanh().mean(1), e=nn.Embedding(5, 4), a=linear(4, 2)
        ),
        tokens(6, 5),
    ),
    Case(
        "embedding bag",
        lambda: Lambda(lambda m, x: m.a(m.e(x)), e=nn.EmbeddingBag(5, 4), a=linear(4, 2)),
        tokens(6, 5),
    ),
    Case(
        "embedding bag, weighted sums",
        lambda: Lambda(
            lambda m, x, w: m.a(m.e(x, per_sample_weights=w)),
            e=nn.EmbeddingBag(5, 4, mode="sum", padding_idx=2),
            a=linear(4, 2),
        ),
        lambda n: (tokens(6, 5)(n), real(6)(n)),
    ),
    Case(
        "embedding bag, means without padding",
        lambda: Lambda(
            lambda m, x: m.a(m.e(x)).tanh(), e=nn.EmbeddingBag(5, 4, padding_idx=1), a=linear(4, 2)
        ),
        tokens(6, 5),
    ),
    Case(
        "embedding bag, largest",
        lambda: Lambda(
            lambda m, x: m.a(m.e(x)), e=nn.EmbeddingBag(5, 4, mode="max"), a=linear(4, 2)
        ),
        tokens(6, 5),
    ),
    Case(
        "layer norm over two dimensions",
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.LayerNorm((5, 6)), nn.Tanh(), nn.Flatten(), nn.Linear(30, 2)
        ),
        SEQUENCE,
    ),
    Case(
        "norms over merged tokens",
        lambda: Lambda(
            lambda m, x: m.r(m.n(m.a(x.reshape(-1, 4)))).tanh().reshape(x.shape[0], -1)[:, ::7],
            a=linear(4, 6),
            n=nn.LayerNorm(6),
            r=nn.RMSNorm(6),
        ),
        SEQUENCE,
    ),
    Case(
        "batch norm of images",
        lambda: with_random_affine(
            nn.Sequential(
                nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
            )
        ),
        IMAGE,
    ),
    Case("shifts and scales", Shifted, SEQUENCE),
    Case(
        "powers",
        lambda: Lambda(
            lambda m, x: m.a(x).sigmoid() ** m.p, a=linear(4, 3), p=nn.Parameter(torch.rand(3))
        ),
        real(4),
    ),
    Case(
        "grouped conv of few pixels",
        lambda: nn.Sequential(
            nn.Conv2d(2, 24, 3, stride=2), nn.Tanh(), nn.Conv2d(24, 24, 2, groups=2), nn.Flatten()
        ),
        IMAGE,
    ),
    Case(
        "layer norm",
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2)),
        real(4),
    ),
    Case("batch norm, evaluating", with_statistics, real(4)),
    Case(
        "group norm",
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
        ),
        IMAGE,
    ),
    Case(
        "multi-head attention",
        lambda: Lambda(
            lambda m, x: m.attention(x, x, x)[0].mean(1),
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
        ),
        SEQUENCE,
    ),
    Case(
        "multi-head attention, without weights",
        lambda: Lambda(
            lambda m, x: m.attention(x, x, x, need_weights=False)[0][:, 0],
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
        ),
        SEQUENCE,
    ),
    Case("transformer layer, many outputs", lambda: encoder(norm_first=False), real(3, 4)),
    Case(
        "transformer layer, norm first",
        lambda: nn.Sequential(encoder(norm_first=True), nn.Flatten(), nn.Linear(20, 2)),
        SEQUENCE,
    ),
    Case(
        "rnn",
        lambda: Lambda(lambda m, x: m.r(x)[0][:, -1], r=nn.RNN(4, 3, batch_first=True)),
        SEQUENCE,
    ),
    Case(
        "lstm",
        lambda: Lambda(
            lambda m, x: m.a(m.r(x)[0][:, -1]),
            r=nn.LSTM(4, 3, num_layers=2, batch_first=True),
            a=linear(3, 2),
        ),
        SEQUENCE,
    ),
    Case(
        "bidirectional gru",
        lambda: Lambda(
            lambda m, x: m.r(x)[0][:, 0], r=nn.GRU(4, 2, bidirectional=True, batch_first=True)
        ),
        SEQUENCE,
    ),
    Case(
        "recurrence as a loop",
        lambda: Lambda(recurrent, into=linear(4, 4), step=linear(4, 4), out=linear(4, 2)),
        SEQUENCE,
    ),
    Case("in-place relu", rectified_in_place, real(4)),
    Case(
        "branch on data",
        lambda: Lambda(branching, first=linear(4, 3), second=linear(3, 3)),
        real(4),
    ),
    Case(
        "several inputs",
        lambda: Lambda(lambda m, x, y: m.a(x).tanh() * m.b(y), a=linear(4, 3), b=linear(2, 3)),
        lambda n: (real(4)(n), real(2)(n)),
    ),
    Case(
        "dictionary, not in the order of forward",
        lambda: Lambda(
            lambda m, x, mask: (m.a(x) * mask.unsqueeze(-1)).tanh().sum(1), a=linear(4, 2)
        ),
        lambda n: {"mask": (real(5)(n) > 0), "x": SEQUENCE(n)},
    ),
    Case("frozen layers", frozen_layer, real(4)),
    Case(
        "linear over tokens",
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2), nn.Flatten(), nn.Linear(10, 3)
        ),
        SEQUENCE,
    ),
    Case(
        "linear over tokens, tokens first",
        lambda: Lambda(
            lambda m, x: (
                m.b(m.a(x.transpose(0, 1)).tanh().reshape(-1, 6))
                .reshape(x.shape[1], x.shape[0], 2)
                .sum(0)
            ),
            a=linear(4, 6),
            b=linear(6, 2),
        ),
        SEQUENCE,
    ),
    Case(
        "tokens merged with the batch",
        lambda: Lambda(
            lambda m, x: m.a(x.reshape(-1, 4)).tanh().reshape(x.shape[0], -1)[:, ::2],
            a=linear(4, 3),
        ),
        SEQUENCE,
    ),
    # One of four tokens counts: its rows are those of the first three examples in either order.
    Case(
        "last of the tokens merged with the batch",
        lambda: Lambda(
            lambda m, x: m.b(m.a(x.reshape(-1, 3)).tanh()).reshape(x.shape[0], 4, 2)[:, -1],
            a=linear(3, 5),
            b=linear(5, 2),
        ),
        real(4, 3),
    ),
    Case(
        "positions scrambled into the batch's place",
        lambda: Lambda(
            lambda m, x: m.b(m.a(x.t().reshape(-1, 4, 1)).tanh().reshape(4, -1).t()),
            a=linear(1, 1),
            b=linear(4, 2),
        ),
        real(4),
    ),
    Case(
        "layer on a table of positions",
        lambda: Lambda(
            lambda m, x: m.b((m.a(m.table) + x).tanh()).sum(1),
            a=linear(3, 4),
            b=linear(4, 2),
            table=parameter(5, 3),
        ),
        SEQUENCE,
    ),
    Case(
        "residual",
        lambda: Lambda(
            lambda m, x: m.b(m.a(x).relu() + x) + m.a(x), a=linear(4, 4), b=linear(4, 4)
        ),
        real(4),
    ),
    Case(
        "weight norm",
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)
        ),
        real(4),
    ),
    Case(
        "spectral norm",
        lambda: nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)
        ),
        real(4),
    ),
    Case(
        "output of shape (n,)",
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0)),
        real(4),
    ),
    Case(
        "squeezed output",
        lambda: Lambda(lambda m, x: m.b(m.a(x).relu()).squeeze(), a=linear(4, 5), b=linear(5, 1)),
        real(4),
    ),
    Case(
        "unused parameter",
        lambda: Lambda(lambda m, x: m.a(x), a=linear(4, 2), b=linear(4, 2), c=parameter(3)),
        real(4),
    ),
    Case(
        "no_grad in forward",
        lambda: Lambda(untracked, first=linear(4, 3), second=linear(3, 2)),
        real(4),
    ),
    Case(
        "detach in forward",
        lambda: Lambda(
            lambda m, x: m.b(m.a(x).tanh()) * m.b(m.a(x).detach()), a=linear(4, 3), b=linear(3, 2)
        ),
        real(4),
    ),
    Case(
        "custom backward",
        lambda: Lambda(
            lambda m, x: m.b(StraightThrough.apply(m.a(x))), a=linear(4, 3), b=linear(3, 2)
        ),
        real(4),
    ),
    Case(
        "checkpointed",
        lambda: Lambda(
            lambda m, x: m.b(checkpoint(lambda v: m.a(v).tanh(), x, use_reentrant=False)),
            a=linear(4, 3),
            b=linear(3, 2),
        ),
        real(4),
    ),
    Case(
        "experts chosen by the data",
        lambda: Lambda(
            experts,
            gate=linear(4, 3),
            **{name: linear(4, 4) for name in "abc"},
            out=linear(4, 2),
        ),
        real(2, 4),
    ),
    Case(
        "complex weights",
        lambda: Lambda(
            spectral_convolution,
            entry=linear(6, 6),
            weight=nn.Parameter(torch.randn(2, 3, 3, dtype=torch.complex128)),
            out=linear(18, 2),
        ),
        real(2, 6),
    ),
    Case(
        "sparse gradients of a table",
        lambda: Lambda(
            lambda m, x: m.b(m.a(x).mean(1).tanh()),
            a=nn.Embedding(7, 4, sparse=True),
            b=linear(4, 2),
        ),
        tokens(3, 7),
    ),
    Case(
        "slopes of negative values",
        lambda: Lambda(
            lambda m, x: m.c(m.h(m.f(m.b(m.g(m.a(x)).flatten(1))))),
            a=nn.Conv2d(2, 3, 3),
            g=nn.PReLU(3),
            b=linear(12, 4),
            f=nn.PReLU(),
            h=nn.PReLU(4),
            c=linear(4, 2),
        ),
        real(2, 4, 4),
    ),
    Case(
        "distances to prototypes",  # whose backward pass has a wrong batching rule in PyTorch 2.13
        lambda: Lambda(lambda m, x: torch.cdist(m.a(x), m.p), a=linear(4, 3), p=parameter(5, 3)),
        real(4),
    ),
    Case("parameter reached by another reference", aliased, real(4)),
    Case("adapters on a frozen layer", lora, real(4)),
]


def case_of(name: str) -> Case:
    (case,) = [case for case in CASES if case.name == name]
    return case


@cache
def recorded(name: str) -> tuple[nn.Module, Recording]:
    """The case's model and its recording, shared by all tests: recording takes most of the time."""
    model = case_of(name).model()
    return model, Recording(model)


def kernel_of(name: str, **options: Any) -> EmpiricalKernel:
    """A kernel of the case's shared model, which no test may change."""
    model, recording = recorded(name)
    kernel = EmpiricalKernel(model, **options)
    kernel._subject.preparations = Preparations(recording)
    return kernel
