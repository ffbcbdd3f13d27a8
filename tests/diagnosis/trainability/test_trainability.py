"""The verdict, by theory and by layers, and held against real training."""

import json
import math

import pytest
import torch
from sklearn.datasets import load_digits
from tests.diagnosis.trainability.recursion import Erf, deep, redraw
from torch import nn

from tangency import Init, NotIidWarning
from tangency.diagnosis.trainability import initialisations, trainability
from tangency.errors import InvalidInput


def test_relu_networks():
    """w2 = 2 keeps gradients; at w2 = 1 every block halves them (He et al. 2015)."""
    model, x = deep(nn.ReLU, 3), torch.randn(8, 5)
    good = trainability(model, x, depth=20, init=Init.he(), standard=False)
    assert good.verdict == "trainable"
    assert good.trainable
    assert good.method == "mean field"
    assert good.judgement.gradient == pytest.approx(0, abs=1e-9)
    assert good.advice == ()
    bad = trainability(model, x, depth=20, init=Init.lecun())
    assert bad.verdict == "vanishing gradients"
    assert bad.judgement.gradient == pytest.approx(20 * math.log(0.5))
    assert "He initialisation (weights of variance 2 / fan_in, biases zero)" in bad.advice[0]
    assert f"below {6 / math.log(2):.0f} blocks" in bad.advice[1]
    large = trainability(model, x, depth=20, init=Init(4.0), standard=False)
    assert large.verdict == "exploding gradients"
    assert large.judgement.signal == pytest.approx(2.0**20)


def test_the_modules_own_initialisation_is_judged_by_default():
    found = trainability(deep(nn.ReLU, 10, width=64), torch.randn(8, 5))
    assert found.verdict == "ordered"  # PyTorch's default, w2 = 1/3
    assert found.own.theory.chi_1 == pytest.approx(1 / 6, rel=0.02)
    assert found.judgement.gradient == pytest.approx(10 * math.log(1 / 6), rel=0.02)
    assert found.measured.gradient == pytest.approx(found.judgement.gradient, rel=0.1)
    assert "own" in found.standard.names
    assert found.standard["He"].judgement.trainable
    text = repr(found)
    assert "ordered, by mean field" in text
    assert "PyTorch default" in text
    json.dumps(found.to_dict(), default=lambda t: t.tolist())
    assert len(found.figure().data) == 6
    assert len(found.standard.figure().data) == 2 * len(found.standard.rows)


def test_phases_of_erf_at_depth():
    """Six depth scales: the same variances are trainable when the network is shallow."""
    model, x = deep(Erf, 3, width=16), torch.randn(4, 5)
    for init, deep_verdict in ((Init(0.8, 0.05), "ordered"), (Init(3.0, 0.05), "chaotic")):
        found = trainability(model, x, init=init, standard=False, depth=40)
        assert found.verdict == deep_verdict
        shallow = int(3 * found.own.theory.xi_gradient)
        again = trainability(model, x, init=init, standard=False, depth=shallow)
        assert again.verdict == "trainable"


def test_without_a_repeated_block_it_says_so():
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))
    found = trainability(model, torch.randn(16, 5))
    assert (found.method, found.own, found.standard) == ("layers", None, None)
    assert "repeats no block" in found.method_reason
    assert found.verdict == "trainable"
    assert found.condition_of == "infinite"
    assert math.isfinite(found.condition)
    assert len(found.figure().data) == 5
    assert "Measured layer by layer" in found.explain()


def test_attention_and_batch_normalisation_are_measured():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(transformer, nn.Flatten(), nn.Linear(40, 1))
    found = trainability(model, torch.randn(6, 5, 8))
    assert found.method == "layers"
    assert "no closed form" in found.method_reason
    assert found.condition_of == "empirical"
    parts = [nn.Sequential(nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(3)]
    normalised = nn.Sequential(nn.Linear(5, 16), *parts, nn.Linear(16, 1))
    found = trainability(normalised, torch.randn(32, 5))
    assert found.method == "layers"
    assert "batch normalisation" in found.method_reason
    assert found.verdict == "trainable"


def test_causes_in_layers_overrule_theory():
    model = redraw(deep(nn.ReLU, 3), 2.0)
    with torch.no_grad():
        model[4].bias.fill_(-50.0)
    with pytest.warns(NotIidWarning, match="4.bias"):
        found = trainability(model, torch.randn(32, 5), standard=False)
    assert found.verdict == "dead units"
    assert "5:" in found.judgement.reason
    assert "leaky" in found.advice[0]


def test_what_stands_outside_the_blocks_counts():
    model = redraw(deep(nn.ReLU, 3), 2.0)
    with torch.no_grad():
        model[-1].weight.mul_(1e-4)  # the readout passes next to nothing back
    found = trainability(model, torch.randn(32, 5), standard=False)
    assert found.own.judgement.trainable
    assert found.verdict == "vanishing gradients"
    assert found.judgement.reason.startswith("0: its gradient")
    assert trainability(model, torch.randn(32, 5), init=Init.he(), standard=False).trainable


def test_given_blocks_and_refusals():
    block, states = nn.Sequential(nn.ReLU(), nn.Linear(16, 16)), torch.randn(4, 16)
    table = initialisations(block, states, block=block, depth=30)
    assert table["LeCun"].judgement.state == "vanishing gradients"
    assert table["He"].judgement.trainable
    assert len(table["He"].through.gains) == 30
    with pytest.raises(InvalidInput, match="depth is 0"):
        trainability(block, states, depth=0)
    with pytest.raises(InvalidInput, match="init is"):
        trainability(deep(nn.ReLU, 2), torch.randn(4, 5), init="he")


def test_modes_and_several_inputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(5, 16), nn.Linear(3, 16)
            self.hidden = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x, y):
            h = self.left(x) + self.right(y)
            for layer in self.hidden:
                h = layer(torch.relu(h))
            return h

    model, x, y = Two(), torch.randn(6, 5), torch.randn(6, 3)
    found = [
        trainability(model, data, init=Init.he(), standard=False)
        for data in ((x, y), {"y": y, "x": x})
    ]
    with torch.inference_mode():
        found.append(trainability(model, (x + 0, y + 0), init=Init.he(), standard=False))
    lengths = torch.stack([result.own.through.lengths for result in found])
    torch.testing.assert_close(lengths, lengths[:1].expand(3, -1))
    # Both branches have variance 2 |x|^2 / d, and He's initialisation keeps it.
    expected = (2 * x.square().mean(dim=1) + 2 * y.square().mean(dim=1)).mean()
    torch.testing.assert_close(lengths[0], expected.double().expand(4), rtol=1e-6, atol=0)


@pytest.mark.parametrize("x", [torch.zeros(4, 5), torch.ones(4, 5), torch.ones(1, 5)])
def test_examples_that_say_little(x):
    found = trainability(deep(nn.ReLU, 4), x, init=Init.he(), standard=False)
    assert found.verdict == "trainable"
    assert not math.isnan(found.judgement.gradient)


def digits(n=100):
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x[:n] / 16, dtype=torch.float32)
    return (x - x.mean(dim=0)) / x.std(), torch.eye(10)[torch.tensor(y[:n])]


def trained_loss(model, x, y, rate, steps):
    """1/(2n) sum |f - y|^2 after full-batch gradient descent; infinite if it diverges."""
    descent = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        descent.zero_grad()
        loss = (model(x) - y).square().sum(dim=1).mean() / 2
        loss.backward()
        descent.step()
    return float(loss.detach()) if torch.isfinite(loss) else math.inf


@pytest.mark.slow
def test_forty_layers_train_where_the_verdict_says_so():
    """Ordered, critical and chaotic tanh networks on digits, each at its best learning rate."""
    x, y = digits()
    constant = float((y - y.mean(dim=0)).square().sum(dim=1).mean() / 2)
    verdicts, left = {}, {}
    for w2, b2 in ((0.6, 0.05), (1.2, 0.0), (4.0, 0.0)):
        model = redraw(deep(nn.Tanh, 40, width=48, inputs=64, outputs=10), w2, b2)
        verdicts[w2] = trainability(model, x, init=Init(w2, b2), standard=False).verdict
        losses = [
            trained_loss(
                redraw(deep(nn.Tanh, 40, width=48, inputs=64, outputs=10), w2, b2), x, y, rate, 150
            )
            for rate in (0.01, 0.03, 0.1)
        ]
        left[w2] = min(losses) / constant
    assert verdicts == {0.6: "ordered", 1.2: "trainable", 4.0: "chaotic"}
    assert left[1.2] < 0.25
    assert left[0.6] > 0.99  # nothing but the mean
    assert left[4.0] > 0.85
