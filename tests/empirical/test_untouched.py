"""Whatever is asked of a kernel: the user's module, data and random state stay as they were."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.random_state import numpy_state
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

from empirical.cases import Case, Lambda, case_of, encoder, linear, mlp, parameter, real, tokens
from tangency.empirical import EmpiricalKernel
from tangency.errors import InvalidInput


class Counting(nn.Module):
    """Changes a buffer in place, and replaces another, with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2))
        self.register_buffer("kept", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.layer(x)
        self.last = y.detach().sum(0)
        return y.tanh()


class Adapter(nn.Module):
    """A frozen layer with a trainable update of low rank, as LoRA (Hu et al., 2021)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


def adapted() -> nn.Module:
    model = mlp()
    model[0], model[2] = Adapter(model[0]), Adapter(model[2])
    model[4].requires_grad_(False)
    return model


def with_hooks() -> nn.Module:
    model = mlp()
    model.register_forward_hook(lambda module, args, output: 2 * output)
    model[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model[2].register_full_backward_hook(lambda module, given, got: None)
    model[2].register_state_dict_pre_hook(lambda *args: None)
    model[4].weight.register_hook(lambda gradient: gradient)
    return model


def in_place() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.SiLU(inplace=True), nn.Flatten()
    )


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Dropout(0.5, inplace=True))


def spectral() -> nn.Module:
    """Every forward pass in training mode is a step of power iteration, in buffers."""
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(4, 5)),
        nn.Tanh(),
        torch.nn.utils.spectral_norm(nn.Linear(5, 3)),
        parametrizations.weight_norm(nn.Linear(3, 2)),
    )


def drawing() -> nn.Module:
    """Draws numbers from all generators, without effect in evaluation mode."""

    def forward(m: Lambda, x: Tensor) -> Tensor:
        chance = float(torch.rand(())) + random.random() + np.random.rand()  # noqa: NPY002
        return m.a(x) * (1 if not m.training else chance)

    return Lambda(forward, a=linear(4, 2))


def changing_its_input() -> nn.Module:
    """In place, on what it was given."""
    return Lambda(lambda m, x: m.a(x.clone().mul_(2)).tanh_(), a=linear(4, 2))


CASES = [
    Case("mlp", mlp, real(4)),
    Case("counting", Counting, real(4)),
    Case("batch norm", case_of("batch norm, evaluating").make, real(4)),
    Case("dropout", dropping, real(4)),
    Case("spectral norm", spectral, real(4)),
    Case("adapters", adapted, real(4)),
    Case("hooks", with_hooks, real(4)),
    Case("in place", in_place, real(4)),
    Case("changes its input", changing_its_input, real(4)),
    Case("random numbers", drawing, real(4)),
    Case("tied embedding", case_of("tied embedding").make, tokens(3, 7)),
    Case("lstm", case_of("lstm").make, real(5, 4)),
    Case("attention", lambda: encoder(norm_first=False), real(3, 4)),
    Case("branch on data", case_of("branch on data").make, real(4)),
    Case("bare parameter", lambda: Lambda(lambda m, x: (x * m.w).tanh(), w=parameter(4)), real(4)),
]
TRAINING = ["mlp", "counting", "spectral norm", "adapters", "hooks", "in place", "lstm"]
"""Those that have a kernel in training mode as well."""

SQUARES: Callable[[Tensor, Tensor], Tensor] = lambda out, t: out.square().sum() * t.sum()  # noqa: E731


def layer_of(model: nn.Module) -> str | None:
    """The last linear layer, or else the model itself."""
    return None if any(isinstance(m, nn.Linear) for m in model.modules()) else ""


METHODS: dict[str, Callable[[nn.Module, Any], object]] = {
    "pair": lambda model, x: EmpiricalKernel(model, output="full").pair(x, x),
    "diagonal": lambda model, x: EmpiricalKernel(model).diagonal(x),
    "verify": lambda model, x: EmpiricalKernel(model).verify(x, entries=4),
    "operator": lambda model, x: EmpiricalKernel(model).operator(x) @ torch.ones(3).double(),
    "conjugate": lambda model, x: EmpiricalKernel(model).conjugate(x, layer=layer_of(model)),
    "loss": lambda model, x: EmpiricalKernel(model, output=SQUARES).ntk((x, torch.ones(3))),
    "output": lambda model, x: EmpiricalKernel(model, output=lambda out: out[:, :1]).ntk(x),
}


class Snapshot:
    """All that could change."""

    def __init__(self, model: nn.Module, x: Any) -> None:
        self.values = copy.deepcopy([model.state_dict(), x, self.held(model)])
        self.grads = [
            None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()
        ]
        self.plain = self.identities(model)
        self.torch, self.numpy = torch.get_rng_state(), numpy_state()
        self.rest = (
            random.getstate(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
        )

    @staticmethod
    def held(model: nn.Module) -> list[Tensor]:
        """Buffers that no state_dict shows."""
        return [buffer for _, buffer in model.named_buffers()]

    @staticmethod
    def identities(model: nn.Module) -> object:
        """Mode, hooks, flags, and which objects the modules hold under which names."""
        return [
            (
                name,
                module.training,
                type(module),
                {
                    key: [(k, id(v)) for k, v in value.items()]
                    if isinstance(value, dict)
                    else [id(v) for v in value]
                    if isinstance(value, list)
                    else id(value)
                    for key, value in vars(module).items()
                },
                [(p.requires_grad, p.is_leaf, p._version) for p in module.parameters()],
                [len(p._backward_hooks or {}) for p in module.parameters()],
            )
            for name, module in model.named_modules()
        ]

    def assert_equal(self, other: Snapshot) -> None:
        assert self.rest == other.rest
        assert torch.equal(self.torch, other.torch)
        assert self.numpy == other.numpy
        assert self.plain == other.plain
        mine, theirs = (pytree.tree_leaves(s.values) for s in (self, other))
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in zip(self.grads, other.grads, strict=True):
            assert (a is None) == (b is None)
            assert a is None or (a[0] == b[0] and torch.equal(a[1], b[1]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_everything_stays(case: Case) -> None:
    check(case.model(), case.data(3), METHODS["verify"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["counting", "spectral norm", "hooks"])
def test_everything_stays_whatever_is_asked(name: str, method: str) -> None:
    (case,) = [case for case in CASES if case.name == name]
    check(case.model(), case.data(3), METHODS[method])


@pytest.mark.parametrize("case", [c for c in CASES if c.name in TRAINING], ids=lambda c: c.name)
def test_everything_stays_in_training_mode(case: Case) -> None:
    model = case.model().train()
    for module in model.modules():
        if isinstance(module, nn.Flatten):
            module.eval()  # a mode of its own
    check(model, case.data(3), METHODS["pair"])


def test_everything_stays_where_a_module_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), Lambda(lambda m, x: F.dropout(x)), nn.Linear(6, 2))

    def refused(model: nn.Module, x: Any) -> None:
        with pytest.raises(InvalidInput, match="random"):
            EmpiricalKernel(model).ntk(x)

    check(model.double().eval(), real(4)(3), refused)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_autograd_mode_stays(context: Callable[[], Any]) -> None:
    model, x = case_of("mlp").model(), real(4)(3)
    with context():
        check(model, x, METHODS["pair"])
        check(model, x, METHODS["verify"])


def check(model: nn.Module, x: Any, ask: Callable[[nn.Module, Any], object]) -> None:
    for i, p in enumerate(model.parameters()):
        if i % 2 == 0 and p.requires_grad:
            p.grad = torch.full_like(p, 0.5)
    x_before = [leaf.clone() for leaf in pytree.tree_leaves(x)]
    before = Snapshot(model, x)
    ask(model, x)
    before.assert_equal(Snapshot(model, x))
    assert all(torch.equal(a, b) for a, b in zip(x_before, pytree.tree_leaves(x), strict=True))


def test_the_snapshot_sees_changes() -> None:
    """The test can fail: each of these is noticed."""

    def gradient(model: nn.Module) -> None:
        model(real(4)(2)).sum().backward()

    def draw(model: nn.Module) -> None:
        torch.rand(1)

    changes: list[Callable[[nn.Module], object]] = [
        gradient,
        draw,
        lambda model: model(real(4)(2)),
        lambda model: random.random(),
        lambda model: np.random.rand(),  # noqa: NPY002
        lambda model: model.train(),
        lambda model: model.layer.register_forward_hook(lambda *args: None),
        lambda model: model.layer.bias.requires_grad_(False),
        lambda model: setattr(model, "note", 1),
        lambda model: setattr(model, "calls", torch.zeros_like(model.calls)),
        lambda model: model.kept.add_(1),
        lambda model: torch.nn.init.zeros_(model.layer.bias),
    ]
    for change in changes:
        model = Counting().double().eval()
        with pytest.raises(AssertionError):
            check(model, real(4)(3), lambda model, x, change=change: change(model))
