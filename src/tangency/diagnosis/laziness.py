"""Laziness dialled by hand: the scale of a network's outputs."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tangency.errors import InvalidInput

__all__ = ["ScaledModel", "mean_field", "scaled", "unscaled"]


def scaled(model: nn.Module, alpha: float, *, centered: bool = True) -> ScaledModel:
    """`model` with its outputs scaled, alpha (F(x; theta) - F(x; theta_0)).

    Trained on the loss over alpha^2, it is lazy for large alpha and learns features for small alpha
    (Chizat, Oyallon & Bach 2019). See `ScaledModel`.
    """
    return ScaledModel(model, alpha, centered=centered)


def mean_field(model: nn.Module, width: int, *, centered: bool = True) -> ScaledModel:
    """`model`, of hidden width `width` in the NTK parametrisation, in the mean-field (muP) scaling.

    The outputs are multiplied by 1/sqrt(width), so that the last layer is a mean over units in the
    place of a sum over sqrt(width), and the learning rate by width: `scaled` with
    alpha = 1/sqrt(width). For a network with weights sqrt(w2 / fan_in) * N(0, 1) at every layer,
    this is the maximal update parametrisation at any depth (Yang & Hu 2021, table 1, up to the
    symmetry of abc-parametrisations), in which the kernel moves by as much at every width. For
    weights drawn with variance w2 / fan_in (PyTorch's way) the learning rates of the layers would
    need to differ too, and it is not.

    Raises:
        InvalidInput: as `ScaledModel`, or a width that is no positive integer.
    """
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise InvalidInput(f"width is {width!r}, but must be a positive integer.")
    return ScaledModel(model, 1 / math.sqrt(width), centered=centered)


class ScaledModel(nn.Module):
    """alpha (F(x; theta) - F(x; theta_0)) for F = `model`, which is trained in place.

    Its NTK is alpha^2 times that of `model`, at finite and infinite width. (Its NNGP kernel at
    infinite width is not: the start counts there as another, independent network, while centred
    outputs begin at zero.) Gradient descent on the loss over alpha^2 with
    learning rate eta is descent on the loss itself with learning rate eta / alpha^2: pass
    `learning_rate(eta)` to the optimizer. Then outputs move by as much per step whatever alpha is,
    and parameters by 1 / alpha of that, so that the network stays near its linearisation for large
    alpha.

    Centred outputs are zero at the start (in evaluation mode), and take two passes. The copy at
    theta_0 is frozen, stays in evaluation mode, and is part of the state dict, so that a
    checkpoint can be loaded.

    Attributes:
        model: the module given, trainable.
        start: its frozen copy; None if not centred.
        alpha: the scale.

    Raises:
        InvalidInput: no module, an alpha that is not positive, or a module that cannot be copied.
    """

    def __init__(self, model: nn.Module, alpha: float, *, centered: bool = True) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise InvalidInput(f"model must be a torch.nn.Module, not {type(model).__name__}.")
        if not (math.isfinite(alpha) and alpha > 0):
            raise InvalidInput(f"alpha is {alpha}, but must be positive.")
        self.model = model
        self.alpha = float(alpha)
        self.start: nn.Module | None = _frozen(model) if centered else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `model` is called; real tensors of what it returns are scaled."""
        now = self.model(*args, **kwargs)
        if self.start is None:
            return pytree.tree_map(lambda leaf: self._times_alpha(leaf, None), now)
        before = self.start(*args, **kwargs)
        return pytree.tree_map(self._times_alpha, now, before)

    def learning_rate(self, rate: float) -> float:
        """rate / alpha^2: the learning rate that stands for `rate` on the loss over alpha^2."""
        return rate / self.alpha**2

    def train(self, mode: bool = True) -> ScaledModel:
        """As for any module; the copy at theta_0 stays in evaluation mode."""
        super().train(mode)
        if self.start is not None:
            self.start.eval()
        return self

    def extra_repr(self) -> str:
        """The scale."""
        return f"alpha={self.alpha:g}, centered={self.start is not None}"

    def _times_alpha(self, now: Any, before: Any) -> Any:
        if not (isinstance(now, Tensor) and now.is_floating_point()):
            return now
        return self.alpha * (now if before is None else now - before)


def unscaled(model: nn.Module) -> tuple[nn.Module, float]:
    """A module, and the factor by which the NTK of `model` is larger than its own.

    A scaled model's outputs are a difference that leaves rounding: its kernel is better taken from
    the module inside.
    """
    if isinstance(model, ScaledModel):
        inner, factor = unscaled(model.model)
        return inner, factor * model.alpha**2
    return model, 1.0


def _frozen(model: nn.Module) -> nn.Module:
    try:
        start = copy.deepcopy(model)
    except Exception as error:
        raise InvalidInput(
            f"{type(model).__name__} cannot be copied (copy.deepcopy: {error}), and a centred "
            "model needs its outputs at the start: pass centered=False, or keep tensors that are "
            "computed in forward off the module."
        ) from error
    for parameter in start.parameters():
        parameter.grad = None
    return start.requires_grad_(False).eval()
