"""Where randomness enters: weights and biases; and the deterministic value one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.errors import UnsupportedOperation
from tangency.infinite.layout import Block, Layout, Positions
from tangency.infinite.values.value import Value, to_positions

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Bias", "One", "Scale", "Weight", "WeightInput"]


@dataclass(frozen=True)
class Scale:
    """Second moments of a parameter: how it acts at initialisation and in the NTK.

    Attributes:
        forward: w2 for a weight (second moment times fan-in) or b2 for a bias.
        gradient: what multiplies E[u u'] of the input (a weight) or one (a bias) in the NTK.
    """

    forward: float
    gradient: float


@dataclass(frozen=True, eq=False)
class WeightInput:
    """What a weight multiplies: pieces of the input's width, averaged over contracted positions.

    Attributes:
        pieces: gives, for a set of cuts of the width, the pieces as (fraction of width, value).
        cuts: where along the width the input changes its nature (a concatenation).
        contracted: position axes that the weight also sums over (flatten, then linear), in order.
        signature: kinds and sizes of the contracted axes in order; equal for two inputs whose
            coordinates meet the same weights.
        centred: whether the input has mean zero (then it is uncorrelated with constants).
    """

    pieces: Callable[[frozenset[int]], tuple[tuple[float, Value], ...]]
    cuts: frozenset[int]
    contracted: Positions
    signature: tuple[object, ...]
    centred: bool


class Weight(Value):
    """W u over i.i.d. rows of W: a zero-mean Gaussian with covariance w2 E[u u']."""

    precedence = 1

    def __init__(
        self,
        positions: Positions,
        identity: tuple[object, ...],
        scale: Scale,
        source: WeightInput,
    ) -> None:
        super().__init__(positions)
        self.identity = identity
        self.scale = scale
        self.source = source

    @property
    def gaussian(self) -> bool:
        return True

    @property
    def centred(self) -> bool:
        return True

    def input_moment(self, side: Side) -> Tensor:
        """E[u^2] of the input, averaged over its width and the contracted positions."""
        total = side.number(0.0)
        for fraction, value in self.source.pieces(frozenset()):
            moment = to_positions(side.second_moment(value), value.positions, self._order)
            total = total + fraction * self._contract(moment)
        return side.full(total, self.positions)

    def input_sd(self, side: Side) -> Tensor:
        """Square root of `input_moment`."""
        return side.quantity(self, "input_moment").sqrt()

    def second_moment(self, side: Side) -> Tensor:
        return self.scale.forward * side.quantity(self, "input_moment")

    def share(self, piece: Value, side: Side) -> Tensor:
        """sd of one piece over sd of the input, shape `(*contracted, *positions, n)`."""
        total = to_positions(side.quantity(self, "input_sd"), self.positions, self._order)
        part = to_positions(side.sd(piece), piece.positions, self._order)
        return torch.where(total > 0, part / torch.where(total > 0, total, 1.0), 0.0)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        if not isinstance(other, Weight) or other.identity != self.identity:
            return None
        versine, ntk = self._input_block(other, layout, pairs)
        left = pairs.quantity("left", self, "input_sd", layout=layout)
        right = pairs.quantity("right", other, "input_sd", layout=layout)
        total = self.scale.gradient * (left * right * (1 - versine))
        if ntk is not None:
            total = total + self.scale.forward * ntk
        return Block(versine, total)

    def _input_block(
        self, other: Weight, layout: Layout, pairs: Pairs
    ) -> tuple[Tensor, Tensor | None]:
        """Versine and NTK of the two inputs, averaged over width pieces and contracted positions.

        With x, y the shares of a piece in the norms of the two inputs, the versine of the whole is
        the mean of x y v + (x - y)^2 / 2: nothing cancels.
        """
        mine, yours = self._pieces_with(other)
        if not mine:
            return 1 + pairs.number(0.0, layout), None
        if len(mine) == 1 and not self.source.contracted:
            u, v = mine[0][1], yours[0][1]
            inner = layout.within(u.positions, v.positions)
            block = pairs.block(u, v, inner.ties)
            if block is None:
                return 1 + pairs.number(0.0, layout), None
            own = None if block.ntk is None else layout.embed(block.ntk, inner)
            return layout.embed(block.versine, inner), own
        ties = frozenset(zip(self.source.contracted, other.source.contracted, strict=True))
        whole = Layout(self._order, other._order, layout.ties | ties)
        versine = pairs.number(0.0, layout)
        ntk: Tensor | None = None
        for (fraction, u), (_, v) in zip(mine, yours, strict=True):
            x = pairs.quantity("left", self, "share", u, layout=whole)
            y = pairs.quantity("right", other, "share", v, layout=whole)
            inner = whole.within(u.positions, v.positions)
            block = pairs.block(u, v, inner.ties)
            apart = 0.5 * (x - y).square()
            if block is None:
                versine = versine + fraction * self._contract(apart + x * y)
                continue
            angle = whole.embed(block.versine, inner)
            versine = versine + fraction * self._contract(apart + x * y * angle)
            if block.ntk is not None:
                part = fraction * self._contract(whole.embed(block.ntk, inner))
                ntk = part if ntk is None else ntk + part
        return versine, ntk

    def _pieces_with(
        self, other: Weight
    ) -> tuple[Sequence[tuple[float, Value]], Sequence[tuple[float, Value]]]:
        """Pieces of both inputs over the same cuts; none where the inputs are uncorrelated."""
        if self.source.signature != other.source.signature:
            if self.source.centred or other.source.centred:
                return (), ()
            raise UnsupportedOperation(
                f"the weight {self.identity[0]} multiplies inputs laid out as "
                f"{self.source.signature} and {other.source.signature}: give it one layout."
            )
        cuts = self.source.cuts | other.source.cuts
        return self.source.pieces(cuts), other.source.pieces(cuts)

    @property
    def _order(self) -> Positions:
        return (*self.source.contracted, *self.positions)

    def _contract(self, values: Tensor) -> Tensor:
        """Mean over the contracted positions, which come first."""
        count = len(self.source.contracted)
        return values.mean(dim=tuple(range(count))) if count else values


class Bias(Value):
    """A zero-mean vector of parameters, the same for all examples and positions.

    It is i.i.d. Gaussian for a bias at initialisation. With `constant`, the entries are given
    numbers whose second moment is `scale.forward`: Gaussian only if they are all zero.
    """

    precedence = 1

    def __init__(
        self, identity: tuple[object, ...], scale: Scale, *, constant: bool = False
    ) -> None:
        super().__init__(())
        self.identity = identity
        self.scale = scale
        self.constant = constant

    @property
    def gaussian(self) -> bool:
        return not self.constant or self.scale.forward == 0.0

    @property
    def centred(self) -> bool:
        return True

    def second_moment(self, side: Side) -> Tensor:
        return side.full(side.number(self.scale.forward), ())

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        if not isinstance(other, Bias) or other.identity != self.identity:
            return None
        zero = pairs.number(0.0, layout)
        return Block(zero, zero + self.scale.gradient)


class One(Value):
    """The deterministic value one on every coordinate."""

    precedence = 0

    def __init__(self) -> None:
        super().__init__(())

    @property
    def gaussian(self) -> bool:
        return False

    @property
    def centred(self) -> bool:
        return False

    def second_moment(self, side: Side) -> Tensor:
        return side.full(side.number(1.0), ())

    def mean(self, side: Side) -> Tensor | None:
        return side.full(side.number(1.0), ())

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        return Block(pairs.number(0.0, layout), None)
