"""Data: deterministic values with a width of their own."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from tangency.infinite.layout import Block, Layout, Moments, Positions
from tangency.infinite.values.sources import One
from tangency.infinite.values.value import Value

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Concrete", "product_of_means"]


class Concrete(Value):
    """A concrete node whose axes `features` are what a weight contracts, or a width that it shares
    with random values; the moments are means over these axes.
    """

    precedence = 2
    gaussian = False
    centred = False

    def __init__(
        self, node: fx.Node, positions: Positions, features: Positions, start: int, length: int
    ) -> None:
        super().__init__(positions)
        self.node = node
        self.features = features
        self.start = start
        self.length = length

    def array(self, side: Side) -> Tensor:
        """The data, shape `(*positions, n, features)`."""
        return side.features(self.node, self.positions, self.features).narrow(
            -1, self.start, self.length
        )

    def norm(self, side: Side) -> Tensor:
        """Euclidean norm over the features, shape `(*positions, n)`."""
        array = side.quantity(self, "array")
        norm: Tensor = torch.linalg.vector_norm(array, dim=-1, dtype=torch.float64)
        tiny, huge = torch.finfo(norm.dtype).tiny ** 0.5, torch.finfo(norm.dtype).max ** 0.5
        if bool(((norm > tiny) & (norm < huge)).all()):
            return norm
        largest = array.abs().amax(-1).double()  # keeps the squares from under- and overflowing
        scale = torch.where(largest > 0, largest, 1.0)
        scaled: Tensor = torch.linalg.vector_norm(array / scale[..., None], dim=-1)
        return scale * scaled

    def unit(self, side: Side) -> Tensor:
        """The data scaled to norm one over the features; zero rows stay zero."""
        norm, array = side.quantity(self, "norm"), side.quantity(self, "array")
        return array / torch.where(norm > 0, norm, 1.0)[..., None].to(array.dtype)

    def second_moment(self, side: Side) -> Tensor:
        if side.smooth:
            return side.quantity(self, "array").double().square().mean(-1)
        return side.quantity(self, "norm").square() / self.length

    def mean(self, side: Side) -> Tensor | None:
        return side.quantity(self, "array").mean(-1, dtype=torch.float64)

    @property
    def origins(self) -> frozenset[Hashable]:
        return frozenset({"coordinate"})  # all data along a width are read at the same one

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        coordinates = side.draws.coordinates(self.length)
        return side.quantity(self, "array")[..., coordinates].movedim(-1, 0)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        if isinstance(other, Concrete):
            if pairs.smooth:
                return pairs.from_moments(self, other, layout)
            return Block(pairs.angles(self, other, layout), None)
        if isinstance(other, One):
            return product_of_means(self, other, layout, pairs)
        return None

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        if isinstance(other, Concrete):
            return Moments(pairs.products(self, other, layout), None)
        return pairs.from_block(self, other, layout)


def product_of_means(u: Value, v: Value, layout: Layout, pairs: Pairs) -> Block | None:
    """The block of two values that share no randomness: E[u v] = E[u] E[v]."""
    means = pairs.mean("left", u, layout), pairs.mean("right", v, layout)
    if means[0] is None or means[1] is None:
        return None
    return pairs.from_moment(u, v, means[0] * means[1], None, layout)
