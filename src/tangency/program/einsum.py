"""`torch.einsum` as permutations, sums and products of matrices, two operands at a time."""

from __future__ import annotations

import math
import string
from collections.abc import Collection, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["einsum"]

_Operand: TypeAlias = tuple[str, Tensor]
"""A tensor and the label of each of its dimensions."""


def einsum(equation: str, tensors: Sequence[Tensor], *, path: object = None) -> Tensor:
    """Contract from left to right; a product of two tensors is one `matmul`.

    A weight keeps its place on the right and is only permuted and reshaped, so that it is seen to
    be one.
    """
    labels, output = _spelled_out(equation, [x.dim() for x in tensors])
    operands = [_without_repeats(operand) for operand in zip(labels, tensors, strict=True)]
    result = operands[0]
    for k, operand in enumerate(operands[1:], start=1):
        later = set(output).union(*(own for own, _ in operands[k + 1 :]))
        result = _product(_summed(result, {*operand[0], *later}), operand, later)
    own, x = _summed(result, output)
    return x.permute([own.index(c) for c in output])


def _spelled_out(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Labels of all operands and of the output, with a letter for each dimension of the dots."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    labels = inputs.split(",")
    counts = [
        rank - len(own) + 3 if "..." in own else 0 for own, rank in zip(labels, ranks, strict=True)
    ]
    dots = [c for c in string.ascii_letters if c not in equation][: max(counts)]
    if not arrow:
        once = sorted(c for c in set(inputs) - set(",.") if inputs.count(c) == 1)
        output = "..." + "".join(once)
    spelled = [
        own.replace("...", "".join(dots[len(dots) - count :]))
        for own, count in zip(labels, counts, strict=True)
    ]
    return spelled, output.replace("...", "".join(dots))


def _without_repeats(operand: _Operand) -> _Operand:
    """A label that stands twice means the diagonal."""
    labels, x = operand
    for c in sorted(set(labels)):
        while labels.count(c) > 1:
            first = labels.index(c)
            second = labels.index(c, first + 1)
            x = torch.diagonal(x, 0, first, second)
            labels = labels[:first] + labels[first + 1 : second] + labels[second + 1 :] + c
    return labels, x


def _summed(operand: _Operand, kept: Collection[str]) -> _Operand:
    """Sum over the labels that nothing else has."""
    labels, x = operand
    lonely = [k for k, c in enumerate(labels) if c not in kept]
    if lonely:
        x = x.sum(lonely)
    return "".join(c for c in labels if c in kept), x


def _product(left: _Operand, right: _Operand, kept: Collection[str]) -> _Operand:
    """The product of two operands, summed over the labels that nothing later has."""
    right = _summed(right, {*left[0], *kept})
    if len(right[0]) > len(left[0]) and not set(left[0]) & set(right[0]) & set(kept):
        left, right = right, left
    (a, x), (b, y) = left, right
    size = dict(zip(a + b, (*x.shape, *y.shape), strict=True))
    batch = [c for c in a if c in b and c in kept]
    summed = [c for c in a if c in b and c not in kept]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]

    def arranged(operand: _Operand, groups: Sequence[Sequence[str]]) -> Tensor:
        labels, z = operand
        z = z.permute([labels.index(c) for group in groups for c in group])
        return z.reshape([math.prod(size[c] for c in group) for group in groups])

    single = [[c] for c in batch]
    kept_rows = [rows] if batch or not rows else [[c] for c in rows]
    product = torch.matmul(
        arranged((a, x), [*single, *kept_rows, summed]),
        arranged((b, y), [*single, summed, columns]),
    )
    made = [*batch, *rows, *columns]
    return "".join(made), product.reshape([size[c] for c in made])
