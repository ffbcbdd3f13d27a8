"""Moving the parameters of a module, and what a module then gives."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tangency import examples

__all__ = ["assert_equal", "each", "moved", "moved_copy"]


def assert_equal(value: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert value.shape == expected.shape
    scale = float(expected.detach().abs().max())
    assert scale > 0
    assert float((value - expected).detach().abs().max()) <= tolerance * scale


def moved(model: nn.Module, size: float = 1.0) -> Tensor:
    """Move the trainable parameters; returns by how much, in one vector."""
    generator = torch.Generator().manual_seed(5)
    steps = []
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                step = size * torch.randn(p.shape, dtype=p.dtype, generator=generator)
                p += step
                steps.append(torch.view_as_real(step) if p.is_complex() else step)
    return torch.cat([step.reshape(-1) for step in steps])


def each(model: nn.Module, x: object) -> Tensor:
    """Outputs of every example alone, (n, out)."""
    calls = [
        examples.arguments(examples.take(x, slice(i, i + 1))) for i in range(examples.count(x))
    ]
    return torch.stack([model(*args, **kwargs).reshape(-1) for args, kwargs in calls])


def moved_copy(model: nn.Module, size: float = 1.0) -> nn.Module:
    other = copy.deepcopy(model)
    moved(other, size)
    return other
