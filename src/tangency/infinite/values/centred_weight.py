"""Weights whose rows sum to zero: they do not see the mean of what they multiply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from tangency.infinite.layout import Layout, Moments
from tangency.infinite.values.value import to_positions
from tangency.infinite.values.weight import Weight
from tangency.infinite.values.window import single_sum

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.side import Side

__all__ = ["CentredWeight"]


class CentredWeight(Weight):
    """W u with W 1 = 0: covariance w2 (E[u u'] - m m'), where m is the mean of u over its width,
    the taps of a window and contracted positions, with zeros where the window lies outside.

    The NTK of u passes through whole: the mean over a width has no tangent in the limit.
    """

    @property
    def by_moments(self) -> bool:
        return True

    def input_mean(self, side: Side) -> Tensor:
        """E[u], averaged over its width, the taps and the contracted positions."""
        total = side.number(0.0).reshape((1,) * (len(self._reads) + 1))
        for fraction, value in self.source.pieces(frozenset()):
            mean = side.mean(value)
            if mean is not None:
                total = total + fraction * to_positions(mean, value.positions, self._reads)
        for dim, window in enumerate(self.source.windows):
            total = single_sum(total, dim, window)
        total = self._contract(total) / self.source.count
        return side.full(self._squeeze(total), self.positions)

    def input_moment(self, side: Side) -> Tensor:
        moment = super().input_moment(side)
        if self.source.centred:
            return moment
        return (moment - side.quantity(self, "input_mean").square()).clamp_min(0)

    def _input_moments(self, other: Weight, layout: Layout, pairs: Pairs) -> Moments | None:
        inputs = super()._input_moments(other, layout, pairs)
        if inputs is None or self.source.centred or other.source.centred:
            return inputs
        left = pairs.quantity("left", self, "input_mean", layout=layout, wide=True)
        right = pairs.quantity("right", other, "input_mean", layout=layout, wide=True)
        return Moments(inputs.moment - left * right, inputs.ntk)
