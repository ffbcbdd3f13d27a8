"""Kernels of a chosen output and of a loss, against plain autograd of one example at a time."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empirical.cases import Lambda, case_of, linear, mlp, real, reference, tokens
from tangency import examples
from tangency.empirical import EmpiricalKernel
from tangency.empirical.outputs import chosen
from tangency.errors import InvalidInput

DTYPE = torch.float64


def assert_equal(value: Tensor, expected: Tensor) -> None:
    assert value.shape == expected.shape
    assert float((value - expected).abs().max()) <= 1e-10 * float(expected.abs().max())


class Named(NamedTuple):
    logits: Tensor
    hidden: Tensor


@dataclass
class Record:
    logits: Tensor
    hidden: Tensor


class Several(nn.Module):
    """Token-wise logits (n, 5, 3) and hidden values, packed in some way."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.pack = pack

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        hidden = self.a(x).tanh()
        if mask is not None:
            hidden = hidden * mask.unsqueeze(-1)
        return self.pack(self.b(hidden), hidden)


def several(pack: Callable[[Tensor, Tensor], Any]) -> nn.Module:
    torch.manual_seed(0)
    return Several(pack).to(DTYPE)


class Chosen(nn.Module):
    """The same choice written by hand: a module of its own."""

    def __init__(self, inner: nn.Module, select: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.inner, self.select = inner, select

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.select(self.inner(*args, **kwargs))


PACKS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor]]] = {
    "tuple": (lambda y, h: (y, h), lambda out: out[0][:, -1]),
    "named tuple": (Named, lambda out: out.logits[:, -1]),
    "dataclass": (Record, lambda out: out.logits[:, 1]),
    "dictionary": (lambda y, h: {"logits": y, "h": h}, lambda out: out["logits"].mean(1)),
    "with None": (lambda y, h: (y, None, {"h": [h]}), lambda out: out[2]["h"][0][:, 0]),
    "a tensor": (lambda y, h: y, lambda out: out[:, -1].log_softmax(-1)),
}


@pytest.mark.parametrize("kind", PACKS)
def test_chosen_outputs(kind: str) -> None:
    pack, select = PACKS[kind]
    model = several(pack)
    x1, x2 = real(5, 4)(4), real(5, 4)(3)
    nngp, ntk = reference(Chosen(model, select), x1, x2)
    found = EmpiricalKernel(model, output=(select, "full")).pair(x1, x2)
    assert_equal(found.nngp, nngp)
    assert_equal(found.ntk, ntk)
    each = ntk.diagonal(dim1=-2, dim2=-1)
    assert_equal(EmpiricalKernel(model, output=select).ntk(x1, x2), each.mean(-1))
    assert_equal(EmpiricalKernel(model, output=(select, -1)).ntk(x1, x2), each[..., -1])
    assert_equal(EmpiricalKernel(model, output=(select, "diagonal")).ntk(x1, x2), each)


def test_one_number_for_each_example() -> None:
    model, x = several(lambda y, h: (y, h)), real(5, 4)(3)
    select = lambda out: out[0][:, -1, 2]  # noqa: E731
    expected = reference(Chosen(model, select), x, x)[1]
    assert_equal(EmpiricalKernel(model, output=select).ntk(x), expected[..., 0, 0])


def test_linear_layers_of_a_chosen_output_keep_their_names_and_their_path() -> None:
    model, x = several(Named), real(5, 4)(3)
    kernel = EmpiricalKernel(model, output=lambda out: out.logits[:, -1], parameters="b.*")
    with kernel._subject.prepared(x, gradients=True) as prepared:
        assert not prepared.engine.rest
        assert {group.name for group in prepared.engine.groups} == {"b.weight", "b.bias"}
    model.a.requires_grad_(False)
    expected = reference(Chosen(model, lambda out: out.logits[:, -1]), x, x)[1]
    assert_equal(kernel.ntk(x), expected.diagonal(dim1=-2, dim2=-1).mean(-1))


@pytest.mark.parametrize("mapping", [dict, UserDict])
def test_inputs_in_a_mapping(mapping: Callable[[Any], Any]) -> None:
    """`UserDict` is what the tokenizers of Hugging Face return."""
    model, select = several(Named), lambda out: out.logits.sum(1)
    x1, x2 = ({"mask": (real(5)(n) > 0).to(DTYPE), "x": real(5, 4)(n)} for n in (4, 3))
    expected = reference(Chosen(model, select), x1, x2)[1]
    kernel = EmpiricalKernel(model, output=(select, "full"))
    assert_equal(kernel.ntk(mapping(x1), mapping(x2)), expected)
    diagonal = expected[[0, 1, 2], [0, 1, 2]]
    same = {"mask": x1["mask"][:3], "x": x1["x"][:3]}
    expected = reference(Chosen(model, select), same, same)[1]
    diagonal = torch.stack([expected[i, i] for i in range(3)])
    assert_equal(kernel.diagonal(mapping(same)).ntk, diagonal)


def with_ignored(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over the tokens that are not ignored, which differ from example to example."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-100)


def classes(n: int) -> Tensor:
    return torch.arange(n) % 3


def labels(n: int) -> Tensor:
    y = tokens(5, 3)(n)
    y[torch.arange(n), torch.arange(n) % 5] = -100
    y[0, 2:] = -100
    return y


LOSSES: dict[str, tuple[Any, Callable[[int], Any]]] = {
    "cross entropy of classes": (F.cross_entropy, classes),
    "as a module": (
        nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 0.5]).to(DTYPE)),
        classes,
    ),
    "squared error": (nn.MSELoss(), real(3)),
    "sum": (partial(F.mse_loss, reduction="sum"), real(3)),
    "binary": (nn.BCEWithLogitsLoss(), lambda n: (real(3)(n) > 0).to(DTYPE)),
    "targets in a dictionary": (
        lambda out, t: (t["w"] * (out - t["y"]).abs()).sum(),
        lambda n: {"y": real(3)(n), "w": real(1)(n)},
    ),
    "of one row": (lambda out, t: -out.log_softmax(-1).gather(1, t[:, None])[:, 0], classes),
}


def reference_of_loss(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], x: Any, y: Any
) -> tuple[Tensor, Tensor]:
    """Losses (n,) and their gradients (n, parameters), one example at a time."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    values, rows = [], []
    for i in range(examples.count(x)):
        args, kwargs = examples.arguments(examples.take(x, slice(i, i + 1)))
        value = loss(model(*args, **kwargs), examples.take(y, slice(i, i + 1))).reshape(())
        gradients = torch.autograd.grad(
            value, parameters, allow_unused=True, materialize_grads=True
        )
        values.append(value.detach())
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    return torch.stack(values), torch.stack(rows)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    loss, targets = LOSSES[name]
    torch.manual_seed(0)
    model = mlp().to(DTYPE)
    (x1, y1), (x2, y2) = ((real(4)(n), targets(n)) for n in (40, 3))
    v1, g1 = reference_of_loss(model, loss, x1, y1)
    v2, g2 = reference_of_loss(model, loss, x2, y2)
    kernel = EmpiricalKernel(model, output=loss)
    found = kernel.pair((x1, y1), (x2, y2))
    assert_equal(found.ntk, g1 @ g2.T)
    assert_equal(found.nngp, v1[:, None] * v2)
    assert_equal(kernel.diagonal((x2, y2)).ntk, (g2 @ g2.T).diagonal())
    with kernel._subject.prepared((x1, y1), gradients=True) as prepared:
        assert not prepared.engine.rest  # by its sites, like any other kernel


def test_loss_of_a_chosen_output() -> None:
    """Tokens that are ignored: the loss of an example is no part of a mean over all of them."""
    model = several(Named)
    x, y = {"x": real(5, 4)(4), "mask": (real(5)(4) > -1).to(DTYPE)}, labels(4)
    _, g = reference_of_loss(model, lambda out, t: with_ignored(out.logits, t), x, y)
    kernel = EmpiricalKernel(model, output=(lambda out: out.logits, with_ignored))
    assert_equal(kernel.ntk((x, y)), g @ g.T)
    assert_equal(kernel.ntk([UserDict(x), y]), g @ g.T)
    assert_equal(kernel.ntk((UserDict(x), y), (x, y)), g @ g.T)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("branch on data", F.mse_loss),
        ("squeezed output", lambda out, t: (out.reshape(-1) - t[:, 0]).square().sum()),
        ("tied embedding", lambda out, t: out.logsumexp(-1).sum() * t.sum()),
        ("several inputs", F.mse_loss),
        ("custom backward", lambda out, t: F.mse_loss(out, t[:, :2])),
        ("batch norm, evaluating", lambda out, t: F.mse_loss(out, t[:, :2])),
    ],
)
def test_losses_of_unusual_modules(name: str, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    case = case_of(name)
    model, x, y = case.model(), case.data(4), real(3)(4)
    _, g = reference_of_loss(model, loss, x, y)
    assert_equal(EmpiricalKernel(model, output=loss).ntk((x, y)), g @ g.T)


def test_losses_of_half_precision_are_computed_in_single() -> None:
    torch.manual_seed(0)
    model, x, y = mlp(), torch.randn(6, 4), classes(6)
    exact = EmpiricalKernel(model, output=F.cross_entropy).ntk((x, y))
    half = EmpiricalKernel(model.bfloat16(), output=F.cross_entropy).ntk((x.bfloat16(), y))
    assert half.dtype is torch.float32
    assert float((half - exact).abs().max()) <= 0.05 * float(exact.abs().max())


def test_how_output_is_read() -> None:
    def loss(outputs: Tensor, targets: Tensor, weight: float = 1.0) -> Tensor:
        return outputs.sum()

    for output in (loss, F.cross_entropy, nn.MSELoss(), partial(F.nll_loss, ignore_index=0)):
        assert chosen(output).loss is output
    for output in (itemgetter(0), lambda out, k=3: out[k], nn.Flatten(), torch.relu):
        assert chosen(output).select is output
    assert chosen((itemgetter(0), 2)).index == 2
    assert chosen((itemgetter(0), loss)).loss is loss


def test_repr_names_functions() -> None:
    def last(out: Tensor) -> Tensor:
        return out[:, -1]

    kernel = EmpiricalKernel(nn.Linear(4, 2), output=(last, F.cross_entropy))
    assert repr(kernel).startswith("EmpiricalKernel(Linear, output=(last, cross_entropy), ")
    assert "output='full', " in repr(EmpiricalKernel(nn.Linear(4, 2), output="full"))


@pytest.mark.parametrize(
    "output",
    [
        "sum",
        1.5,
        True,
        None,
        (itemgetter(0), "sum"),
        ("full", itemgetter(0)),
        (itemgetter(0), itemgetter(0)),
        (itemgetter(0), "full", 1),
        lambda a, b, c: a,
    ],
)
def test_refused_choices(output: Any) -> None:
    with pytest.raises(InvalidInput, match=r"output=.*choose 'full'.*F\.cross_entropy"):
        EmpiricalKernel(nn.Linear(4, 2), output=output)


def test_a_choice_with_parameters_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"nn\.Sequential"):
        EmpiricalKernel(nn.Linear(4, 2), output=nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("output", "y", "message"),
    [
        (F.cross_entropy, None, r"pairs \(inputs, targets\), not a Tensor"),
        (F.cross_entropy, torch.full((3,), 9), r"does not run.*\(1, 2\).*Target 9"),
        (partial(F.mse_loss, reduction="none"), torch.zeros(3, 2), "one number"),
        (lambda out, t: (out.argmax(-1) == t).double().sum(), torch.zeros(3), "differentiated"),
        (partial(F.cross_entropy, ignore_index=1), torch.ones(3).long(), "NaN or infinite"),
        (lambda out, t: 0.5, torch.zeros(3), "gives float"),
        (F.cross_entropy, torch.zeros(4).long(), "differ in their leading size"),
    ],
)
def test_refused_losses(output: Any, y: Tensor | None, message: str) -> None:
    x = torch.randn(3, 4)
    with pytest.raises(InvalidInput, match=message):
        EmpiricalKernel(nn.Linear(4, 2), output=output).ntk(x if y is None else (x, y))


def test_what_is_returned_is_listed() -> None:
    model, x = several(Named).float(), torch.randn(3, 5, 4)
    for output in ("trace", lambda out: out.scores, lambda out: out["logits"]):
        with pytest.raises(InvalidInput, match=r"\(1, 5, 3\).*\(1, 5, 6\)"):
            EmpiricalKernel(model, output=output).ntk(x)
    with pytest.raises(InvalidInput, match="one row per example"):
        EmpiricalKernel(model, output=lambda out: out.logits.mean()).ntk(x)
    coupled = Lambda(lambda m, x: (m.a(x - x.mean(0)),), a=linear(4, 2))
    with pytest.raises(InvalidInput, match="Lambda couples the examples"):
        EmpiricalKernel(coupled, output=itemgetter(0)).ntk(torch.randn(3, 4))


def test_a_plan_names_the_module_and_not_the_choice() -> None:
    model = several(lambda y, h: (y, h))
    kernel = EmpiricalKernel(model, output=lambda out: out[0][:, -1])
    assert "NTK of Several," in repr(kernel.plan(real(5, 4)(4)))
