"""Dropout in training: masks that are drawn anew for every example."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments, Positions
from tangency.infinite.values.value import Value, to_positions
from tangency.program.axes import size_of

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.sampling.draws import Draw, Draws
    from tangency.infinite.side import Side

__all__ = ["Dropped"]


class Dropped(Value):
    """m u / keep with an independent mask m, one with probability `keep` and else zero, for every
    coordinate and example, and for every position along `masked`.

    The covariance is that of u, times 1 / keep where two entries share their mask: those of one
    example at one position. Two examples of different data sets never do, however alike.
    """

    precedence = 2.75
    gaussian = False

    def __init__(self, source: Value, keep: float, identity: Hashable, masked: Positions) -> None:
        super().__init__((*source.positions, *(a for a in masked if a not in source.positions)))
        self.source = source
        self.keep = keep
        self.identity = identity
        self.masked = masked

    @property
    def centred(self) -> bool:
        return self.source.centred

    @cached_property
    def origins(self) -> frozenset[Hashable]:
        return self.source.origins | {self.identity}

    def draw(self, draws: Draws) -> Draw:
        source = draws.of(self.source)
        sizes = [axis.size for axis in self.masked]
        noise = draws.normal(*sizes, draws.side.count)
        bound = torch.special.ndtri(torch.tensor(self.keep, dtype=torch.float64))
        mask = (noise < bound.to(noise.device)) / self.keep
        spread = to_positions(mask, self.masked, self.positions)
        value, tangent = (
            to_positions(part, self.source.positions, self.positions) * spread for part in source
        )
        return source._replace(value=value, tangent=tangent)

    def second_moment(self, side: Side) -> Tensor:
        moment = side.second_moment(self.source) / self.keep
        return side.full(
            to_positions(moment, self.source.positions, self.positions), self.positions
        )

    def mean(self, side: Side) -> Tensor | None:
        mean = side.mean(self.source)
        if mean is None:
            return None
        return side.full(to_positions(mean, self.source.positions, self.positions), self.positions)

    def data_set(self, side: Side) -> Tensor:
        """A number that no other data set in memory has."""
        return side.full(side.number(float(id(side))), ())

    def mask(self, side: Side) -> Tensor:
        """The number of the mask of every entry, `(*positions, n)`."""
        sizes = [axis.size for axis in self.masked]
        places = torch.arange(size_of(self.masked), dtype=torch.float64, device=side.device)
        examples = torch.arange(side.count, dtype=torch.float64, device=side.device)
        numbers = places.reshape(*sizes, 1) + size_of(self.masked) * examples
        return side.full(to_positions(numbers, self.masked, self.positions), self.positions)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        return pairs.from_moments(self, other, layout)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        partner = other.source if isinstance(other, Dropped) else other
        inner = layout.within(self.source.positions, partner.positions)
        found = pairs.moments(self.source, partner, inner.ties)
        if found is None:
            return None
        moment = layout.embed(found.moment, inner)
        ntk = None if found.ntk is None else layout.embed(found.ntk, inner)
        if not isinstance(other, Dropped) or other.identity != self.identity:
            return Moments(moment, ntk)
        gain = torch.where(self._shared(other, layout, pairs), 1 / self.keep, 1.0).double()
        return Moments(moment * gain, None if ntk is None else ntk * gain.to(ntk.dtype))

    def _shared(self, other: Dropped, layout: Layout, pairs: Pairs) -> Tensor:
        """Where two entries have the same mask."""
        alone = layout.within((), ())
        sets = [
            pairs.quantity("left", self, "data_set", layout=alone, wide=True),
            pairs.quantity("right", other, "data_set", layout=alone, wide=True),
        ]
        masks = [
            pairs.quantity("left", self, "mask", layout=layout, wide=True),
            pairs.quantity("right", other, "mask", layout=layout, wide=True),
        ]
        return layout.embed(sets[0] == sets[1], alone) & (masks[0] == masks[1])
