"""Per-example gradients of one tensor of parameters, written out or in factors.

All have leading dimensions (b, n): a batch of independent problems of `contraction`, and examples.
`k` counts the combinations of outputs whose gradients they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tangency.empirical.windows import Windows
from tangency.matrices import each_product

__all__ = ["Explicit", "Factors", "Gradients", "Rows", "add", "room", "write"]


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
    def lead(self) -> tuple[int, int, int]:
        """b, n and k."""
        b, n, k = self.values.shape[:3]
        return b, n, k

    def part(self, examples: slice) -> Explicit:
        """Those of some examples."""
        return Explicit(self.values[:, examples])

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
        inputs: (b, n, groups, positions, in); with `windows`, the input of a convolution,
            (b, n, m, channels, *space), of which those are the windows.
        cotangents: (b, n, k, groups, positions, width).
        transposed: whether the tensor of parameters is laid out as J^T, (groups, in, width).
        windows: lays out windows, which overlap; None where the inputs are as they are.
    """

    inputs: Tensor
    cotangents: Tensor
    transposed: bool = False
    windows: Windows | None = None

    @property
    def lead(self) -> tuple[int, int, int]:
        """b, n and k."""
        b, n, k = self.cotangents.shape[:3]
        return b, n, k

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.cotangents.shape[3]

    @property
    def inputs_length(self) -> int:
        """Length of the vector at a place."""
        if self.windows is None:
            return self.inputs.shape[-1]
        return self.inputs.shape[3] // self.groups * self.windows.taps

    def expanded(self) -> Tensor:
        """The inputs as (b, n, groups, positions, in)."""
        return self.inputs if self.windows is None else self.windows.of(self.inputs)

    def by_group(self) -> Tensor:
        """The inputs with a problem for each group, (b * groups, n, positions, in), entries in any
        order.
        """
        windows = self.windows
        inputs = self.inputs if windows is None else windows.in_any_order(self.inputs)
        return inputs.movedim(2, 1).flatten(0, 1)

    def cotangents_by_group(self) -> Tensor:
        """The cotangents with a problem for each group, (b * groups, n, k, positions, width)."""
        return self.cotangents.movedim(3, 1).flatten(0, 1)

    def slices(self, length: int) -> Iterator[Tensor]:
        """The inputs as (b, n, positions, some of in), entries in any order, at most `length` (or
        one channel) at a time, in nearly equal parts; for one group.
        """
        windows = self.windows
        whole = self.inputs[:, :, 0] if windows is None else self.inputs
        dim, each = (-1, length) if windows is None else (3, max(1, length // windows.taps))
        for part in whole.tensor_split(-(-whole.shape[dim] // each), dim):
            yield part if windows is None else windows.in_any_order(part)[:, :, 0]

    def part(self, examples: slice) -> Factors:
        """Those of some examples."""
        return replace(
            self, inputs=self.inputs[:, examples], cotangents=self.cotangents[:, examples]
        )

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
        products = each_product(matrices.flatten(0, 2), self.expanded().mT.flatten(0, 2))
        lead = matrices.shape[:3]
        gradient = products.unflatten(0, lead).unflatten(3, (k, -1)).movedim(3, 2)
        arranged: Tensor = gradient.mT if self.transposed else gradient
        return arranged.flatten(3)


@dataclass(frozen=True)
class Rows:
    """Gradients of a table whose rows were looked up: J[i, o] = sum_p e(indices[i, g, p])
    cotangents[i, o, g, p]^T, with the unit vectors e; groups g of columns stand side by side.

    Attributes:
        indices: (b, n, groups, positions).
        cotangents: (b, n, k, groups, positions, width).
        rows: number of rows of the table.
    """

    indices: Tensor
    cotangents: Tensor
    rows: int

    @property
    def lead(self) -> tuple[int, int, int]:
        """b, n and k."""
        b, n, k = self.cotangents.shape[:3]
        return b, n, k

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.cotangents.shape[3]

    def by_group(self) -> Tensor:
        """The indices with a problem for each group, (b * groups, n, positions)."""
        return self.indices.movedim(2, 1).flatten(0, 1)

    def cotangents_by_group(self) -> Tensor:
        """The cotangents with a problem for each group, (b * groups, n, k, positions, width)."""
        return self.cotangents.movedim(3, 1).flatten(0, 1)

    def in_groups(self, groups: int) -> Rows:
        """The same with so many groups, where there is one or as many already."""
        if self.groups == groups:
            return self
        cotangents = self.cotangents[:, :, :, 0].unflatten(-1, (groups, -1)).transpose(3, 4)
        return replace(self, indices=self.indices.expand(-1, -1, groups, -1), cotangents=cotangents)

    def part(self, examples: slice) -> Rows:
        """Those of some examples."""
        return replace(
            self, indices=self.indices[:, examples], cotangents=self.cotangents[:, examples]
        )

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
        b, n, k, groups, _, width = self.cotangents.shape
        table = self.cotangents.new_zeros(b, n, k, self.rows, groups, width)
        cotangents = self.cotangents.transpose(3, 4)
        index = self.indices.transpose(2, 3)[:, :, None, ..., None].expand_as(cotangents)
        return table.scatter_add_(3, index, cotangents).flatten(3)


Gradients: TypeAlias = Explicit | Factors | Rows


def room(like: Gradients, n: int) -> Gradients:
    """Memory for the gradients of `n` examples, laid out as those of some of them."""
    tensors: dict[str, Any] = {name: _empty(v, n) for name, v in _tensors(like).items()}
    return replace(like, **tensors)


def write(into: Gradients, examples: slice, values: Gradients) -> None:
    """Write the gradients of some examples into their place."""
    given = _tensors(values)
    for name, tensor in _tensors(into).items():
        tensor[:, examples].copy_(given[name])


def _tensors(gradients: Gradients) -> dict[str, Tensor]:
    values = {field.name: getattr(gradients, field.name) for field in fields(gradients)}
    return {name: v for name, v in values.items() if isinstance(v, Tensor)}


def _empty(like: Tensor, n: int) -> Tensor:
    """(b, n, *shape), with the dimensions of one example in the order in memory that they have."""
    each = torch.empty_like(like[0, 0])
    size = (like.shape[0], n, *each.shape)
    strides = (n * each.numel(), each.numel(), *each.stride())
    return torch.empty_strided(size, strides, dtype=like.dtype, device=like.device)


def add(terms: list[Gradients]) -> list[Gradients]:
    """Gradients whose sum is that of `terms`, all of one tensor, in as few pieces as products of
    pairs are known for: one, or factors and rows.
    """
    factors = [t for t in terms if isinstance(t, Factors)]
    rows = [t for t in terms if isinstance(t, Rows)]
    merged: list[Factors | Rows] = [*_add_factors(factors), *_add_rows(rows)]
    if len(factors) + len(rows) < len(terms) or not _multiply(merged):
        total = terms[0].explicit()
        for term in terms[1:]:
            total = total + term.explicit()
        return [Explicit(total)]
    return [*merged]


def _multiply(terms: list[Factors | Rows]) -> bool:
    """Whether the products of all pairs are known without writing them out."""
    if len(terms) == 1:
        return True
    factors = [t for t in terms if isinstance(t, Factors)]
    grouped = any(t.groups > 1 for t in terms)
    return len(factors) == 1 and not factors[0].transposed and not grouped


def _add_factors(terms: list[Factors]) -> list[Factors]:
    """Positions one after the other."""
    if len(terms) < 2 or len({(t.transposed, t.groups) for t in terms}) > 1:
        return terms
    inputs = torch.cat([t.expanded() for t in terms], dim=3)
    cotangents = torch.cat([t.cotangents for t in terms], dim=4)
    return [Factors(inputs, cotangents, terms[0].transposed)]


def _add_rows(terms: list[Rows]) -> list[Rows]:
    """Positions one after the other."""
    if len(terms) < 2:
        return terms
    groups = max(t.groups for t in terms)
    alike = [t.in_groups(groups) for t in terms]
    indices = torch.cat([t.indices for t in alike], dim=3)
    return [Rows(indices, torch.cat([t.cotangents for t in alike], dim=4), terms[0].rows)]
