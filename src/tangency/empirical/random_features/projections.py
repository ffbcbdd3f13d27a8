"""Random features of the empirical NTK: two-sided projections of per-example gradients.

The gradient of a weight at one place is an outer product g_p a_p^T, and so is a projection of it:
feature r is sum_p (R_r . g_p)(S_r . a_p) / sqrt(dim), with random signs R_r for rows and S_r for
columns. Because E[R_r R_r^T] = 1 and E[S_r S_r^T] = 1, products of features are unbiased,

    E[phi(x) . phi(x')] = sum_pp' (g_p . g'_p')(a_p . a'_p') = <J, J'>,

with the cross terms of all uses of a weight, to which the same signs apply. The signs of different
parameters are independent: what their features have in common vanishes in expectation.

R_r and S_r are rows of Hadamard matrices with random signs of their columns, and the pairs of rows
are drawn without replacement (TensorSRHT: Ahle et al., 2020, definition 15), with a random sign
for each feature of each parameter. All coefficients of a vector cost one fast transform; features
that are as many as there are pairs hold the parameter's part of the kernel exactly. Over parameters
l and m, with N_l pairs and
f_l = r (N_l - r) / ((N_l - 1) dim) <= 1 for r = dim mod N_l,

    dim Var[phi . phi'] = sum_{l != m} (|J_l|^2 |J'_m|^2 + <J_l, J'_l> <J_m, J'_m>)
                          + sum_l f_l (E[(R^T J_l S)^2 (R^T J'_l S)^2] - <J_l, J'_l>^2),

as for independent signs where f_l = 1. Signs are the best choice, for in
E[(R . u)^2 (R . v)^2] = |u|^2 |v|^2 + 2 (u . v)^2 - 2 sum_i u_i^2 v_i^2 Gaussian entries lack the
last term. Without it, R and S one after the other give at most 1 + 2 c^2 + 6 times
|J_l|^2 |J'_l|^2, with the cosine c of J_l and J'_l, and so

    Var[phi . phi'] <= (|J|^2 |J'|^2 + <J, J'>^2 + 6 sum_l |J_l|^2 |J'_l|^2) / dim.

A dense Gaussian projection of gradients that are written out has the first two of these terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from tangency import examples, tiles
from tangency.empirical.costs import WORKING_SET
from tangency.empirical.entries import real_shape
from tangency.empirical.gradients import Factors, Gradients, Rows
from tangency.empirical.random_features.hadamard import (
    Block,
    Coefficients,
    UnitVectors,
    block,
    next_power,
    parity,
)
from tangency.empirical.random_features.placement import Place, Sides, matrix_shape, placed
from tangency.empirical.subject import Prepared

__all__ = ["Projection", "random_features"]

COPIES = 4
"""How often values exist while they are transformed: moved, padded, before and after."""


def random_features(prepared: Prepared, *, dim: int, seed: int, memory: int) -> Tensor:
    """Features of `x1`, for the k outputs that count.

    Shape (n, dim) for "trace", the mean over outputs, else (n, k, dim). Gradients of the
    examples that pass the network together, and what is made of them, take about `memory` bytes.
    """
    engine, x, cotangents = prepared.engine, prepared.x1, prepared.cotangents
    n, k, layout = examples.count(x), len(cotangents), prepared.layout
    outputs = k if layout == "trace" else 1
    dtype = torch.promote_types(cotangents.dtype, torch.float32)
    parameters = engine.parameters
    found = placed(engine, parameters, cotangents.device)
    projections = {
        name: Projection.drawn(
            name, real_shape(parameters[name]), outputs, dim, seed, like=cotangents
        )
        for name in found
        if parameters[name].numel()
    }
    work = prepared.work
    each = max(1, 2 * (work.pass_bytes + work.held_bytes))
    room = max(1, min(WORKING_SET, memory // 16))
    # Channels in groups have small matrices: often smaller than what they are made of.
    small = frozenset(
        t for t in work.counted if t.groups > 1 and t.written_bytes(k) <= t.held_bytes(k)
    )
    result = cotangents.new_empty(n, k // outputs, dim)
    with tiles.progress("random features", n) as advance:
        for batch in _slices(n, memory // each):
            gradients = engine.features(examples.take(x, batch), cotangents, small).gradients
            size = batch.stop - batch.start
            total = torch.zeros(dim, size, k // outputs, dtype=dtype, device=cotangents.device)
            for name, projection in projections.items():
                projection.add_to(total, gradients[name], found[name], room)
            result[batch] = total.movedim(0, -1) * (outputs * dim) ** -0.5
            advance(size)
    return result[:, 0] if layout == "trace" else result


def _slices(n: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(i, min(n, i + size)) for i in range(0, n, size))


# -- vectors of one side ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Written:
    """Vectors that hold values at some of the places.

    Attributes:
        values: (n, k, positions, m).
        places: (m,), which differ.
    """

    values: Tensor
    places: Tensor

    def coefficients(self, signs: Tensor, start: int = 0) -> Block:
        """Of (n, k, positions) vectors whose places begin at `start`."""
        return block(self.values.permute(3, 0, 1, 2), self.places + start, signs)

    def joined(self, signs: Tensor, stride: int) -> Block:
        """Of (n, 1, positions) vectors that hold those of all outputs, `stride` places apart."""
        k = self.values.shape[1]
        starts = stride * torch.arange(k, device=self.places.device)
        places = (starts[:, None] + self.places).flatten()
        return block(self.values.permute(1, 3, 0, 2).flatten(0, 1)[:, :, None], places, signs)


@dataclass(frozen=True)
class _Chosen:
    """Unit vectors.

    Attributes:
        places: (n, 1, positions), where they are one.
    """

    places: Tensor

    def coefficients(self, signs: Tensor, start: int = 0) -> UnitVectors:
        """Of (n, 1, positions) vectors whose places begin at `start`."""
        return UnitVectors(self.places + start, signs[self.places + start])


_Vectors: TypeAlias = _Written | _Chosen


# -- one parameter ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Projection:
    """Random directions in the space of one parameter, seen as a matrix.

    It depends on the seed, and on the name and the shape of the parameter, and not on the form in
    which a gradient comes: written out or in factors, whole or in pieces.

    Attributes:
        shape: of the parameter as a matrix.
        outputs: how many outputs the space comprises; their matrices stand below one another.
        stride: rows from the matrix of one output to the next, a power of two.
        row_signs: (outputs * stride,).
        column_signs: (columns,), padded to a power of two.
        row_index, column_index: (dim,), the pairs of coefficients that are features.
        signs: (dim,), of the features.
    """

    shape: tuple[int, int]
    outputs: int
    stride: int
    row_signs: Tensor
    column_signs: Tensor
    row_index: Tensor
    column_index: Tensor
    signs: Tensor

    @classmethod
    def drawn(
        cls, name: str, shape: torch.Size, outputs: int, dim: int, seed: int, like: Tensor
    ) -> Projection:
        """The one for parameter `name` and `seed`; on the device of `like`, in float32 at least."""
        # NumPy's own generator: the same numbers for all devices, and no global state.
        generator = np.random.default_rng([seed, *name.encode()])
        dtype = torch.promote_types(like.dtype, torch.float32)
        rows, columns = map(next_power, matrix_shape(shape))

        def signs(count: int) -> Tensor:
            drawn = torch.from_numpy(generator.integers(0, 2, count, dtype=np.int8))
            return 1 - 2 * drawn.to(like.device, dtype)

        row_signs, column_signs, feature_signs = signs(outputs * rows), signs(columns), signs(dim)
        pairs = next_power(outputs) * rows * columns
        whole, rest = divmod(dim, pairs)
        chosen = generator.choice(pairs, rest, replace=False)
        index = torch.from_numpy(np.concatenate([np.arange(whole * pairs) % pairs, chosen]))
        index = index.to(like.device)
        above, beside = index // columns, index % columns
        sides = row_signs, column_signs, above, beside
        return cls(matrix_shape(shape), outputs, rows, *sides, feature_signs)

    def add_to(
        self,
        features: Tensor,
        gradients: Sequence[Sequence[Gradients]],
        places: Sequence[Place],
        room: int,
    ) -> None:
        """Add those of the gradients of n examples, times sqrt(outputs * dim).

        Args:
            features: (dim, n, k), with k = 1 where outputs are projected together.
            gradients: for each piece of the parameter, the terms of its gradients; one problem,
                b = 1.
            places: where in the parameter the pieces lie.
            room: bytes of an intermediate.
        """
        for terms, place in zip(gradients, places, strict=True):
            for term in terms:
                self._add_term(features, term, place, room)

    def _add_term(self, features: Tensor, term: Gradients, place: Place, room: int) -> None:
        if isinstance(term, Factors) and place.sides is not None:
            self._factors(features, term, place.sides, room)
        elif isinstance(term, Rows) and term.groups == 1 and place.sides is not None:
            self._rows(features, term, place.sides, room)
        else:
            self._explicit(features, term, place, room)

    def _factors(self, features: Tensor, term: Factors, at: Sides, room: int) -> None:
        _, n, k, groups, positions, width = term.cotangents.shape
        each = COPIES * groups * (k * width + term.inputs_length) * features.element_size()
        down = at.down.view(groups, -1)
        for some in _slices(n, room // (each * positions)):
            part = term.part(some)
            inputs, cotangents = part.expanded()[0][:, None], part.cotangents[0]
            # Features are sums over positions: an example may come in parts.
            for p in _slices(positions, room // each):
                for g in range(groups):
                    a, b = inputs[:, :, g, p], cotangents[:, :, g, p]
                    first, second = (a, b) if term.transposed else (b, a)
                    rows, columns = _Written(first, down[g]), _Written(second, at.along)
                    self._add(features[:, some], rows, columns, at.transposed, room)

    def _rows(self, features: Tensor, term: Rows, at: Sides, room: int) -> None:
        _, n, k, _, positions, width = term.cotangents.shape
        each = COPIES * positions * k * width * features.element_size()
        for some in _slices(n, room // each):
            part = term.part(some)
            rows = _Chosen(at.down[part.indices[0]])
            columns = _Written(part.cotangents[0, :, :, 0], at.along)
            self._add(features[:, some], rows, columns, at.transposed, room)

    def _explicit(self, features: Tensor, term: Gradients, place: Place, room: int) -> None:
        _, n, k = term.lead
        pairs = self.stride * len(self.column_signs)
        for some in _slices(n, room // (COPIES * k * pairs * features.element_size())):
            values = term.part(some).explicit()[0]
            matrix, rows, columns = _as_matrix(values, place, self.shape)
            # The columns stand for positions while the rows are transformed, and then in turn.
            vectors = _Written(matrix.mT, rows)
            if self.outputs == 1:
                left = vectors.coefficients(self.row_signs)
            else:
                left = vectors.joined(self.row_signs, self.stride)
            right = block(left.values.movedim(-1, 0), columns, self.column_signs)
            features[:, some] += self._picked(left, right)

    def _picked(self, left: Block, right: Block) -> Tensor:
        """The pairs of coefficients (columns, rows, n, k) that are features: (dim, n, k)."""
        columns, rows = right.values.shape[:2]
        index = (self.column_index & (columns - 1)) * rows + (self.row_index & (rows - 1))
        picked = right.values.flatten(0, 1).index_select(0, index)
        dtype = picked.dtype
        above = parity(self.row_index & left.start, dtype)
        beside = parity(self.column_index & right.start, dtype)
        return picked * (above * beside * self.signs)[:, None, None]

    def _add(
        self, features: Tensor, down: _Vectors, along: _Written, transposed: bool, room: int
    ) -> None:
        """Products of coefficients of a piece's rows and columns, summed over positions."""
        dim, n, k = features.shape
        positions = along.values.shape[2]
        step = room // (COPIES * n * k * positions * features.element_size())
        first, second = (along, down) if transposed else (down, along)
        for left, right in self._sides(first, second):
            for part in _slices(dim, step):
                products = left.at(self.row_index[part]) * right.at(self.column_index[part])
                features[part] += products.sum(-1) * self.signs[part, None, None]

    def _sides(
        self, rows: _Vectors, columns: _Vectors
    ) -> Iterator[tuple[Coefficients, Coefficients]]:
        """Coefficients of (n, k, positions) vectors whose products are to be added."""
        if self.outputs == 1:
            yield rows.coefficients(self.row_signs), columns.coefficients(self.column_signs)
        elif isinstance(rows, _Written) and rows.values.shape[1] == self.outputs:
            yield (
                rows.joined(self.row_signs, self.stride),
                columns.coefficients(self.column_signs),
            )
        else:
            assert isinstance(columns, _Written), "one of the sides has the outputs"
            for o in range(self.outputs):
                of_output = _Written(columns.values[:, o, None], columns.places)
                yield (
                    rows.coefficients(self.row_signs, o * self.stride),
                    of_output.coefficients(self.column_signs),
                )


def _as_matrix(
    values: Tensor, place: Place, shape: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (n, k, size) as matrices (n, k, rows, columns), and which of the parameter's rows
    and columns those are.
    """
    at = place.sides
    if at is not None:
        matrix = values.unflatten(-1, (len(at.down), len(at.along)))
        return (matrix.mT, at.along, at.down) if at.transposed else (matrix, at.down, at.along)
    whole = values.new_zeros(*values.shape[:-1], shape[0] * shape[1])
    whole[..., place.entries] = values
    rows, columns = (torch.arange(size, device=values.device) for size in shape)
    return whole.unflatten(-1, shape), rows, columns
