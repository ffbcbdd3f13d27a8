"""Biases; and the deterministic value one."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from tangency.infinite.layout import Block, Layout
from tangency.infinite.values.value import Value

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["Bias", "One", "Scale"]


@dataclass(frozen=True)
class Scale:
    """Second moments of a parameter: how it acts at initialisation and in the NTK.

    Attributes:
        forward: w2 for a weight (second moment times fan-in) or b2 for a bias.
        gradient: what multiplies E[u u'] of the input (a weight) or one (a bias) in the NTK.
    """

    forward: float | Tensor
    gradient: float | Tensor


class Bias(Value):
    """A zero-mean vector of parameters, the same for all examples and positions.

    It is i.i.d. Gaussian for a bias at initialisation. With `constant`, the entries are given
    numbers whose second moment is `scale.forward`: Gaussian only if they are all zero.
    """

    precedence = 1
    centred = True

    def __init__(
        self, identity: tuple[object, ...], scale: Scale, *, constant: bool = False
    ) -> None:
        super().__init__(())
        self.identity = identity
        self.scale = scale
        self.constant = constant

    @property
    def gaussian(self) -> bool:
        return not self.constant or bool(self.scale.forward == 0.0)

    def second_moment(self, side: Side) -> Tensor:
        return side.full(side.number(self.scale.forward), ())

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        if not isinstance(other, Bias) or other.identity != self.identity:
            return None
        zero = pairs.number(0.0, layout)
        return Block(zero, zero + self.scale.gradient)

    @cached_property
    def origins(self) -> frozenset[Hashable]:
        return frozenset({self.identity})


class One(Value):
    """The deterministic value one on every coordinate."""

    precedence = 0
    gaussian = False
    centred = False

    def __init__(self) -> None:
        super().__init__(())

    def second_moment(self, side: Side) -> Tensor:
        return side.full(side.number(1.0), ())

    def mean(self, side: Side) -> Tensor | None:
        return side.full(side.number(1.0), ())

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        return Block(pairs.number(0.0, layout), None)

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        return side.number(1.0).expand(1, 1)
