"""cuDNN, for as long as exact derivatives in float32 are wanted of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["exact_cudnn"]


@contextmanager
def exact_cudnn(model: nn.Module) -> Iterator[None]:
    """Convolutions and recurrent layers of full precision, and derivatives of all of them.

    PyTorch lets cuDNN round the factors of float32 products to TF32 (10 bits after the point),
    unless it is told otherwise; and cuDNN's recurrent layers have a backward pass in training mode
    alone, those of PyTorch itself in both. The user's settings are put back afterwards.
    """
    cudnn = torch.backends.cudnn
    enabled, allowed = cudnn.enabled, _allows_tf32()
    try:
        if any(isinstance(m, nn.RNNBase) and not m.training for m in model.modules()):
            cudnn.enabled = False
        if allowed:
            cudnn.allow_tf32 = False
        yield
    finally:
        cudnn.enabled = enabled
        if allowed:
            cudnn.allow_tf32 = True


def _allows_tf32() -> bool:
    """Whether all of cuDNN rounds to TF32."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        # Convolutions and recurrent layers were told apart (`fp32_precision`): as the user wants.
        return False
