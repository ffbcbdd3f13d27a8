"""The windows of a convolution's input, of which its weight's gradient is made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from tangency.program.geometry import ConvGeometry

__all__ = ["Windows"]


@dataclass(frozen=True)
class Windows:
    """How the windows of a convolution's input are laid out."""

    geometry: ConvGeometry

    @property
    def taps(self) -> int:
        """Entries of a window for each channel."""
        return math.prod(self.geometry.kernel)

    def of(self, values: Tensor) -> Tensor:
        """The windows of (*lead, m, channels, *space), as (*lead, groups, positions, channels of a
        group x taps); the channels may be some of those of one group.
        """
        rank = len(self.geometry.kernel)
        padded = functional.pad(values.flatten(0, -rank - 2), self._amounts())
        groups = padded.unflatten(1, (self.geometry.groups, -1))
        cut = self._cut(groups.unflatten(0, values.shape[: -rank - 1]), -rank)
        lead = cut.dim() - 2 * rank - 3
        out = range(lead + 3, lead + 3 + rank)
        # (*lead, m, groups, channels, *out, *taps) -> (*lead, groups, channels, *taps, m, *out):
        # positions stand last, as in the input, so that whole rows of it are copied.
        kernel = range(out.stop, cut.dim())
        moved = cut.permute(*range(lead), lead + 1, lead + 2, *kernel, lead, *out)
        columns: Tensor = moved.flatten(-rank - 1).flatten(lead + 1, -2)
        return columns.mT

    def in_any_order(self, values: Tensor) -> Tensor:
        """The same, but with the taps of a group before its channels: products of matrices are
        faster with vectors that lie in memory at a stretch, and channels are then copied by rows.
        """
        rank = len(self.geometry.kernel)
        last = values.flatten(0, -rank - 2).movedim(1, -1).contiguous()
        padded = functional.pad(last, [0, 0, *self._amounts()])
        groups = padded.unflatten(-1, (self.geometry.groups, -1))
        cut = self._cut(groups.unflatten(0, values.shape[: -rank - 1]), -rank - 2)
        lead = cut.dim() - 2 * rank - 3
        # (*lead, m, *out, groups, channels, *taps) -> (*lead, groups, m, *out, *taps, channels)
        out, at = range(lead + 1, lead + 1 + rank), lead + 1 + rank
        moved = cut.permute(*range(lead), at, lead, *out, *range(at + 2, cut.dim()), at + 1)
        rows: Tensor = moved.flatten(-rank - 1).flatten(lead + 1, -2)
        return rows

    def _amounts(self) -> list[int]:
        """The padding, last dimension first."""
        pairs = zip(self.geometry.padding_before, self.geometry.padding_after, strict=True)
        return [amount for pair in reversed(list(pairs)) for amount in pair]

    def _cut(self, padded: Tensor, first: int) -> Tensor:
        """A view with the windows along the dimensions of space, of which the `first` is given from
        behind: their numbers stay there, their taps go last.
        """
        geometry = self.geometry
        for taps, stride, step in zip(
            geometry.kernel, geometry.stride, geometry.dilation, strict=True
        ):
            # The next dimension of space always stands in the same place.
            padded = padded.unfold(first, step * (taps - 1) + 1, stride)[..., ::step]
        return padded
