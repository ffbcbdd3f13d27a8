"""Depthwise convolutions: every channel has a filter of its own."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Positions
from tangency.infinite.values.embedding import Embedding
from tangency.infinite.values.sources import Scale
from tangency.infinite.values.value import Value, fill, to_positions
from tangency.infinite.values.weight import Weight, WeightInput
from tangency.infinite.values.window import Window
from tangency.program.axes import Axis, size_of

if TYPE_CHECKING:
    from tangency.infinite.side import Side

__all__ = ["Depthwise"]


class Depthwise(Weight):
    """sum_t w_t u(p + t) in every channel, with taps w_t of its own: the number of channels goes to
    infinity, not what one output sees. Of each channel are made `times`, with taps of their own.

    The covariance is that of a convolution, w2 E[u u'] averaged over the taps, exactly. The value
    is no Gaussian but a sum of products of two random numbers.
    """

    gaussian = False

    def __init__(
        self,
        positions: Positions,
        identity: tuple[object, ...],
        scale: Scale,
        value: Value,
        windows: tuple[Window, ...],
        times: int = 1,
    ) -> None:
        source = WeightInput(
            pieces=lambda cuts: ((1.0, value),),
            cuts=frozenset(),
            contracted=(),
            signature=("channel", tuple(window.taps for window in windows)),
            centred=value.centred,
            windows=windows,
        )
        super().__init__(positions, identity, scale, source)
        self.value = value
        self.times = times
        self.taps = _taps(identity, scale, windows)

    @cached_property
    def origins(self) -> frozenset[Hashable]:
        return self.value.origins | self.taps.origins

    @property
    def odd_in(self) -> frozenset[Hashable]:
        return self.taps.origins

    @cached_property
    def bundled(self) -> bool:
        return self.times > 1 or self.value.bundled

    @property
    def parts(self) -> tuple[Value, ...]:
        return self.value, self.taps

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        windows = self.source.windows
        values = to_positions(parts[0], self.value.positions, self._reads)
        for dim, axis in enumerate(self._reads, start=1):
            values = fill(values, dim, axis.size)
        for dim, window in enumerate(windows, start=1):
            values = window.spread(values, dim)
        ones, weights = [1] * (values.dim() - 2), parts[1]
        total = side.number(0.0)
        for taps in _all_taps(windows):
            chosen: tuple[slice | int, ...] = (slice(None), *taps)
            steps = [window.tap(t) for window, t in zip(windows, taps, strict=True)]
            read: tuple[slice, ...] = (slice(None), *steps)
            weight = weights[chosen]  # (S, n)
            spread = weight.reshape(weight.shape[0], *ones, weight.shape[1])
            total = total + spread * values[read]
        return self._without_ones(total)

    def _without_ones(self, values: Tensor) -> Tensor:
        """From `(S, *_makes, n)` to `(S, *positions, n)`."""
        for dim in reversed(range(len(self._makes))):
            if self._makes[dim] not in self.positions:
                values = values.squeeze(1 + dim)
        have = tuple(axis for axis in self._makes if axis in self.positions)
        return to_positions(values, have, self.positions)


def _all_taps(windows: Sequence[Window]) -> Iterator[tuple[int, ...]]:
    """The places within a filter."""
    return itertools.product(*(range(window.taps) for window in windows))


def _taps(identity: Hashable, scale: Scale, windows: tuple[Window, ...]) -> Embedding:
    """The taps as a value over positions of their own."""
    axes = tuple(Axis("position", window.taps) for window in windows)
    count = size_of(axes)
    numbers = torch.arange(count).reshape(*(axis.size for axis in axes), 1)
    one = Scale(scale.forward / count, scale.gradient / count)
    return Embedding(axes, identity, one, lambda side: numbers.to(side.device))
