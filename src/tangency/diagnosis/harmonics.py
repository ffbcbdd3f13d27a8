"""Spectral bias of a network: its kernel as a function of the angle, and frequencies over a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from tangency.analysis.spectrum import PatternLearning, pattern_learning
from tangency.diagnosis.training_result import TrainingCheck
from tangency.errors import InvalidInput
from tangency.infinite import InfiniteKernel

__all__ = ["kernel_profile", "learning_order"]


def kernel_profile(
    kernel: InfiniteKernel,
    dimension: int,
    *,
    kind: Literal["ntk", "nngp"] = "ntk",
    radius: float = 1.0,
) -> Callable[[Tensor], Tensor]:
    """The kernel of a network as a function of the cosine between two inputs of equal norm.

    For `tangency.harmonic_spectrum`: a fully connected network has such a kernel, K(x, x') =
    kappa(x . x' / radius^2) for all inputs of norm `radius`. That this network has one is checked
    at a few places on the sphere.

    Args:
        kernel: of a module that takes inputs (n, d); it is given inputs in float64.
        dimension: d.
        kind: which of the two kernels.
        radius: norm of the inputs.

    Raises:
        InvalidInput: a dimension below 2, a radius that is not positive, kernels with position
            axes, or a kernel that is not a function of the angle.
    """
    if dimension < 2 or not radius > 0:
        raise InvalidInput(f"dimension is {dimension} and radius {radius}: too small.")
    frame = torch.eye(dimension, dtype=torch.float64)

    def between(cosines: Tensor, first: Tensor, second: Tensor) -> Tensor:
        along = cosines.double()
        across = ((1 - along) * (1 + along)).clamp(min=0).sqrt()
        points = radius * (along[:, None] * first + across[:, None] * second)
        pair = kernel.pair(radius * first[None], points)
        values = pair.ntk if kind == "ntk" else pair.nngp
        if values.dim() != 2:
            raise InvalidInput(
                f"the outputs have position axes (a kernel of shape {tuple(values.shape)}): it "
                "is not one function of the angle."
            )
        return values[0]

    _check_isotropic(between, dimension)
    return lambda cosines: between(cosines, frame[0], frame[1])


def learning_order(
    check: TrainingCheck, targets: Tensor, patterns: Mapping[str, Tensor]
) -> PatternLearning:
    """When a real training run learned each pattern of its targets, beside what kernels predicted.

    Args:
        check: of `tangency.training_check`.
        targets: (n,) or (n, out), those that it was given.
        patterns: name -> (n,) or (n, r), as for `tangency.pattern_learning`;
            `tangency.fourier_patterns` makes them of angles.

    Returns:
        The run, with the predictions "empirical kernel" and, where there is one, "infinite width".

    Raises:
        InvalidInput: as `tangency.pattern_learning`.
    """
    shaped = targets.reshape(len(targets), -1)
    predicted = {"empirical kernel": check.outputs_empirical}
    if check.outputs_infinite is not None:
        predicted["infinite width"] = check.outputs_infinite
    return pattern_learning(check.steps, check.outputs, shaped, patterns, predicted)


def _check_isotropic(between: Callable[[Tensor, Tensor, Tensor], Tensor], dimension: int) -> None:
    """The same values along the axes and along a turned frame."""
    cosines = torch.tensor([1.0, 0.6, -0.3, -1.0], dtype=torch.float64)
    frame = torch.eye(dimension, dtype=torch.float64)
    turned = torch.linalg.qr(
        torch.arange(dimension * 2, dtype=torch.float64).add(1).sin().reshape(dimension, 2)
    ).Q.mT
    straight = between(cosines, frame[0], frame[1])
    other = between(cosines, turned[0], turned[1])
    gap = float((straight - other).abs().max())
    # Wrong places differ by much more than half of the digits.
    if gap > torch.finfo(straight.dtype).eps ** 0.5 * float(straight.abs().max()):
        raise InvalidInput(
            f"the kernel is not a function of the angle: between inputs at equal angles it differs "
            f"by {gap:.3g} from one place on the sphere to another. Fully connected networks have "
            "such a kernel; convolutions and networks that see the order of their inputs have not."
        )
