"""Pairs in pieces that fit the cache: a dual with many temporaries computes them one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["MOST_PAIRS", "in_pieces"]

MOST_PAIRS = 16384
"""How many pairs are computed at once."""

_Sides: TypeAlias = Sequence[Mapping[str, Tensor]]
_Compute: TypeAlias = Callable[
    [Mapping[str, Tensor], Mapping[str, Tensor], Sequence[Tensor]], tuple[Tensor, ...]
]


def in_pieces(
    compute: _Compute,
    sides: _Sides,
    leading: Mapping[str, int],
    versine1: Tensor,
    versine2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """compute(left, right, versines), for at most 16384 pairs at once.

    sides: two tables of tensors whose trailing dimensions broadcast against the versines.
    leading: for each entry that is needed, how many dimensions it has before those.

    Returns three tensors of the versines' common shape.
    """
    versines = torch.broadcast_tensors(versine1, versine2)
    needed = [{name: side[name] for name in leading} for side in sides]
    first, second, third = _halved(compute, needed, leading, versines)
    return first, second, third


def _halved(
    compute: _Compute, sides: _Sides, leading: Mapping[str, int], versines: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    shape = versines[0].shape
    if math.prod(shape) <= MOST_PAIRS:
        return compute(sides[0], sides[1], versines)
    size = max(shape)
    back = shape.index(size) - len(shape)

    def part(tensor: Tensor, before: int, cut: tuple[int, int]) -> Tensor:
        has = tensor.ndim - before >= -back and tensor.shape[back] == size
        return tensor.narrow(back, *cut) if has else tensor

    parts = [
        _halved(
            compute,
            [{name: part(side[name], n, cut) for name, n in leading.items()} for side in sides],
            leading,
            [v.narrow(back, *cut) for v in versines],
        )
        for cut in ((0, size // 2), (size // 2, size - size // 2))
    ]
    return tuple(torch.cat(pieces, dim=back) for pieces in zip(*parts, strict=True))
