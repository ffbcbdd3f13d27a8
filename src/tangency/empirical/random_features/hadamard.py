"""Hadamard transforms of vectors with random signs: coefficients of a random rotation.

Coefficient i of a vector v of length 2^b with signs s is sum_a (-1)^(popcount(i & a)) s_a v_a: for
one i, a product with independent signs; over all i, an orthogonal matrix but for its length
(Ailon and Chazelle, 2009).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Block", "Coefficients", "UnitVectors", "block", "next_power", "parity", "transform"]

DIGIT = 5
"""Bits that one matrix product transforms: 32 x 32, small enough for a cache."""


class Coefficients(Protocol):
    """Transformed vectors."""

    def at(self, index: Tensor) -> Tensor:
        """The coefficients (d,) of all vectors (*rest): (d, *rest)."""


def next_power(length: int) -> int:
    """The smallest power of two that is not less than `length`."""
    return 1 << (length - 1).bit_length()


def parity(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """(-1)^popcount of non-negative 64-bit integers."""
    folded = bits
    for shift in (32, 16, 8, 4, 2, 1):
        folded = folded ^ (folded >> shift)
    return 1 - 2 * (folded & 1).to(dtype)


def transform(values: Tensor) -> Tensor:
    """Hadamard transform along the first dimension, whose size is a power of two."""
    shape = values.shape
    done = 1
    for size in _digits(shape[0]):
        index = torch.arange(size, device=values.device)
        matrix = parity(index[:, None] & index, values.dtype)
        values = matrix @ values.reshape(done, size, -1)
        done *= size
    return values.reshape(shape)


def _digits(length: int) -> Iterator[int]:
    """Powers of two whose product is `length`."""
    bits = length.bit_length() - 1
    yield from (1 << min(DIGIT, bits - done) for done in range(0, bits, DIGIT))


@dataclass(frozen=True)
class Block:
    """Transforms of vectors that are zero outside an aligned block of 2^b entries.

    The bits above the block's size only give a sign.

    Attributes:
        values: (size, *rest), the transforms of the block alone.
        start: where the block begins, a multiple of its size.
    """

    values: Tensor
    start: int

    def at(self, index: Tensor) -> Tensor:
        """The coefficients (d,) of all vectors: (d, *rest)."""
        found = self.values.index_select(0, index & (len(self.values) - 1))
        if self.start == 0:
            return found
        signs = parity(index & self.start, found.dtype)
        return found.mul_(signs.view(-1, *[1] * (found.dim() - 1)))


@dataclass(frozen=True)
class UnitVectors:
    """Transforms of unit vectors, of which nothing is ever written down.

    Attributes:
        places: (*rest), where the vectors are one.
        signs: (*rest), the signs of those places.
    """

    places: Tensor
    signs: Tensor

    def at(self, index: Tensor) -> Tensor:
        """The coefficients (d,) of all vectors: (d, *rest)."""
        rows = index.view(-1, *[1] * self.places.dim())
        return parity(rows & self.places, self.signs.dtype).mul_(self.signs)


def block(values: Tensor, places: Tensor, signs: Tensor) -> Block:
    """Transforms of vectors that hold `values` (m, *rest) at the places (m,), which differ.

    `signs` are those of all places, (length,).
    """
    low, high = int(places.min()), int(places.max())
    size = 1 << (low ^ high).bit_length()
    start = low // size * size
    signed = signs[places].to(values.dtype).view(-1, *[1] * (values.dim() - 1)) * values
    padded = values.new_zeros(size, *values.shape[1:])
    return Block(transform(padded.index_copy_(0, places - start, signed)), start)
