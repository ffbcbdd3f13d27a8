"""Length and correlation maps and the gradient gain against quadrature, and against networks."""

import numpy as np
import pytest
import torch
from tests.diagnosis.trainability.recursion import deep, dense, redraw, step
from torch import nn

from tangency import InfiniteKernel, Init
from tangency.diagnosis.trainability.maps import BlockMaps, check_closed
from tangency.diagnosis.trainability.propagation import inputs_of, measured_states, propagate
from tangency.diagnosis.trainability.repetition import as_block, find_block
from tangency.errors import UnsupportedOperation


def maps_of_block(block, init, shape=(16,)):
    return BlockMaps(as_block(block, torch.ones(2, *shape), 1), init)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("name", "tolerance"), [("erf", 1e-12), ("tanh", 1e-9)])
def test_maps_by_quadrature(name, tolerance):
    w2, b2 = 1.7, 0.1
    maps = maps_of_block(dense(name), Init(w2, b2))
    for q, c in ((0.3, 0.2), (0.9, -0.6), (1.4, 0.95)):
        length, correlation, gain, chi_1 = step(name, w2, b2, q, c)
        (image,), (at_one,) = maps.lengths(tensor(q))
        assert float(image) == pytest.approx(length, rel=tolerance)
        assert float(at_one) == pytest.approx(chi_1, rel=tolerance)
        images, slopes = maps.correlations(q, tensor(c, 1.0))
        assert float(images[0]) == pytest.approx(correlation, abs=tolerance)
        assert float(slopes[0]) == pytest.approx(gain * q / length, rel=tolerance)
        assert float(images[1]) == 1
        assert float(slopes[1]) == pytest.approx(chi_1 * q / length, rel=tolerance)


def test_relu_by_hand():
    """Cho & Saul (2009): c' = (sin t + (pi - t) cos t) / pi, dc'/dc = (pi - t) / pi."""
    maps = maps_of_block(nn.Sequential(nn.ReLU(), nn.Linear(16, 16)), Init(2.0))
    angles = np.array([0.1, 1.0, 2.5])
    images, slopes = maps.correlations(3.0, torch.from_numpy(np.cos(angles)))
    np.testing.assert_allclose(
        images, (np.sin(angles) + (np.pi - angles) * np.cos(angles)) / np.pi, rtol=1e-13
    )
    np.testing.assert_allclose(slopes, (np.pi - angles) / np.pi, rtol=1e-13)
    assert float(maps.lengths(tensor(3.0))[0]) == pytest.approx(3.0, rel=1e-14)


@pytest.mark.parametrize("kind", ["dense first", "two layers", "normalised", "convolution"])
def test_gain_is_the_derivative_of_the_covariance(kind):
    """B = dK'/dK at fixed lengths, by central differences of the correlation map."""
    shape = (16,)
    if kind == "dense first":
        block = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
    elif kind == "two layers":
        block = nn.Sequential(nn.ReLU(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))
    elif kind == "normalised":
        block = nn.Sequential(nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 16))
    else:
        block, shape = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)), (4, 5, 5)
    maps = maps_of_block(block, Init(1.5, 0.1), shape)
    q, c, h = 0.8, 0.4, 1e-5
    images, slopes = maps.correlations(q, tensor(c - h, c, c + h))
    assert float(slopes[1]) == pytest.approx(float(images[2] - images[0]) / (2 * h), rel=1e-8)
    near = maps.correlations(q, tensor(1 - 2 * h, 1 - h, 1.0))
    if kind in ("dense first", "normalised"):  # smooth at one
        slope = float(3 * near[0][2] - 4 * near[0][1] + near[0][0]) / (2 * h)
        assert float(near[1][2]) == pytest.approx(slope, rel=1e-6)


def test_inside_a_padded_image_a_convolution_is_a_dense_layer():
    conv = maps_of_block(
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)), Init(1.3, 0.2), (4, 5, 5)
    )
    plain = maps_of_block(nn.Sequential(nn.ReLU(), nn.Linear(16, 16)), Init(1.3, 0.2))
    c = tensor(-0.5, 0.3, 0.9)
    for ours, theirs in zip(conv.correlations(0.7, c), plain.correlations(0.7, c), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(conv.lengths(c + 1), plain.lengths(c + 1), rtol=1e-12, atol=0)


def test_slope_of_the_length_map():
    """dQ/dq = chi_1 + w2 E phi phi'' for phi, dense (Schoenholz et al. 2017, eq. 10)."""
    from tests.diagnosis.trainability.recursion import FUNCTIONS, mean

    phi, slope, curve = FUNCTIONS["erf"]
    w2, q = 1.7, 0.9
    maps = maps_of_block(dense("erf"), Init(w2, 0.1))
    expected = w2 * mean(lambda x: slope(x) ** 2 + phi(x) * curve(x), q)
    assert maps.length_slope(q) == pytest.approx(expected, rel=1e-10)
    with torch.inference_mode():
        assert maps.length_slope(q) == pytest.approx(expected, rel=1e-10)


def test_moments_are_those_of_the_module_averaged_over_repetitions():
    model = deep(nn.ReLU, 3)
    block = find_block(model, torch.ones(2, 5))
    w2 = np.mean([32 * float(model[k].weight.detach().double().square().mean()) for k in (2, 4, 6)])
    b2 = np.mean([float(model[k].bias.detach().double().square().mean()) for k in (2, 4, 6)])
    length, gain = BlockMaps(block).lengths(tensor(0.8))
    assert float(length) == pytest.approx(w2 * 0.4 + b2, rel=1e-12)
    assert float(gain) == pytest.approx(w2 / 2, rel=1e-12)


def test_patterns_of_an_init_reach_the_block():
    model = deep(nn.ReLU, 3)
    init = Init(1.0, 0.0, {"2.weight": 3.0, "8.bias": 7.0})
    maps = BlockMaps(find_block(model, torch.ones(2, 5)), init)
    assert float(maps.lengths(tensor(1.0))[0]) == pytest.approx(1.5)
    assert float(maps.at(Init(4.0)).lengths(tensor(1.0))[0]) == pytest.approx(2.0)


def test_a_deep_network_by_its_block_alone():
    """States and NTK through all blocks equal those of the limit of the whole network."""
    model, init = deep(nn.ReLU, 6), Init(1.8, 0.2)
    x = torch.randn(4, 5, dtype=torch.float64)
    block = find_block(model, x.float())
    maps = BlockMaps(block, init)
    for form in ("standard", "ntk"):
        gram, ntk = maps.entry(inputs_of(x), form)
        found = propagate(maps, gram, 6, ntk=ntk, parametrization=form)
        for depth in (1, 6):
            part = model[: 1 + 2 * depth]
            kernel = InfiniteKernel(
                part, x.float(), init=init, parametrization=form, dtype=torch.float64
            ).pair(x)
            torch.testing.assert_close(found.ntk[depth], kernel.ntk, rtol=1e-11, atol=1e-11)
            mean = kernel.nngp.diagonal().mean()
            torch.testing.assert_close(found.lengths[depth], mean, rtol=1e-11, atol=0)


def test_theory_describes_wide_networks():
    model = redraw(deep(nn.Tanh, 8, width=400), 2.0, 0.05)
    x = torch.randn(6, 5)
    block = find_block(model, x)
    maps = BlockMaps(block, Init(2.0, 0.05))
    theory = propagate(maps, maps.entry((x,)).nngp, 8)
    real = measured_states(block, x)
    np.testing.assert_allclose(real.lengths, theory.lengths, rtol=0.15)
    np.testing.assert_allclose(real.correlations, theory.correlations, atol=0.08)
    np.testing.assert_allclose(real.gains, theory.gains, rtol=0.15)
    assert real.gradient == pytest.approx(theory.gradient, abs=0.5)


def test_states_that_lengths_do_not_describe_are_refused():
    class Stream(nn.Module):
        def __init__(self, activation) -> None:
            super().__init__()
            self.layer, self.activation = nn.Linear(16, 16), activation

        def forward(self, x):
            return x + self.activation(self.layer(x))

    with pytest.raises(UnsupportedOperation, match="not described by lengths"):
        check_closed(maps_of_block(Stream(torch.relu), Init(2.0)))
    check_closed(maps_of_block(Stream(torch.tanh), Init(2.0)))  # odd: of mean zero
