"""Recurrent layers are unrolled into operations that compute the same, with the layer's weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tangency.program.capture import capture
from tangency.program.trace import Trace, trace

TIME, FEATURES, HIDDEN = 3, 4, 5


def run(traced: Trace, model: nn.Module, *leaves: Tensor) -> Tensor:
    """What the recorded graph computes with the module's present parameters."""
    names = dict(model.named_parameters(remove_duplicate=False))
    values: dict[fx.Node, Tensor] = {n: names[name] for n, name in traced.parameters.items()}
    values |= traced.constants
    values |= dict(zip(traced.inputs, leaves, strict=True))
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    (output,) = fx.GraphModule(nn.Module(), traced.graph)(*(values.get(n) for n in placeholders))
    return output


class Layer(nn.Module):
    """A recurrent layer; with `state`, from a given initial state."""

    def __init__(self, kind: type[nn.RNNBase], *, state: bool = False, **options: Any) -> None:
        super().__init__()
        self.layer = kind(FEATURES, HIDDEN, batch_first=True, **options)
        self.state = state

    def forward(self, x: Tensor) -> Any:
        if not self.state:
            return self.layer(x)
        count = self.layer.num_layers * (2 if self.layer.bidirectional else 1)
        h = x.mean((1, 2)).expand(count, x.shape[0])[..., None].expand(-1, -1, HIDDEN)
        return self.layer(x, (h, -h) if isinstance(self.layer, nn.LSTM) else h)


LAYERS: dict[str, nn.Module] = {
    "rnn": Layer(nn.RNN),
    "relu": Layer(nn.RNN, nonlinearity="relu", num_layers=2),
    "rnn without bias": Layer(nn.RNN, bias=False, bidirectional=True),
    "gru": Layer(nn.GRU, bidirectional=True),
    "gru from a state": Layer(nn.GRU, num_layers=2, state=True),
    "lstm": Layer(nn.LSTM),
    "lstm, deep": Layer(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm from a state": Layer(nn.LSTM, state=True, bias=False),
    "lstm, projected": Layer(nn.LSTM, proj_size=2),
}


def last_state(out: Any) -> Tensor:
    """The last hidden state of the last layer and direction."""
    state = out[1][0] if isinstance(out[1], tuple) else out[1]
    return state[-1]


def last_cell(out: Any) -> Tensor:
    return out[1][1][-1]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("output", [0, last_state], ids=["states", "last state"])
def test_the_graph_computes_what_the_layer_does(name: str, output: Any) -> None:
    model, x = LAYERS[name], torch.randn(4, TIME, FEATURES)
    traced = trace(model, x[:2], output)
    expected = model(x)[0] if output == 0 else output(model(x))
    torch.testing.assert_close(run(traced, model, x), expected)


def test_the_cell_of_an_lstm() -> None:
    model, x = LAYERS["lstm, deep"], torch.randn(4, TIME, FEATURES)
    torch.testing.assert_close(run(trace(model, x, last_cell), model, x), last_cell(model(x)))


class Loop(nn.Module):
    """A cell called in a loop."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell = kind(FEATURES, HIDDEN)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], HIDDEN)
        state = (h, torch.zeros_like(h)) if isinstance(self.cell, nn.LSTMCell) else h
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells(kind: type[nn.RNNCellBase]) -> None:
    model, x = Loop(kind), torch.randn(4, TIME, FEATURES)
    torch.testing.assert_close(run(trace(model, x), model, x), model(x))


@pytest.mark.parametrize("name", ["rnn", "lstm, deep", "gru"])
def test_every_step_uses_the_same_weights(name: str) -> None:
    model = LAYERS[name]
    program = capture(model, torch.randn(2, TIME, FEATURES), 0)
    assert {site.role for site in program.sites.values()} == {"affine"}
    used = Counter(name for site in program.sites.values() for name in site.names)
    assert used == {name: TIME for name, _ in model.named_parameters()}
    directions = 2 if model.layer.bidirectional else 1  # type: ignore[union-attr]
    assert program.describe(program.output) == f"(n, p{TIME}, w{directions * HIDDEN})"


def test_a_zero_state_leaves_no_product() -> None:
    """The cell state of an LSTM is a product of gates from the first step on."""
    program = capture(LAYERS["lstm"], torch.randn(2, TIME, FEATURES), 0)
    products = [n for n in program.nature if n.name.startswith("mul")]
    assert len(products) == 3 * TIME - 1
