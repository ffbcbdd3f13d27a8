"""Dropout in training: masks that are drawn anew for every example."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments, Positions
from tangency.infinite.values.copies import Copies
from tangency.infinite.values.value import Value, at_odds, to_positions
from tangency.program.axes import size_of

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.sampling.draw import Draw
    from tangency.infinite.sampling.draws import Draws
    from tangency.infinite.side import Side

__all__ = ["Dropped"]


class Dropped(Value):
    """m u / keep with an independent mask m, one with probability `keep` and else zero, for every
    coordinate and example, and for every position along `masked`.

    The covariance is that of u, times 1 / keep where two entries share their mask: those of one
    example at one position. Two examples of different data sets never do, however alike.
    """

    precedence = 2.8  # what contains attended values expands before them
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

    @property
    def parts(self) -> tuple[Value, ...]:
        return (self.source,)

    def draw(self, draws: Draws) -> Draw:
        source = draws.of(self.source)
        sizes = [axis.size for axis in self.masked]
        noise = draws.normal(self, draws.side.count, *sizes).movedim(1, -1)
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

    def example(self, side: Side) -> Tensor:
        """The number of every example."""
        return torch.arange(side.count, dtype=torch.float64, device=side.device)

    def mask(self, side: Side) -> Tensor:
        """The number of the mask of every entry within its example, `(*positions, n)`."""
        sizes = [axis.size for axis in self.masked]
        places = torch.arange(size_of(self.masked), dtype=torch.float64, device=side.device)
        spread = to_positions(places.reshape(*sizes, 1), self.masked, self.positions)
        return side.full(spread, self.positions)

    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        return pairs.from_moments(self, other, layout)

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        shares = isinstance(other, Dropped) and other.identity == self.identity
        if not shares and self.identity in other.origins and not isinstance(other, Copies):
            return self._inside(other, layout, pairs)
        partner = other.source if isinstance(other, Dropped) and shares else other
        inner = layout.within(self.source.positions, partner.positions)
        found = pairs.moments(self.source, partner, inner.ties)
        if found is None:
            return None
        moment = layout.embed(found.moment, inner)
        ntk = None if found.ntk is None else layout.embed(found.ntk, inner)
        if not isinstance(other, Dropped) or not shares:
            return Moments(moment, ntk)
        gain = torch.where(self._shared(other, layout, pairs), 1 / self.keep, 1.0).double()
        return Moments(moment * gain, None if ntk is None else ntk * gain.to(ntk.dtype))

    def at_odds_with(self, other: Value) -> bool:
        return at_odds(self.source, other.source if isinstance(other, Dropped) else other)

    def _inside(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        """The covariance with what contains this value, which is then the one to expand."""
        there = layout.mirrored
        found = other.moments(self, there, pairs.mirror)
        if found is None:
            return None
        ntk = None if found.ntk is None else layout.embed_mirrored(found.ntk, there)
        return Moments(layout.embed_mirrored(found.moment, there), ntk)

    def _shared(self, other: Dropped, layout: Layout, pairs: Pairs) -> Tensor:
        """Where two entries have the same mask."""
        masks = [
            pairs.quantity("left", self, "mask", layout=layout, wide=True),
            pairs.quantity("right", other, "mask", layout=layout, wide=True),
        ]
        return self.same_example(other, layout, pairs) & (masks[0] == masks[1])

    def same_example(self, other: Dropped, layout: Layout, pairs: Pairs) -> Tensor:
        """Where both entries are of one example of one data set, as they broadcast in a block."""
        alone = layout.within((), ())

        def equal(name: str) -> Tensor:
            left = pairs.quantity("left", self, name, layout=alone, wide=True)
            return left == pairs.quantity("right", other, name, layout=alone, wide=True)

        return layout.embed(equal("data_set") & equal("example"), alone)
