"""Contractions of per-example gradients, given explicitly or in factors, to kernel blocks.

All functions take tensors with a leading batch of independent problems, shape (b, rows, ...) and
(b, columns, ...): a Gram matrix is one problem with many rows and columns, the diagonal of a
kernel is many problems with one row and one column. They return (b, rows, columns, *outputs) with
*outputs = () for "trace" (the *sum* over outputs), (out,) for "diagonal", (out, out) for "full".
"""

from __future__ import annotations

import torch
from torch import Tensor

from tangency.empirical.plan import WORKING_SET, Layout, SiteSize, cheapest
from tangency.empirical.sites import Factors

__all__ = ["of_factors", "of_gradients"]


def of_gradients(rows: Tensor, columns: Tensor, layout: Layout) -> Tensor:
    """Products of explicit gradients (b, rows, out, size) and (b, columns, out, size)."""
    if layout == "trace":
        return rows.flatten(2) @ columns.flatten(2).mT
    if layout == "diagonal":
        return (rows.transpose(1, 2) @ columns.transpose(1, 2).mT).movedim(1, -1)
    b, r, out, _ = rows.shape
    block = rows.flatten(1, 2) @ columns.flatten(1, 2).mT
    return block.view(b, r, out, -1, out).transpose(2, 3)


def of_factors(rows: Factors, columns: Factors, layout: Layout) -> Tensor:
    """Products of gradients in factors, by the cheaper path.

    The factors' tensors carry the leading batch: (b, rows, positions, in) and
    (b, rows, out, positions, width).
    """
    _, r, out, positions, width = rows.cotangents.shape
    size = SiteSize(r, columns.inputs.shape[1], out, positions, rows.inputs.shape[-1], width)
    if cheapest(size, layout) == "gram":
        return _by_gram(rows, columns, layout)
    return _by_gradients(rows, columns, layout)


def _by_gradients(rows: Factors, columns: Factors, layout: Layout) -> Tensor:
    """Explicit gradients, a slice of the input dimension at a time."""
    b, r, out, _, width = rows.cotangents.shape
    row_bytes = (r + columns.inputs.shape[1]) * b * out * width * rows.inputs.element_size()
    step = max(1, WORKING_SET // row_bytes)
    total: Tensor | None = None
    for start in range(0, rows.inputs.shape[-1], step):
        part = slice(start, start + step)
        left = _gradients(rows, part)
        right = left if columns is rows else _gradients(columns, part)
        block = of_gradients(left, right, layout)
        total = block if total is None else total.add_(block)
    assert total is not None, "a weight with no inputs has no site"
    return total


def _gradients(factors: Factors, part: slice) -> Tensor:
    """Gradients with respect to the weight's columns `part`: (b, n, out, width * len(part))."""
    inputs = factors.inputs[..., part].unsqueeze(2)
    return (factors.cotangents.mT @ inputs).flatten(-2)


def _by_gram(rows: Factors, columns: Factors, layout: Layout) -> Tensor:
    """Gram matrices of inputs and cotangents over positions, a slice of the rows at a time."""
    b, r, out, positions, _ = rows.cotangents.shape
    outputs = {"trace": 1, "diagonal": out, "full": out**2}[layout]
    pairs = b * columns.inputs.shape[1] * positions**2
    step = max(1, WORKING_SET // (pairs * outputs * rows.inputs.element_size()))
    blocks = [
        _gram_block(rows.inputs[:, i : i + step], rows.cotangents[:, i : i + step], columns, layout)
        for i in range(0, r, step)
    ]
    return torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]


def _gram_block(a: Tensor, g: Tensor, columns: Factors, layout: Layout) -> Tensor:
    """sum_pp' (a_p . a'_p') (g_p . g'_p') for the rows with inputs `a` and cotangents `g`."""
    b, r, out, p, _ = g.shape
    c = columns.inputs.shape[1]
    inputs = (a.flatten(1, 2) @ columns.inputs.flatten(1, 2).mT).view(b, r, p, c, p)
    if layout == "trace":
        left = g.transpose(2, 3).flatten(3).flatten(1, 2)
        right = columns.cotangents.transpose(2, 3).flatten(3).flatten(1, 2)
        cotangents = (left @ right.mT).view(b, r, p, c, p)
        return cotangents.mul_(inputs).sum(dim=(2, 4))
    if layout == "diagonal":
        left = g.transpose(1, 2).flatten(2, 3)
        right = columns.cotangents.transpose(1, 2).flatten(2, 3)
        cotangents = (left @ right.mT).view(b, out, r, p, c, p)
        return cotangents.mul_(inputs.unsqueeze(1)).sum(dim=(3, 5)).movedim(1, -1)
    left, right = g.flatten(1, 3), columns.cotangents.flatten(1, 3)
    cotangents = (left @ right.mT).view(b, r, out, p, c, out, p)
    return cotangents.mul_(inputs[:, :, None, :, :, None]).sum(dim=(3, 6)).transpose(2, 3)
