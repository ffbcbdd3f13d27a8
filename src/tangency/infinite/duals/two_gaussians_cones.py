"""Functions of two variables that are linear on each of finitely many cones with apex 0.

psi(c g1, c g2) = c psi(g1, g2) for c > 0, and the gradient is constant between rays from the
origin: relu(g2 + relu(g1)), as in a ResNet's basic block, its leaky and absolute cousins,
max(g1, g2). Their second moments have the one-dimensional integral of
`tangency.infinite.duals.two_gaussians_piecewise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tangency.errors import UnsupportedOperation

__all__ = ["Cones", "FunctionOfTwo", "find_cones", "value_and_gradient"]

FunctionOfTwo: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""psi: pointwise, called in float64 on two tensors of one shape."""

_SCAN = 2048
_BISECTIONS = 50
_MOST_RAYS = 12
# Rounding of values and of gradients that are equal.
_EQUAL = 1e-12


@dataclass(frozen=True)
class Cones:
    """A continuous function that is linear between rays.

    Attributes:
        rays: directions of the rays, counter-clockwise from the negative first axis, (-1, 0) last.
        jumps: per ray, the change of the gradient across it, counter-clockwise.
        beside: gradients beside the first axis in quadrants III, II, I, IV.
    """

    rays: tuple[tuple[float, float], ...]
    jumps: tuple[tuple[float, float], ...]
    beside: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, object]:
        """Plain numbers, for printing and storing."""
        return {"rays": self.rays, "jumps": self.jumps, "beside": self.beside}


def value_and_gradient(function: FunctionOfTwo, g1: Tensor, g2: Tensor) -> tuple[Tensor, ...]:
    """psi and its two derivatives, by forward-mode differentiation of the callable itself."""
    g1, g2 = g1.contiguous(), g2.contiguous()  # forward mode refuses expanded tensors
    one, zero = torch.ones_like(g1), torch.zeros_like(g1)
    result: tuple[Tensor, Tensor] = torch.func.jvp(  # type: ignore[assignment]
        function, (g1, g2), (one, zero)
    )
    second: Tensor = torch.func.jvp(function, (g1, g2), (zero, one))[1]
    return *result, second


def find_cones(function: FunctionOfTwo, *, dimensions: int = 0) -> Cones | None:
    """The rays and gradients of psi; None if psi is not linear on cones with apex 0.

    function: psi. It is evaluated at some thousand directions, and at several radii to see that it
        is homogeneous. Cones narrower than 2 pi / 2048 may be missed.
    dimensions: how many dimensions psi expects after that of the nodes. Where it has constants of
        its own along them (per example), there is no one function, and None is returned.

    Raises UnsupportedOperation if psi is homogeneous but jumps: its NTK then does not exist.
    """
    # The scan is shifted so that no natural direction of a ray is one of its points.
    angles = -math.pi + (torch.arange(_SCAN, dtype=torch.float64) + 0.31831) * (2 * math.pi / _SCAN)
    evaluate = _flat(function, dimensions)
    if evaluate(angles, angles).shape != angles.shape:
        return None
    return _cones_of(evaluate, angles)


def _flat(function: FunctionOfTwo, dimensions: int) -> FunctionOfTwo:
    """psi on vectors; its result is one too unless psi differs along the other dimensions."""

    def evaluate(g1: Tensor, g2: Tensor) -> Tensor:
        shape = (-1, *[1] * dimensions)
        return function(g1.reshape(shape), g2.reshape(shape)).flatten()

    return evaluate


def _cones_of(function: FunctionOfTwo, angles: Tensor) -> Cones | None:
    values, gradients = _around(function, angles)
    scale = float(gradients.abs().max()) if bool(torch.isfinite(gradients).all()) else math.inf
    if scale == 0 or not math.isfinite(scale) or not _is_homogeneous(function, angles, values):
        return None
    if not _close(values, _linear(gradients, angles), scale):
        return None
    ahead = gradients.roll(-1, dims=1)
    changes = ((ahead - gradients).abs().amax(dim=0) > _EQUAL * scale).nonzero().flatten().tolist()
    if len(changes) > _MOST_RAYS:
        return None
    found = [
        _ray(function, float(angles[k]), 2 * math.pi / _SCAN, gradients[:, k], ahead[:, k])
        for k in changes
    ]
    found.sort()
    around_axis = [math.pi + 1e-9, math.pi - 1e-9, 1e-9, -1e-9]
    beside = _around(function, torch.tensor(around_axis, dtype=torch.float64))[1]
    return Cones(
        rays=tuple(direction for _, direction, _ in found),
        jumps=tuple(jump for _, _, jump in found),
        beside=tuple((float(a), float(b)) for a, b in beside.T.tolist()),
    )


def _around(function: FunctionOfTwo, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Values and gradients (2, ...) on the unit circle."""
    value, first, second = value_and_gradient(function, torch.cos(angles), torch.sin(angles))
    return value.detach(), torch.stack([first, second]).detach()


def _linear(gradients: Tensor, angles: Tensor) -> Tensor:
    return gradients[0] * torch.cos(angles) + gradients[1] * torch.sin(angles)


def _close(a: Tensor, b: Tensor, scale: float) -> bool:
    return bool(((a - b).abs() <= _EQUAL * scale).all())


def _is_homogeneous(function: FunctionOfTwo, angles: Tensor, values: Tensor) -> bool:
    scale = float(values.abs().max())
    return all(
        _close(function(r * torch.cos(angles), r * torch.sin(angles)).detach() / r, values, scale)
        for r in (1e-3, 0.37, 2.9, 1e3)
    )


_Ray: TypeAlias = tuple[float, tuple[float, float], tuple[float, float]]


def _ray(function: FunctionOfTwo, low: float, step: float, before: Tensor, after: Tensor) -> _Ray:
    """Angle, direction and jump of the ray between the angles low and low + step."""
    jump = after - before
    high = low + step
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        here = _around(function, torch.tensor([middle], dtype=torch.float64))[1][:, 0]
        is_before = float((here - before).abs().max()) <= float((here - after).abs().max())
        low, high = (middle, high) if is_before else (low, middle)
    # psi is continuous where the gradient's jump is normal to the ray: this gives the direction
    # to the last digit, and axes exactly.
    size = float(torch.linalg.vector_norm(jump))
    x, y = float(jump[1]) / size, -float(jump[0]) / size
    if x * math.cos(low) + y * math.sin(low) < 0:
        x, y = -x, -y
    if abs(x * math.sin(low) - y * math.cos(low)) > 1e-9:
        raise UnsupportedOperation(
            "the function of two Gaussians jumps along the direction "
            f"({math.cos(low):.6g}, {math.sin(low):.6g}): its derivative is a delta there, and the "
            "neural tangent kernel does not exist; use a continuous function"
        )
    x, y = x + 0.0, y + 0.0  # no negative zeros: (-1, 0) is at the angle pi
    return math.atan2(y, x), (x, y), (float(jump[0]), float(jump[1]))
