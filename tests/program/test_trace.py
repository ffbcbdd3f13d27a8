"""What a module computes, recorded: the graph runs as the module does, or the module is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tangency.errors import InvalidInput, UnsupportedOperation
from tangency.program.capture import capture
from tangency.program.trace import Trace, evaluation_mode, operation, trace

FEATURES = 6


def batch(n: int = 3) -> Tensor:
    return torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(n))


def run(traced: Trace, model: nn.Module, *leaves: Tensor) -> Tensor:
    """What the recorded graph computes with the module's present parameters."""
    names = dict(model.named_parameters(remove_duplicate=False))
    values: dict[fx.Node, Tensor] = {n: names[name] for n, name in traced.parameters.items()}
    values |= traced.constants
    values |= dict(zip(traced.inputs, leaves, strict=True))
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    module = fx.GraphModule(nn.Module(), traced.graph)
    (output,) = module(*(values.get(n) for n in placeholders))
    return output


class Wrapped(nn.Module):
    """A linear layer `a` and a function of the input and the module."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.a = nn.Linear(FEATURES, 4)
        self.function = function

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        return self.function(self, *args, **kwargs)


class Buffered(nn.Module):
    """Buffers that are read, and one that is counted up."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(FEATURES, 4)
        self.register_buffer("mean", torch.linspace(-1, 1, FEATURES))
        self.register_buffer("hidden", torch.tensor(2.0), persistent=False)
        self.register_buffer("calls", torch.zeros(()))
        self.offset = torch.tensor(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.a((x - self.mean) / self.hidden) + self.offset


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(FEATURES, 4)
        self.decoder = nn.Linear(4, FEATURES, bias=False)
        self.again = nn.Linear(FEATURES, 4)
        self.again.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.decoder(torch.tanh(self.encoder(x))))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "sequential": lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, 2)),
    "buffers": Buffered,
    "tied": Tied,
    "in place": lambda: Wrapped(lambda m, x: F.relu_(m.a(x)).mul_(2.0).add_(1.0)),
    "written into": lambda: Wrapped(lambda m, x: overwritten(m.a(x))),
    "views": lambda: Wrapped(lambda m, x: m.a(x).view(x.shape[0], 2, -1).transpose(1, 2)),
    "where": lambda: Wrapped(lambda m, x: torch.where(x[:, :1] > 0, m.a(x), -m.a(x))),
    "branch on a shape": lambda: Wrapped(lambda m, x: m.a(x) if x.dim() == 2 else x),
    "one output per example": lambda: Wrapped(lambda m, x: m.a(x)[:, 0]),
}


def overwritten(hidden: Tensor) -> Tensor:
    """Assigns to a part of a tensor."""
    hidden = hidden.clone()
    hidden[:, 1:3] = hidden[:, :2] * 3
    return hidden


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_computes_what_the_module_does(name: str) -> None:
    """On five examples, recorded on one or three."""
    model, x = MODELS[name](), batch(5)
    expected = copy.deepcopy(model)(x)
    for n in (1, 3):
        torch.testing.assert_close(run(trace(model, batch(n)), model, x), expected)


def test_in_place_operations_are_functional() -> None:
    traced = trace(MODELS["in place"](), batch())
    names = {operation(node) for node in traced.graph.nodes}
    assert {"aten.relu.default", "aten.mul.Tensor", "aten.add.Tensor"} <= names
    assert not any(name.split(".")[1].endswith("_") for name in names if name.startswith("aten"))


def test_linear_is_one_node() -> None:
    traced = trace(MODELS["sequential"](), batch())
    names = [operation(node) for node in traced.graph.nodes if node.op == "call_function"]
    assert names.count("aten.linear.default") == 2


def test_a_parameter_has_its_first_name() -> None:
    model = Tied()
    traced = trace(model, batch())
    assert set(traced.parameters.values()) == {
        "encoder.weight",
        "encoder.bias",
        "decoder.weight",
        "again.bias",
    }


def test_parameters_of_nested_modules() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(FEATURES, 2)), nn.ModuleDict({}), nn.Tanh())
    del model[1]
    assert set(trace(model, batch()).parameters.values()) == {"0.0.weight", "0.0.bias"}


def test_a_module_whose_part_is_called_model() -> None:
    """The recording wraps the module in one whose attribute has this name too."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.ModuleDict({"model": nn.Linear(FEATURES, 2)})
            self.modelled = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.model["model"](x) * self.modelled

    names = set(trace(Outer(), batch()).parameters.values())
    assert names == {"model.model.weight", "model.model.bias", "modelled"}


def test_buffers_and_constants_are_the_modules_own() -> None:
    model = Buffered()
    constants = list(trace(model, batch()).constants.values())
    for own in (model.mean, model.hidden, model.offset):
        assert any(own.data_ptr() == constant.data_ptr() for constant in constants)


def test_arguments_by_position_and_by_name() -> None:
    a, b = batch(4), torch.linspace(0, 1, 4)[:, None]
    model = Wrapped(lambda m, x, y: m.a(x) * y)
    expected = model(a, b)
    torch.testing.assert_close(run(trace(model, (a, b)), model, a, b), expected)
    torch.testing.assert_close(run(trace(model, [a, b]), model, a, b), expected)
    torch.testing.assert_close(run(trace(model, {"x": a, "y": b}), model, a, b), expected)
    torch.testing.assert_close(run(trace(model, {"y": b, "x": a}), model, b, a), expected)


def test_a_nested_structure() -> None:
    model = Wrapped(lambda m, pair, scale: m.a(pair["left"] - pair["right"][0]) * scale)
    a, b, c = batch(4), batch(4) ** 2, torch.ones(4, 1) * 3
    example = {"pair": {"left": a, "right": (b,)}, "scale": c}
    torch.testing.assert_close(run(trace(model, example), model, a, b, c), model(**example))


def test_integers_as_input() -> None:
    model = Wrapped(lambda m, tokens: m.a(F.one_hot(tokens, FEATURES).float()))
    tokens = torch.tensor([0, 5, 2])
    torch.testing.assert_close(run(trace(model, tokens), model, tokens), model(tokens))


REFUSED: dict[str, tuple[Callable[..., object], type[Exception], str]] = {
    "two outputs": (lambda m, x: (m.a(x), x), InvalidInput, "other than one tensor"),
    "a tuple of one": (lambda m, x: (m.a(x),), InvalidInput, "other than one tensor"),
    "a dictionary": (lambda m, x: {"logits": m.a(x)}, InvalidInput, "other than one tensor"),
    "a number": (lambda m, x: 3.0, InvalidInput, "other than one tensor"),
    "nothing": (lambda m, x: None, InvalidInput, "other than one tensor"),
    "a scalar": (lambda m, x: m.a(x).mean(), InvalidInput, r"shape \(\), .* not the batch"),
    "a statistic": (lambda m, x: m.a(x).mean(0), InvalidInput, r"shape \(4,\), .* not the batch"),
    "batch last": (lambda m, x: m.a(x).T, InvalidInput, "not the batch"),
    "twice the batch": (
        lambda m, x: m.a(x.reshape(2, FEATURES)),
        UnsupportedOperation,
        "fixes the batch size of its input to 2",
    ),
    "a constant of two rows": (
        lambda m, x: m.a(x) * torch.ones(2, 1),
        UnsupportedOperation,
        "fixes the batch size",
    ),
    "a loop over examples": (
        lambda m, x: torch.cat([m.a(row[None]) for row in x]),
        UnsupportedOperation,
        "fixes the batch size",
    ),
    "fixed after the output": (
        lambda m, x: (m.a(x), m.a(x) * torch.ones(2, 1))[0],
        UnsupportedOperation,
        "fixes the batch size",
    ),
    "a branch on data": (
        lambda m, x: m.a(x) if x.sum() > 0 else -m.a(x),
        UnsupportedOperation,
        r"(?s)cannot record Wrapped.*must not branch on the values of the data",
    ),
    "no_grad": (
        lambda m, x: m.a(x) + without_gradient(m.a, x),
        UnsupportedOperation,
        r"torch\.no_grad",
    ),
    "a transformation of torch.func": (
        lambda m, x: torch.func.jvp(torch.tanh, (m.a(x),), (torch.ones_like(m.a(x)),))[1],
        UnsupportedOperation,
        r"calls torch\.func.*test_trace\.py",
    ),
    "wrong features": (
        lambda m, x: m.a(x[:, 1:]),
        UnsupportedOperation,
        r"(?s)cannot record Wrapped.*Check that model\(example\) runs",
    ),
}


def without_gradient(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.tanh(layer(x))


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    function, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        trace(Wrapped(function), batch())


def test_one_input_of_two_with_a_fixed_batch() -> None:
    """The output alone does not show it."""
    model = Wrapped(lambda m, x, y: m.a(x) * y.reshape(2, FEATURES)[0].sum())
    with pytest.raises(UnsupportedOperation, match="fixes the batch size of its input to 2"):
        trace(model, (batch(2), batch(2)))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.full((2, FEATURES), torch.nan), "example holds NaN or infinite"),
        (torch.zeros(0, FEATURES), "example is empty"),
        (torch.tensor(1.0), "example is a scalar"),
        ([1.0, 2.0], r"example holds no torch\.Tensor"),
        ((torch.zeros(2, FEATURES), torch.zeros(3, 1)), "differ in their leading size"),
    ],
)
def test_bad_examples(example: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        trace(Wrapped(lambda m, x: m.a(x)), example)


class Careful(nn.Module):
    """A module with everything that a careless recording would change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        self.drop = nn.Dropout(0.5)
        self.a = nn.Linear(FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.drop(self.norm(x)))


def test_the_module_is_left_as_it_is() -> None:
    model = Careful()
    model.drop.eval()
    model.a.bias.requires_grad_(False)
    model.a.weight.grad = torch.full_like(model.a.weight, 7.0)
    gradient, parameters = model.a.weight.grad, dict(model.named_parameters())
    state = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    random = torch.get_rng_state()
    trace(model, batch())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(own is parameters[name] for name, own in model.named_parameters())
    assert not model.a.bias.requires_grad
    assert model.a.weight.grad is gradient
    assert torch.equal(gradient, torch.full_like(gradient, 7.0))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_nothing_global_is_changed() -> None:
    model = MODELS["sequential"]()
    trace(model, batch())  # the first recording imports parts of torch
    filters, threads = list(warnings.filters), torch.get_num_threads()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            trace(model, batch())
            assert torch.is_grad_enabled() is enabled
    with pytest.raises(UnsupportedOperation):
        trace(Wrapped(lambda m, x: m.a(x[:, 1:])), batch())
    assert list(warnings.filters) == filters
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() is torch.float32


def test_recorded_without_gradients_enabled() -> None:
    """The caller's `no_grad` is not taken for the module's."""
    model = MODELS["sequential"]()
    with torch.no_grad():
        traced = trace(model, batch())
        torch.testing.assert_close(run(traced, model, batch(5)), model(batch(5)))


def test_evaluation_mode_gives_back_every_mode() -> None:
    model = Careful()
    model.drop.eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [m.training for m in (model, model.norm, model.drop, model.a)] == [
        True,
        True,
        False,
        True,
    ]
    with pytest.raises(UnsupportedOperation):
        capture(model, batch()[:, 1:])
    assert [m.training for m in (model, model.norm, model.drop, model.a)] == [
        True,
        True,
        False,
        True,
    ]


def test_recorded_in_the_mode_that_it_is_in() -> None:
    model, x = nn.Sequential(nn.Linear(FEATURES, 4), nn.Dropout(0.5)), batch(5)
    training = run(trace(model, x), model, x)
    assert (training == 0).any()
    model.eval()
    torch.testing.assert_close(run(trace(model, x), model, x), model(x))


class Pooled(nn.Module):
    """A product of three tensors, which opt_einsum, where it is installed, would plan by size."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.full((3,), 1 / 3), torch.full((4,), 1 / 4)
        return torch.einsum("nchw,h,w->nc", x, rows, columns)


def test_products_of_three_leave_the_batch_free_and_opt_einsum_as_it_was() -> None:
    before = torch.backends.opt_einsum.enabled
    recorded = trace(Pooled(), torch.randn(2, 5, 3, 4))
    assert torch.backends.opt_einsum.enabled == before
    assert not isinstance(recorded.inputs[0].meta["val"].shape[0], int)
