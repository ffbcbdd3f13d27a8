"""Which rows and columns of a parameter's matrix its pieces are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tangency.empirical.engine import Engine
from tangency.empirical.entries import real_shape
from tangency.empirical.groups import Piece

__all__ = ["Place", "Sides", "matrix_shape", "placed"]


def matrix_shape(shape: torch.Size) -> tuple[int, int]:
    """A tensor as a matrix: its first dimension, and all others together."""
    rows = shape[0] if shape else 1
    return rows, math.prod(shape[1:])


@dataclass(frozen=True)
class Sides:
    """Where a piece lies, as a block of its parameter's matrix.

    Attributes:
        down: (rows,), for each row of the piece the row of the parameter.
        along: (columns,), for each column of the piece the column of the parameter.
        transposed: whether `down` are columns of the parameter and `along` rows.
    """

    down: Tensor
    along: Tensor
    transposed: bool = False


@dataclass(frozen=True)
class Place:
    """Where a piece lies in its parameter.

    Attributes:
        entries: (size,), which entries of the parameter it holds; None for all in order.
        sides: None where it is no block of the parameter's matrix.
    """

    entries: Tensor | None
    sides: Sides | None


def placed(
    engine: Engine, parameters: Mapping[str, Tensor], device: torch.device
) -> dict[str, list[Place]]:
    """Parameter -> the places of the pieces in which its gradients come."""
    found = {name: [_whole(real_shape(parameters[name]), device)] for name in engine.rest}
    for group in engine.groups:
        shape = parameters[group.name].shape
        if group.derivations is not None:
            found[group.name] = [_whole(shape, device)]
        else:
            found[group.name] = [_place(piece, shape, device) for piece in group.pieces]
    return found


def _whole(shape: torch.Size, device: torch.device) -> Place:
    rows, columns = matrix_shape(shape)
    sides = Sides(torch.arange(rows, device=device), torch.arange(columns, device=device))
    return Place(None, sides)


def _place(piece: Piece, shape: torch.Size, device: torch.device) -> Place:
    within = matrix_shape(piece.node.meta["val"].shape)
    if piece.entries is None and within == matrix_shape(shape):
        return _whole(shape, device)
    entries = piece.entries
    if entries is None:
        entries = torch.arange(math.prod(within), device=device)
    return Place(entries, _sides(entries.view(within), matrix_shape(shape)[1]))


def _sides(entries: Tensor, length: int) -> Sides | None:
    """The rows and columns of a matrix with rows of this length that `entries` number."""
    first, second = entries[:, 0], entries[0]
    down, along = first // length, second % length
    if torch.equal(down[:, None] * length + along, entries):
        return Sides(down, along)
    down, along = first % length, second // length
    if torch.equal(down[:, None] + along * length, entries):
        return Sides(down, along, transposed=True)
    return None
