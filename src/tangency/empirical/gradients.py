"""Per-example gradients of one tensor of parameters, written out or in factors.

All have leading dimensions (b, n): a batch of independent problems of `contraction`, and examples.
`k` counts the combinations of outputs whose gradients they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Explicit", "Factors", "Gradients", "Rows", "add"]


def _single(value: Tensor) -> Tensor:
    """In float32 at least, in which products are accumulated."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


@dataclass(frozen=True)
class Explicit:
    """Gradients written out.

    Attributes:
        values: (b, n, k, size).
    """

    values: Tensor

    @property
    def nbytes(self) -> int:
        """Memory."""
        return self.values.nbytes

    def first(self, n: int) -> Explicit:
        """Those of the first n examples."""
        return Explicit(self.values[:, :n])

    def one_by_one(self) -> Explicit:
        """Each example as a problem of its own: from (1, n) to (n, 1)."""
        return Explicit(self.values.transpose(0, 1))

    def in_single(self) -> Explicit:
        """In float32 at least."""
        return Explicit(_single(self.values))

    def explicit(self) -> Tensor:
        """(b, n, k, size)."""
        return self.values


@dataclass(frozen=True)
class Factors:
    """Gradients of a matrix: J[i, o] = sum_p cotangents[i, o, g, p] inputs[i, g, p]^T, groups g
    one after the other.

    Attributes:
        inputs: what `expand` turns into (b, n, groups, positions, in).
        cotangents: (b, n, k, groups, positions, width).
        transposed: whether the tensor of parameters is laid out as J^T, (groups, in, width).
        expand: gives the windows of a convolution's input, which overlap; None without windows.
    """

    inputs: Tensor
    cotangents: Tensor
    transposed: bool = False
    expand: Callable[[Tensor], Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Memory."""
        return self.inputs.nbytes + self.cotangents.nbytes

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.cotangents.shape[3]

    def expanded(self) -> Tensor:
        """The inputs as (b, n, groups, positions, in)."""
        return self.inputs if self.expand is None else self.expand(self.inputs)

    def first(self, n: int) -> Factors:
        """Those of the first n examples."""
        return replace(self, inputs=self.inputs[:, :n], cotangents=self.cotangents[:, :n])

    def one_by_one(self) -> Factors:
        """Each example as a problem of its own: from (1, n) to (n, 1)."""
        return replace(
            self, inputs=self.inputs.transpose(0, 1), cotangents=self.cotangents.transpose(0, 1)
        )

    def in_single(self) -> Factors:
        """In float32 at least."""
        return replace(self, inputs=_single(self.inputs), cotangents=_single(self.cotangents))

    def explicit(self) -> Tensor:
        """(b, n, k, size), in the layout of the tensor of parameters."""
        k = self.cotangents.shape[2]
        # One matrix for each example and group: (b, n, groups, k * width, positions).
        matrices = self.cotangents.movedim(2, 3).mT.flatten(3, 4)
        gradient = (matrices @ self.expanded()).unflatten(3, (k, -1)).movedim(3, 2)
        arranged: Tensor = gradient.mT if self.transposed else gradient
        return arranged.flatten(3)


@dataclass(frozen=True)
class Rows:
    """Gradients of a table whose rows were looked up: J[i, o] = sum_p e(indices[i, p])
    cotangents[i, o, p]^T, with the unit vectors e.

    Attributes:
        indices: (b, n, positions).
        cotangents: (b, n, k, positions, width).
        rows: number of rows of the table.
    """

    indices: Tensor
    cotangents: Tensor
    rows: int

    @property
    def nbytes(self) -> int:
        """Memory."""
        return self.indices.nbytes + self.cotangents.nbytes

    def first(self, n: int) -> Rows:
        """Those of the first n examples."""
        return replace(self, indices=self.indices[:, :n], cotangents=self.cotangents[:, :n])

    def one_by_one(self) -> Rows:
        """Each example as a problem of its own: from (1, n) to (n, 1)."""
        return replace(
            self, indices=self.indices.transpose(0, 1), cotangents=self.cotangents.transpose(0, 1)
        )

    def in_single(self) -> Rows:
        """In float32 at least."""
        return replace(self, cotangents=_single(self.cotangents))

    def explicit(self) -> Tensor:
        """(b, n, k, size)."""
        b, n, k, _, width = self.cotangents.shape
        table = self.cotangents.new_zeros(b, n, k, self.rows, width)
        index = self.indices[:, :, None, :, None].expand_as(self.cotangents)
        return table.scatter_add_(3, index, self.cotangents).flatten(3)


Gradients: TypeAlias = Explicit | Factors | Rows


def add(terms: list[Gradients]) -> list[Gradients]:
    """Gradients whose sum is that of `terms`, all of one tensor, in as few pieces as products of
    pairs are known for: one, or factors and rows.
    """
    factors = [t for t in terms if isinstance(t, Factors)]
    rows = [t for t in terms if isinstance(t, Rows)]
    merged: list[Gradients] = [*_add_factors(factors), *_add_rows(rows)]
    if len(factors) + len(rows) < len(terms) or not _multiply(merged):
        total = terms[0].explicit()
        for term in terms[1:]:
            total = total + term.explicit()
        return [Explicit(total)]
    return merged


def _multiply(terms: list[Gradients]) -> bool:
    """Whether the products of all pairs are known without writing them out."""
    factors = [t for t in terms if isinstance(t, Factors)]
    plain = not any(f.transposed or f.groups > 1 for f in factors)
    return len(factors) < 2 and (plain or len(terms) == len(factors))


def _add_factors(terms: list[Factors]) -> list[Factors]:
    """Positions one after the other."""
    if len(terms) < 2 or len({(t.transposed, t.groups) for t in terms}) > 1:
        return terms
    inputs = torch.cat([t.expanded() for t in terms], dim=3)
    cotangents = torch.cat([t.cotangents for t in terms], dim=4)
    return [Factors(inputs, cotangents, terms[0].transposed)]


def _add_rows(terms: list[Rows]) -> list[Rows]:
    if len(terms) < 2:
        return terms
    indices = torch.cat([t.indices for t in terms], dim=2)
    return [Rows(indices, torch.cat([t.cotangents for t in terms], dim=3), terms[0].rows)]
