"""Errors by pattern, on runs whose errors are known."""

import math

import numpy as np
import pytest
import torch

from tangency.analysis import GradientFlow, PatternLearning, fourier_patterns, pattern_learning
from tangency.errors import InvalidInput

N = 20
ANGLES = 2 * math.pi * torch.arange(N, dtype=torch.float64) / N
TIMES = torch.linspace(0, 40, 201, dtype=torch.float64)


def run(rates: dict[int, float], shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs that approach the sum of cos(k a + k), each at its own rate, and the targets."""
    waves = {k: torch.cos(k * ANGLES + k) for k in rates}
    targets = sum(waves.values())
    outputs = sum(
        (1 - torch.exp(-rate * (TIMES + shift)))[:, None] * waves[k] for k, rate in rates.items()
    )
    return outputs, targets


def test_each_pattern_is_timed_by_itself():
    outputs, targets = run({1: 1.0, 3: 0.1})
    found = pattern_learning(TIMES, outputs, targets, fourier_patterns(ANGLES, [1, 3]))
    assert found.names == ("frequency 1", "frequency 3")
    assert torch.allclose(found.errors[:, 0], torch.exp(-TIMES), atol=1e-12)
    assert torch.allclose(found.errors[:, 1], torch.exp(-0.1 * TIMES), atol=1e-12)
    # Exponentials are straight lines in the logarithm: interpolation is exact.
    assert torch.allclose(found.learning_times(), torch.tensor([1.0, 10.0]).double())
    assert found.learning_times(0.01).tolist() == pytest.approx([math.log(100), math.inf])


def test_several_outputs_and_spans():
    outputs, targets = run({1: 1.0, 3: 0.1})
    both, doubled = torch.stack([targets, -2 * targets], 1), torch.stack([outputs, -2 * outputs], 2)
    mixed = torch.stack([3 * torch.cos(ANGLES), torch.cos(ANGLES) - torch.sin(ANGLES)], 1)
    found = pattern_learning(TIMES, doubled, both, {"span": mixed, "wave": torch.cos(3 * ANGLES)})
    assert torch.allclose(found.errors[:, 0], torch.exp(-TIMES), atol=1e-12)
    assert torch.allclose(found.errors[:, 1], torch.exp(-0.1 * TIMES), atol=1e-12)


def test_modes_of_gradient_flow_are_learned_at_their_times():
    features = np.random.default_rng(0).normal(size=(6, 9))
    K = features @ features.T
    values, vectors = np.linalg.eigh(K)
    targets = torch.from_numpy(vectors.sum(axis=1))
    times = torch.linspace(0, 30, 400, dtype=torch.float64)
    outputs = GradientFlow(K, targets, learning_rate=0.5).predict(times).train
    modes = {str(i): torch.from_numpy(vectors[:, i]) for i in range(2, 6)}
    found = pattern_learning(times, outputs, targets, modes)
    assert np.allclose(found.learning_times().numpy(), 6 / (0.5 * values[2:]), rtol=1e-9)


def test_predictions_stand_beside():
    outputs, targets = run({1: 1.0, 2: 0.3})
    faster, _ = run({1: 2.0, 2: 0.3})
    found = pattern_learning(
        TIMES, outputs, targets, fourier_patterns(ANGLES, [1, 2]), {"theory": faster}
    )
    assert found.learning_times(run="theory").tolist() == pytest.approx([0.5, 1 / 0.3])
    assert "theory" in repr(found)
    with pytest.raises(InvalidInput, match="no run 'other'"):
        found.learning_times(run="other")
    pytest.importorskip("plotly")
    names = [trace.name for trace in found.figure().data]
    assert names == [
        "frequency 1",
        "frequency 1, theory",
        "frequency 2",
        "frequency 2, theory",
    ]


def test_fourier_patterns_are_orthogonal_on_a_regular_grid():
    patterns = fourier_patterns(ANGLES, [0, 1, 2, 5])
    columns = torch.cat(list(patterns.values()), dim=1)
    assert columns.shape == (N, 7)
    gram = columns.T @ columns
    assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-12)


def test_bad_input_is_refused():
    outputs, targets = run({1: 1.0})
    one = fourier_patterns(ANGLES, [1])
    wave = torch.cos(ANGLES)
    for arguments, message in (
        ((TIMES.flip(0), outputs, targets, one), "ascending"),
        ((TIMES[:1], outputs[:1], targets, one), "two or more"),
        ((TIMES, outputs[1:], targets, one), "outputs has shape"),
        ((TIMES, outputs, targets[1:], {"a": wave[1:]}), "outputs has shape"),
        ((TIMES, outputs, targets, {}), "patterns is empty"),
        ((TIMES, outputs, targets, {"a": wave[1:]}), "pattern 'a'"),
        ((TIMES, outputs, targets, {"a": torch.stack([wave, 2 * wave], 1)}), "dependent"),
        ((TIMES, outputs, targets, {"a": 0 * wave}), "or zero"),
        ((TIMES, outputs, targets, {"a": torch.cos(4 * ANGLES)}), "no error in pattern 'a'"),
        ((TIMES, outputs * math.nan, targets, one), "NaN"),
        ((TIMES, outputs, targets, one, {"b": outputs[1:]}), "b has shape"),
    ):
        with pytest.raises(InvalidInput, match=message):
            pattern_learning(*arguments)
    with pytest.raises(InvalidInput, match="frequencies"):
        fourier_patterns(ANGLES, [-1])
    found = pattern_learning(TIMES, outputs, targets, one)
    assert isinstance(found, PatternLearning)
    assert found.to_dict()["names"] == ("frequency 1",)
    with pytest.raises(InvalidInput, match="fraction"):
        found.learning_times(1.5)
