"""Distance, angle and velocity of kernels, and movement of parameters, by hand."""

import math

import numpy as np
import pytest
import torch

from tangency.analysis.regime import (
    alignment,
    failure_time,
    kernel_angle,
    kernel_distance,
    kernel_velocity,
    parameter_movement,
)
from tangency.errors import InvalidInput


def gram(n: int, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(n, n + 2))
    return features @ features.T


def test_distance_and_angle_of_kernels():
    K0, K1 = gram(5, 0), gram(5, 1)
    cosine = (K0 * K1).sum() / np.linalg.norm(K0) / np.linalg.norm(K1)
    assert kernel_distance(K0, K1) == pytest.approx(1 - cosine, rel=1e-12)
    assert kernel_angle(K0, K1) == pytest.approx(math.degrees(math.acos(cosine)), rel=1e-12)
    assert kernel_angle(np.diag([1.0, 0.0]), np.diag([0.0, 1.0])) == pytest.approx(90)
    assert kernel_distance(K0, 5 * K0) == pytest.approx(0, abs=1e-30)


def test_small_angles_keep_their_digits():
    """A cosine cannot tell an angle of 1e-9 from zero."""
    angle = 1e-9
    K0 = np.diag([1.0, 0.0])
    K1 = np.diag([math.cos(angle), math.sin(angle)])
    assert kernel_angle(K0, K1) == pytest.approx(math.degrees(angle), rel=1e-6)
    assert 1 - alignment(K0, K1) == 0


def test_velocity_of_a_kernel_that_grows_and_turns():
    """K(t) = e^{at} (cos wt, sin wt) on the diagonal: both rates are known."""

    def kernel(t: float) -> np.ndarray:
        return math.exp(0.3 * t) * np.diag([math.cos(0.2 * t), math.sin(0.2 * t)])

    step = 1e-4
    whole = kernel_velocity(kernel(1.0), kernel(1.0 + step), step)
    assert whole == pytest.approx(math.hypot(0.3, 0.2), rel=1e-3)
    turn = kernel_velocity(kernel(1.0), kernel(2.0), 1.0, direction_only=True)
    assert turn == pytest.approx(1 - math.cos(0.2), rel=1e-12)
    twice = kernel_velocity(kernel(1.0), kernel(2.0), 4.0, direction_only=True)
    assert twice == pytest.approx(turn / 4)
    for bad in (0.0, -1.0, math.inf):
        with pytest.raises(InvalidInput, match="duration"):
            kernel_velocity(kernel(1.0), kernel(2.0), bad)


def test_movement_of_parameters():
    start = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    now = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[6.0]]), "other": torch.ones(2)}
    assert parameter_movement(start, now) == pytest.approx(math.sqrt(1 + 4) / 5)
    zero = {"a": torch.zeros(2)}
    assert parameter_movement(zero, zero) == 0
    assert parameter_movement(zero, now) == math.inf
    with pytest.raises(InvalidInput, match="'a'"):
        parameter_movement(start, {"b": now["b"]})
    with pytest.raises(InvalidInput, match="one architecture"):
        parameter_movement(start, {**now, "a": torch.ones(3)})


def test_failure_time():
    steps = torch.tensor([0, 2, 5, 9])
    errors = torch.tensor([0.0, 0.1, 0.3, 0.05])
    assert failure_time(steps, errors, 0.1001) == 5
    assert failure_time(steps, errors, 0.05) == 2
    assert failure_time(steps, errors, 0.3001) is None
    with pytest.raises(InvalidInput, match="fraction"):
        failure_time(steps, errors, 0)
    with pytest.raises(InvalidInput, match="shape"):
        failure_time(steps, errors[1:], 0.1)
