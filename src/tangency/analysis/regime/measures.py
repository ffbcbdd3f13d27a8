"""How much a kernel, parameters and outputs changed: plain ratios between two moments."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tangency.analysis.matrix import ArrayLike, Kernel, KernelMatrix, kernel_matrix, targets
from tangency.errors import InvalidInput

__all__ = [
    "alignment",
    "failure_time",
    "kernel_angle",
    "kernel_distance",
    "kernel_drift",
    "kernel_velocity",
    "parameter_movement",
    "prediction_error",
    "target_alignment",
]


def kernel_drift(K0: Kernel, K1: Kernel) -> float:
    """Relative change |K1 - K0|_F / |K0|_F of a kernel matrix, (n, n) or (n, n, out, out).

    Raises:
        InvalidInput: matrices that are no kernel matrices, differ in shape, or K0 = 0.
    """
    first, second = _pair(K0, K1)
    scale = _norm(first.matrix, "K0")
    return float((second.matrix - first.matrix).norm()) / scale


def alignment(K0: Kernel, K1: Kernel) -> float:
    """Cosine <K0, K1>_F / (|K0|_F |K1|_F) of the angle between two kernel matrices.

    It does not see a change of scale; between positive semi-definite matrices it is in [0, 1].

    Raises:
        InvalidInput: matrices that are no kernel matrices, differ in shape, or are zero.
    """
    first, second = _pair(K0, K1)
    return _cosine(first.matrix, second.matrix, ("K0", "K1"))


def kernel_distance(K0: Kernel, K1: Kernel) -> float:
    """1 - cosine of the angle between two kernel matrices (Fort et al. 2020).

    0 for kernels that differ by a scale only, at most 1 between positive semi-definite ones. Small
    angles keep their digits: it is half of the squared distance between K0 / |K0| and K1 / |K1|.

    Raises:
        InvalidInput: matrices that are no kernel matrices, differ in shape, or are zero.
    """
    first, second = _pair(K0, K1)
    between = first.matrix / _norm(first.matrix, "K0") - second.matrix / _norm(second.matrix, "K1")
    return float(between.square().sum()) / 2


def kernel_angle(K0: Kernel, K1: Kernel) -> float:
    """Angle between two kernel matrices in degrees; small angles keep their digits.

    Raises:
        InvalidInput: matrices that are no kernel matrices, differ in shape, or are zero.
    """
    half_chord = math.sqrt(kernel_distance(K0, K1) / 2)
    return math.degrees(2 * math.asin(min(1.0, half_chord)))


def kernel_velocity(
    K0: Kernel, K1: Kernel, duration: float, *, direction_only: bool = False
) -> float:
    """Change of a kernel per unit of time, between two moments that are `duration` apart.

    |K1 - K0|_F / (duration |K0|_F), or, with `direction_only`, `kernel_distance` over `duration`:
    the kernel velocity of Fort et al. (2020), which does not see a change of scale.
    The former is linear in short steps; the latter, a squared angle, falls with the step.

    Args:
        K0: (n, n) or (n, n, out, out), at the earlier moment.
        K1: at the later one.
        duration: between them, positive; in steps of gradient descent, or epochs.
        direction_only: leave out the change of scale.

    Raises:
        InvalidInput: matrices that are no kernel matrices, differ in shape, or are zero; or a
            duration that is not positive.
    """
    if not (math.isfinite(duration) and duration > 0):
        raise InvalidInput(f"duration is {duration}, but must be positive.")
    change = kernel_distance(K0, K1) if direction_only else kernel_drift(K0, K1)
    return change / duration


def target_alignment(K: Kernel, y: ArrayLike, centered: bool = False) -> float:
    """Alignment of a kernel matrix with the ideal kernel y y^T of the targets.

    <K, y y^T>_F / (|K|_F |y y^T|_F) (Cristianini et al. 2001); `centered` subtracts the mean
    over examples from kernel and targets first (Cortes, Mohri & Rostamizadeh 2012, definition 4).

    Args:
        K: (n, n) or (n, n, out, out).
        y: (n,) or (n, out), real.

    Raises:
        InvalidInput: a bad kernel or bad targets, or one of them (after centring) zero.
    """
    kernel = kernel_matrix(K, "K")
    values = targets(y, kernel, "y").values
    matrix = kernel.matrix
    if centered:
        scale = float(matrix.norm()), float(values.norm())
        matrix = _center(kernel)
        values = values - values.mean(dim=0)
        _refuse_constant(matrix, values, scale)
    columns = kernel.flatten(values)
    return _cosine(matrix, columns @ columns.mT, ("K", "y"))


def prediction_error(predicted: Tensor, actual: Tensor, scale: Tensor | float) -> float:
    """Distance |predicted - actual| of two outputs, relative to `scale`.

    Args:
        predicted: outputs of the linearised network, any shape.
        actual: outputs of the real network, same shape.
        scale: what counts as 1: a norm, or a tensor shaped as the outputs whose norm is taken.
            For `Evidence`, the distance moved in function space, `actual - f0`.

    Returns:
        The relative error; infinite if the prediction overflowed.

    Raises:
        InvalidInput: shapes that differ, NaN, or a scale that is not positive.
    """
    if predicted.shape != actual.shape:
        raise InvalidInput(
            f"predicted has shape {tuple(predicted.shape)}, but actual {tuple(actual.shape)}."
        )
    distance = float((predicted.detach().double() - actual.detach().double()).norm())
    if isinstance(scale, Tensor):
        if scale.dim() and scale.shape != actual.shape:
            raise InvalidInput(
                f"scale has shape {tuple(scale.shape)}, but the outputs {tuple(actual.shape)}."
            )
        scale = float(scale.detach().double().norm())
    if math.isnan(distance):
        raise InvalidInput("predicted or actual holds NaN (or both are infinite).")
    if not (math.isfinite(scale) and scale > 0):
        raise InvalidInput(f"scale is {scale}, but must be positive: did the outputs move at all?")
    return distance / scale


def parameter_movement(start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float:
    """|theta - theta_0| / |theta_0| over all the tensors of `start`, by name.

    Infinite for parameters that have left zero.

    Raises:
        InvalidInput: a tensor of `start` is missing in `now` or has another shape.
    """
    for name, value in start.items():
        if name not in now or now[name].shape != value.shape:
            found = tuple(now[name].shape) if name in now else "missing"
            raise InvalidInput(
                f"parameter {name!r} had shape {tuple(value.shape)} at the start, and is {found} "
                "now: movement is measured within one architecture."
            )
    moved = math.hypot(
        *(float((now[k].detach() - v.detach()).double().norm()) for k, v in start.items())
    )
    size = math.hypot(*(float(v.detach().double().norm()) for v in start.values()))
    if size == 0:
        return math.inf if moved > 0 else 0.0
    return moved / size


def failure_time(steps: Tensor, errors: Tensor, fraction: float) -> int | None:
    """First of `steps` (T,) at which `errors` (T,) exceed `fraction`; None if none does.

    Raises:
        InvalidInput: a fraction that is not positive, or series of different lengths.
    """
    if not fraction > 0:
        raise InvalidInput(f"fraction is {fraction}, but must be positive.")
    if steps.shape != errors.shape:
        raise InvalidInput(
            f"steps have shape {tuple(steps.shape)}, but errors {tuple(errors.shape)}."
        )
    above = (errors > fraction).nonzero().flatten()
    return int(steps[above[0]]) if len(above) else None


def _pair(K0: Kernel, K1: Kernel) -> tuple[KernelMatrix, KernelMatrix]:
    first, second = kernel_matrix(K0, "K0"), kernel_matrix(K1, "K1")
    if (first.examples, first.outputs) != (second.examples, second.outputs):
        raise InvalidInput(f"K0 has shape {tuple(K0.shape)}, but K1 {tuple(K1.shape)}.")
    return first, second


def _norm(matrix: Tensor, name: str) -> float:
    norm = float(matrix.norm())
    if norm == 0:
        raise InvalidInput(f"{name} is zero: it has no direction, and nothing is relative to it.")
    return norm


def _cosine(first: Tensor, second: Tensor, names: tuple[str, str]) -> float:
    unit = first / _norm(first, names[0]), second / _norm(second, names[1])
    return min(1.0, max(-1.0, float((unit[0] * unit[1]).sum())))


def _center(kernel: KernelMatrix) -> Tensor:
    """H K H with H = I - 1/n over examples, for each pair of outputs."""
    n, out = kernel.examples, kernel.outputs or 1
    blocks = kernel.matrix.reshape(n, out, n, out)
    blocks = blocks - blocks.mean(dim=0, keepdim=True)
    blocks = blocks - blocks.mean(dim=2, keepdim=True)
    return blocks.reshape(n * out, n * out)


def _refuse_constant(matrix: Tensor, values: Tensor, scale: tuple[float, float]) -> None:
    """Centring leaves rounding, not zeros, of what is the same for all examples."""
    limit = 10 * torch.finfo(torch.float64).eps
    for name, norm, whole in zip("Ky", (matrix.norm(), values.norm()), scale, strict=True):
        if float(norm) <= limit * whole:
            raise InvalidInput(
                f"{name} is the same for all examples: nothing is left of it after centring."
            )
