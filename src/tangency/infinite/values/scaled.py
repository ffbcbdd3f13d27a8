"""A value times a vector of parameters along its width: the scale of a normalisation layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from tangency.infinite.layout import Block, Layout
from tangency.infinite.values.value import Value

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Scaled"]


class Scaled(Value):
    """s * u with the entries s_i of a parameter at their present values, independent of u.

    K = mean(s s') K_u, and T = mean(s s') T_u + [same s, trainable] K_u.
    """

    precedence = 3

    def __init__(
        self, source: Value, identity: tuple[object, ...], scale: Tensor, *, trainable: bool
    ) -> None:
        super().__init__(source.positions)
        self.source = source
        self.identity = identity
        self.scale = scale
        self.trainable = trainable

    @property
    def uniform(self) -> bool:
        """Whether all entries of the scale are equal."""
        return bool((self.scale == self.scale[0]).all())

    @property
    def gaussian(self) -> bool:
        return self.uniform and self.source.gaussian

    @property
    def centred(self) -> bool:
        return self.source.centred

    def second_moment(self, side: Side) -> Tensor:
        return side.second_moment(self.source) * float(self.scale.square().mean())

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        return None if mean is None else mean * float(self.scale.mean())

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        if not isinstance(other, Scaled):
            return self._with_source(other, self.scale.mean(), layout, pairs)
        if other.identity != self.identity:
            return self._with_source(
                other.source, (self.scale * other.scale).mean(), layout, pairs, whole=other
            )
        block = pairs.block(self.source, other.source, layout.ties)
        if block is None:
            return None
        ntk = None if block.ntk is None else block.ntk * float(self.scale.square().mean())
        if self.trainable:
            own = pairs.moment(self.source, other.source, block, layout)
            ntk = own if ntk is None else ntk + own
        return Block(block.versine, ntk)

    def _with_source(
        self,
        source: Value,
        factor: Tensor,
        layout: Layout,
        pairs: Pairs,
        *,
        whole: Value | None = None,
    ) -> Block | None:
        block = pairs.block(self.source, source, layout.ties)
        if block is None:
            return None
        moment = pairs.moment(self.source, source, block, layout) * float(factor)
        ntk = None if block.ntk is None else block.ntk * float(factor)
        return pairs.from_moment(self, whole or source, moment, ntk, layout)
