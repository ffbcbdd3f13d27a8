"""Repeated blocks are found in what a module computes, however it is written."""

import pytest
import torch
from tests.diagnosis.trainability.recursion import deep
from torch import nn

from tangency.diagnosis.trainability import find_block, mean_field_theory
from tangency.diagnosis.trainability.repetition import as_block
from tangency.errors import InvalidInput, UnsupportedOperation


class Loop(nn.Module):
    """The same network as `deep(nn.Tanh, 4)`, as a loop with functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 32)
        self.hidden = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.last = nn.Linear(32, 2)

    def forward(self, x):
        h = self.first(x)
        for layer in self.hidden:
            h = layer(torch.tanh(h))
        return self.last(torch.tanh(h))


class Residual(nn.Module):
    def __init__(self, depth=3) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(depth))
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(torch.relu(norm(x)))
        return self.head(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(5, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = self.first(x)
        for _ in range(3):
            h = self.again(torch.tanh(h))
        return h


def composed(block, x):
    h = x if block.before is None else block.before(x)
    for part in block.blocks:
        h = part(h)
    return h


def test_written_as_a_sequence_or_as_a_loop():
    x = torch.randn(3, 5)
    sequence, loop = deep(nn.Tanh, 4), Loop()
    for model, names in ((sequence, "2.weight"), (loop, "hidden.0.weight")):
        block = find_block(model, x)
        assert block.depth == 4
        assert block.operations == ("tanh", "linear")
        assert (block.state, block.width, block.positions) == ((32,), 32, ())
        assert names in dict(block.blocks[0].named_parameters())
    assert "hidden.0.weight to hidden.3.bias" in repr(find_block(loop, x))


def test_segments_compute_what_the_module_does():
    x = torch.randn(3, 5)
    model = Loop()
    whole = model.last(torch.tanh(composed(find_block(model, x), x)))
    torch.testing.assert_close(whole, model(x), rtol=1e-6, atol=1e-6)
    residual, y = Residual(), torch.randn(4, 8)
    block = find_block(residual, y)
    assert block.before is None
    assert block.operations == ("layer_norm", "relu", "linear", "add")
    torch.testing.assert_close(residual.head(composed(block, y)), residual(y))


def test_convolutions_have_channels_first():
    blocks = [nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)) for _ in range(3)]
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), *blocks, nn.Flatten(), nn.Linear(150, 2))
    block = find_block(model, torch.randn(2, 1, 5, 5))
    assert (block.width, block.positions, block.channels_first) == (6, (5, 5), True)
    assert block.depth == 3


def test_transformer_layers_are_found():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    x = torch.randn(2, 5, 8)
    block = find_block(model, x)
    assert (block.depth, block.width, block.positions) == (3, 8, (5,))
    torch.testing.assert_close(composed(block, x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_frozen_probes_leave_the_module_trainable():
    model = deep(nn.Tanh, 2)
    mean_field_theory(model, torch.randn(2, 5))
    assert all(p.requires_grad for p in model.parameters())
    assert model.training


def test_refusals():
    x = torch.randn(2, 5)
    with pytest.raises(UnsupportedOperation, match="same weights"):
        find_block(Tied(), x)
    with pytest.raises(UnsupportedOperation, match="repeats no block"):
        find_block(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1)), x)
    with pytest.raises(InvalidInput, match="same shape"):
        as_block(nn.Linear(5, 6), x, 1)
    with pytest.raises(InvalidInput, match="no weights"):
        as_block(nn.Tanh(), x, 1)
    with pytest.raises(InvalidInput, match="depth is 0"):
        as_block(nn.Linear(5, 5), x, 0)
    with pytest.raises(InvalidInput, match="one tensor"):
        mean_field_theory(nn.Linear(5, 5), (x, x), block=nn.Linear(5, 5))
