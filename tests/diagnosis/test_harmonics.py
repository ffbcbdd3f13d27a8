"""The kernel of a network by angle, and the order in which a real network learns frequencies."""

import math

import pytest
import torch
from torch import nn

import tangency as tg
from tangency.errors import InvalidInput


def network(width: int, *, inputs: int = 2, bias: bool = True, seed: int = 0) -> nn.Module:
    """One hidden layer of ReLU, w2 = 2, biases of variance 1 and 0.01."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(inputs, width, bias=bias), nn.ReLU(), nn.Linear(width, 1, bias=bias)
    ).double()
    with torch.no_grad():
        for layer, scale in ((model[0], 1.0), (model[2], 0.1)):
            deviation = math.sqrt(2 / layer.in_features)
            layer.weight.normal_(0, deviation, generator=generator)
            if bias:
                layer.bias.normal_(0, scale, generator=generator)
    return model


def circle(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return angles, torch.stack([angles.cos(), angles.sin()], dim=1)


def prescribed(model: nn.Module, inputs: int = 2) -> tg.InfiniteKernel:
    example = torch.zeros(2, inputs, dtype=torch.float64)
    return tg.InfiniteKernel(
        model, example, init=tg.Init(weight=2.0, bias=0.0), parametrization="ntk"
    )


def test_the_profile_of_a_relu_network_in_closed_form():
    """In the NTK parametrisation with w2 = 2 and no biases, K(a) of one hidden layer is
    2 (|x|^2 / d) ((sin a + (pi - a) cos a) + cos a (pi - a)) / pi (Bietti & Mairal 2019).
    """
    kernel = prescribed(network(8, inputs=5), inputs=5)
    t = torch.linspace(-1, 1, 21, dtype=torch.float64)
    a = torch.arccos(t)
    arc = (torch.sin(a) + (math.pi - a) * t) / math.pi
    scale = 2 * 9 / 5
    profile = tg.kernel_profile(kernel, 5, radius=3.0)
    expected = scale * (arc + t * (math.pi - a) / math.pi)
    assert torch.allclose(profile(t), expected, rtol=1e-12)
    nngp = tg.kernel_profile(kernel, 5, radius=3.0, kind="nngp")
    assert torch.allclose(nngp(t), scale * arc, rtol=1e-12, atol=1e-14)


def test_without_biases_odd_frequencies_are_never_learned():
    """Basri et al. 2019; a second hidden layer does not need biases for them (Bietti & Bach 2021).

    Networks that are homogeneous and have one hidden layer are even, but for a linear part.
    """
    spectrum = tg.harmonic_spectrum(tg.kernel_profile(prescribed(network(8)), 2), 2, 12)
    assert spectrum.learning_times()[3::2].tolist() == [math.inf] * 5
    assert bool((spectrum.eigenvalues[[0, 1, 2, 4, 6, 8]] > 1e-3).all())
    deep = nn.Sequential(
        nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)
    ).double()
    spectrum = tg.harmonic_spectrum(tg.kernel_profile(prescribed(deep), 2), 2, 12)
    assert bool((spectrum.eigenvalues > 1e-3).all())


def test_the_kernel_matrix_on_the_circle_has_these_eigenvalues():
    kernel = tg.InfiniteKernel(network(64), circle(2)[1])
    spectrum = tg.harmonic_spectrum(tg.kernel_profile(kernel, 2), 2, 20)
    n = 2048
    row = kernel.ntk(circle(n)[1][:1], circle(n)[1])[0]
    sampled = torch.fft.rfft(row).real / n  # the matrix is circulant
    assert torch.allclose(sampled[:8], spectrum.eigenvalues[:8], rtol=1e-4)


def test_kernels_that_are_no_function_of_the_angle_are_refused():
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(8, inputs=3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x * torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype))

    kernel = tg.InfiniteKernel(Weighted(), torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(InvalidInput, match="not a function of the angle"):
        tg.kernel_profile(kernel, 3)
    isotropic = tg.InfiniteKernel(network(8), torch.zeros(2, 2, dtype=torch.float64))
    for dimension, radius in ((1, 1.0), (2, 0.0)):
        with pytest.raises(InvalidInput, match="too small"):
            tg.kernel_profile(isotropic, dimension, radius=radius)


def test_learning_order_projects_the_check():
    angles, x = circle(16)
    y = torch.cos(angles) + torch.cos(2 * angles)
    check = tg.training_check(network(128), x, y, steps=60)
    order = tg.learning_order(check, y, tg.fourier_patterns(angles, [1, 2]))
    assert set(order.predicted) == {"empirical kernel", "infinite width"}
    wave = torch.stack([angles.cos(), angles.sin()], dim=1) / math.sqrt(8)
    left = ((check.outputs[:, :, 0] - y) @ wave).norm(dim=1)
    assert torch.allclose(order.errors[:, 0], left / left[0])
    alone = tg.training_check(network(128), x, y, steps=60, infinite=False)
    assert set(tg.learning_order(alone, y, tg.fourier_patterns(angles, [1])).predicted) == {
        "empirical kernel"
    }
    with pytest.raises(InvalidInput, match="targets"):
        tg.learning_order(check, y[:8], tg.fourier_patterns(angles[:8], [1]))


@pytest.mark.slow
def test_a_real_network_learns_frequencies_when_its_spectrum_says():
    """From nothing but the architecture: analytic eigenvalues give the steps of a real run."""
    angles, x = circle(32)
    frequencies = [1, 2, 3, 4]
    y = sum(torch.cos(k * angles + k) for k in frequencies)
    model = network(2048)
    # The exact scales, not those measured on the module.
    init = tg.Init(weight=2.0, bias=1.0, overrides={"2.bias": 0.01})
    kernel = tg.InfiniteKernel(model, x, init=init)
    spectrum = tg.harmonic_spectrum(tg.kernel_profile(kernel, 2), 2, 8)
    rate = 1 / float(spectrum.eigenvalues.max())
    expected = spectrum.learning_times(rate)[frequencies]
    assert bool((expected.diff() > 0).all())
    check = tg.training_check(
        model, x, y, steps=int(1.3 * expected[-1]), learning_rate=rate, records=120
    )
    order = tg.learning_order(check, y, tg.fourier_patterns(angles, frequencies))
    measured = order.learning_times()
    assert bool((measured.diff() > 0).all())
    # The finite network's kernel fluctuates by 1 / sqrt(width), here some percent; frequency 1
    # takes so few steps that continuous time is a rough count of them.
    assert torch.allclose(measured[1:], expected[1:], rtol=0.15)
    own = order.learning_times(run="empirical kernel")
    assert torch.allclose(measured, own, rtol=0.03)


def sphere(n: int) -> torch.Tensor:
    """Points spread evenly over the sphere in three dimensions (Fibonacci's spiral)."""
    i = torch.arange(n, dtype=torch.float64) + 0.5
    height, turn = 1 - 2 * i / n, math.pi * (1 + math.sqrt(5)) * i
    radius = (1 - height**2).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), height], dim=1)


def test_degrees_on_the_sphere_are_learned_in_their_order():
    """From the analytic eigenvalues to the limit kernel on points, and from the kernel of a finite
    network to its real run. (Between the two kernels stands the width: small eigenvalues fluctuate
    by more than 1 / sqrt(width).)
    """
    x, degrees = sphere(128), [1, 2, 3]
    axis = torch.tensor([2.0, 3.0, 6.0], dtype=torch.float64) / 7
    zonal = tg.analysis.gegenbauer(3, degrees, x @ axis)
    zonal = zonal / zonal.norm(dim=1, keepdim=True)
    patterns = {str(k): pattern for k, pattern in zip(degrees, zonal, strict=True)}
    y = zonal.sum(dim=0)
    model = network(1024, inputs=3)
    init = tg.Init(weight=2.0, bias=1.0, overrides={"2.bias": 0.01})
    kernel = tg.InfiniteKernel(model, x, init=init)
    spectrum = tg.harmonic_spectrum(tg.kernel_profile(kernel, 3), 3, 8)
    rate = 0.2 / float(spectrum.eigenvalues.max())
    expected = spectrum.learning_times(rate)[degrees]

    times = torch.cat([torch.zeros(1), torch.logspace(0, 5, 200)]).double()
    limit = tg.GradientFlow(kernel.ntk(x), y, rate).predict(times).train
    found = tg.pattern_learning(times, limit, y, patterns).learning_times()
    assert torch.allclose(found, expected, rtol=0.1)  # 128 points

    check = tg.training_check(
        model, x, y, steps=int(1.5 * expected[1]), learning_rate=rate, infinite=False
    )
    order = tg.learning_order(check, y, patterns)
    measured, own = order.learning_times(), order.learning_times(run="empirical kernel")
    assert torch.allclose(measured[:2], own[:2], rtol=0.03)
    assert float(measured[0]) < float(measured[1]) < float(measured[2]) == math.inf
