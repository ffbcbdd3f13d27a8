"""Windows that slide along a position axis: how a convolution reads its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tangency.infinite.values.value import fill
from tangency.program.axes import Axis

__all__ = ["Window", "joint_sum", "single_sum"]


@dataclass(frozen=True)
class Window:
    """Tap t of output position o reads the input at `o * stride + t * dilation - padding`.

    What lies outside the input counts as zero, or, where the window `wraps`, is what lies at the
    other end. `insert` is the distance that transposed convolutions put between neighbouring
    inputs, with zeros in between. An axis of size one stands for a dimension that has no atom.
    """

    source: Axis
    target: Axis
    taps: int
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    insert: int = 1
    wraps: bool = False

    @property
    def geometry(self) -> tuple[int, ...]:
        """Windows of equal geometry read the same taps at the same position."""
        sizes = self.source.size, self.target.size
        steps = self.taps, self.stride, self.dilation, self.padding, self.insert
        return (*sizes, *steps, self.wraps)

    def spread(self, values: Tensor, dim: int) -> Tensor:
        """`values` with zeros inserted, then padded, wrapped or cropped to what the taps read."""
        whole = fill(values, dim, self.source.size)
        if self.insert > 1:
            shape = list(whole.shape)
            shape[dim] = (shape[dim] - 1) * self.insert + 1
            stuffed = whole.new_zeros(shape)
            stuffed[_index(whole, {dim: slice(None, None, self.insert)})] = whole
            whole = stuffed
        reach = (self.target.size - 1) * self.stride + (self.taps - 1) * self.dilation + 1
        after = reach - whole.shape[dim] - self.padding
        if self.wraps:
            reads = torch.arange(-self.padding, whole.shape[dim] + after, device=values.device)
            return whole.index_select(dim, reads % self.source.size)
        return F.pad(whole, (*(0, 0) * (whole.dim() - 1 - dim), self.padding, after))

    def tap(self, t: int) -> slice:
        """The part of a spread dimension that tap t reads."""
        start = t * self.dilation
        return slice(start, start + (self.target.size - 1) * self.stride + 1, self.stride)


def single_sum(values: Tensor, dim: int, window: Window) -> Tensor:
    """Sum over the taps along one dimension."""
    if has_torch_function_unary(values):  # a traced tensor: one operation, not many slices
        traced: Tensor = handle_torch_function(single_sum, (values,), values, dim, window)
        return traced
    spread = window.spread(values, dim)
    total = spread[_index(spread, {dim: window.tap(0)})]
    for t in range(1, window.taps):
        total = total + spread[_index(spread, {dim: window.tap(t)})]
    return total


def joint_sum(values: Tensor, dims: tuple[int, int], windows: tuple[Window, Window]) -> Tensor:
    """Sum over the taps that two windows have in common, along two dimensions at once."""
    (i, j), (left, right) = dims, windows
    spread = right.spread(left.spread(values, i), j)

    total = spread[_index(spread, {i: left.tap(0), j: right.tap(0)})]
    for t in range(1, left.taps):
        total = total + spread[_index(spread, {i: left.tap(t), j: right.tap(t)})]
    return total


def _index(values: Tensor, parts: Mapping[int, slice]) -> tuple[slice, ...]:
    return tuple(parts.get(dim, slice(None)) for dim in range(values.dim()))
