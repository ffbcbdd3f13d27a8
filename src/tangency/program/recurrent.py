"""Recurrent layers, unrolled over time into `linear` and pointwise operations.

`nn.RNN`, `nn.GRU` and `nn.LSTM` are single ATen operations; here each step is written out with the
layer's own weights, as torch's documentation defines it, so that the same weights are seen to enter
at every time step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TABLE"]


class _Weights(NamedTuple):
    """Weights of one direction of one layer; rows are stacked gate by gate."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None = None
    hidden_bias: Tensor | None = None
    projection: Tensor | None = None


_State: TypeAlias = tuple[Tensor, ...]
_Cell: TypeAlias = Callable[[Tensor, _State, _Weights], _State]


def _products(x: Tensor, h: Tensor, w: _Weights) -> tuple[Tensor, Tensor]:
    """W_i x + b_i and W_h h + b_h, all gates stacked."""
    return F.linear(x, w.input, w.input_bias), F.linear(h, w.hidden, w.hidden_bias)


def _elman(function: Callable[[Tensor], Tensor]) -> _Cell:
    def cell(x: Tensor, state: _State, w: _Weights) -> _State:
        from_input, from_hidden = _products(x, state[0], w)
        return (function(from_input + from_hidden),)

    return cell


def _gru(x: Tensor, state: _State, w: _Weights) -> _State:
    """Cho et al. (2014), in the form of `torch.nn.GRU`."""
    (h,) = state
    from_input, from_hidden = (product.chunk(3, -1) for product in _products(x, h, w))
    r = torch.sigmoid(from_input[0] + from_hidden[0])
    z = torch.sigmoid(from_input[1] + from_hidden[1])
    n = torch.tanh(from_input[2] + r * from_hidden[2])
    return ((1 - z) * n + z * h,)


def _lstm(x: Tensor, state: _State, w: _Weights) -> _State:
    """Hochreiter and Schmidhuber (1997) with forget gates, in the form of `torch.nn.LSTM`."""
    h, c = state
    from_input, from_hidden = _products(x, h, w)
    i, f, g, o = (from_input + from_hidden).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w.projection is None else F.linear(h, w.projection), c)


def _direction(
    cell: _Cell, x: Tensor, state: _State, w: _Weights, *, backward: bool
) -> tuple[Tensor, _State]:
    """All hidden states (time first) and the last state of one direction of one layer."""
    steps = range(int(x.shape[0]))
    hidden: list[Tensor] = []
    for t in reversed(steps) if backward else steps:
        state = cell(x[t], state, w)
        hidden.append(state[0])
    return torch.stack(hidden[::-1] if backward else hidden), state


def _unrolled(
    cell: _Cell,
    x: Tensor,
    initial: _State,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Every layer and direction in turn: outputs and last states, as the ATen operation gives."""
    directions = 2 if bidirectional else 1
    weights = _grouped(params, has_biases, num_layers * directions)
    x = x.transpose(0, 1) if batch_first else x
    last: list[_State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            state = tuple(part[k] for part in initial)
            hidden, state = _direction(cell, x, state, weights[k], backward=direction == 1)
            outputs.append(hidden)
            last.append(state)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if layer + 1 < num_layers and train and dropout > 0:
            x = F.dropout(x, dropout, train)
    finals = tuple(torch.stack(list(parts)) for parts in zip(*last, strict=True))
    return (x.transpose(0, 1) if batch_first else x, *finals)


def _grouped(params: Sequence[Tensor], has_biases: bool, groups: int) -> list[_Weights]:
    """The flat list of parameters, one `_Weights` for every layer and direction."""
    size = len(params) // groups
    result = []
    for k in range(groups):
        own: list[Any] = list(params[k * size : (k + 1) * size])
        own[2:2] = [] if has_biases else [None, None]
        result.append(_Weights(*own))
    return result


def _layer(cell: _Cell) -> Callable[..., Any]:
    def decomposed(x: Tensor, hx: Tensor, *settings: Any) -> tuple[Tensor, ...]:
        return _unrolled(cell, x, (hx,), *settings)

    return decomposed


def _lstm_layer(x: Tensor, hx: Sequence[Tensor], *settings: Any) -> tuple[Tensor, ...]:
    return _unrolled(_lstm, x, tuple(hx), *settings)


def _step(cell: _Cell) -> Callable[..., Tensor]:
    def decomposed(x: Tensor, h: Tensor, *weights: Tensor | None) -> Tensor:
        return cell(x, (h,), _Weights(*weights))[0]  # type: ignore[arg-type]

    return decomposed


def _lstm_step(x: Tensor, hx: Sequence[Tensor], *weights: Tensor | None) -> tuple[Tensor, ...]:
    return _lstm(x, tuple(hx), _Weights(*weights))  # type: ignore[arg-type]


_aten = torch.ops.aten

TABLE: dict[torch._ops.OperatorBase, Callable[..., Any]] = {
    _aten.rnn_tanh.input: _layer(_elman(torch.tanh)),
    _aten.rnn_relu.input: _layer(_elman(torch.relu)),
    _aten.gru.input: _layer(_gru),
    _aten.lstm.input: _lstm_layer,
    _aten.rnn_tanh_cell.default: _step(_elman(torch.tanh)),
    _aten.rnn_relu_cell.default: _step(_elman(torch.relu)),
    _aten.gru_cell.default: _step(_gru),
    _aten.lstm_cell.default: _lstm_step,
}
"""Decompositions of the recurrent operations."""
