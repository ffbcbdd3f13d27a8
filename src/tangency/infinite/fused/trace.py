"""Records what the rules compute for a covariance at equal positions: the program of one slice.

The rules run on tensors that carry a small example and remember every operation. Views that only
move, add or spread dimensions leave no trace, for a node knows the axes along which it varies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tangency.infinite.fused.graph import Kind, Node, NotFusable, Reduction
from tangency.infinite.fused.operations import IDENTITIES, POINTWISE
from tangency.infinite.fused.resampling import Resampling, Row, unwrapped_rows
from tangency.infinite.values.window import Window, single_sum
from tangency.program.axes import Axis

__all__ = [
    "EXAMPLES",
    "WHOLE",
    "Labels",
    "Traced",
    "Tracer",
    "WindowFound",
    "merged_labels",
    "multiple",
    "reduction",
    "traced",
]

EXAMPLES = (2, 3)
"""Sizes of the batch dimensions of the tensors that are traced."""

Label = Axis | str | None
"""What a dimension is: an axis, a batch ("n1", "n2"), or nothing (of size one)."""

Labels = tuple[Label, ...]


class WindowFound(Exception):
    """A window or a pool where none was expected."""


class Tracer:
    """What one trace remembers: leaves, and which axes were found to be the same.

    Args:
        windows: whether windows are expected; the first one raises `WindowFound` otherwise.
        wraps: whether windows may wrap around; else what they read is padded first.
    """

    def __init__(self, *, windows: bool, wraps: bool = True) -> None:
        self.windows = windows
        self.wraps = wraps
        self._padded: dict[Hashable, Axis] = {}
        self.leaves: dict[tuple[str, Hashable], Node] = {}
        self._same: dict[Axis, Axis] = {}

    def expect_windows(self) -> None:
        """Called where a window is met."""
        if not self.windows:
            raise WindowFound

    def padded(self, window: Window, size: int) -> Axis:
        """The axis of the padded positions that a window reads; one for windows alike."""
        key = (self.representative(window.source), window.geometry)
        return self._padded.setdefault(key, Axis("position", size))

    def representative(self, axis: Axis) -> Axis:
        """The axis that stands for all that were identified with `axis`."""
        while axis in self._same:
            axis = self._same[axis]
        return axis

    def identify(self, a: Axis, b: Axis) -> None:
        """Record that two axes share one dimension (a tie)."""
        a, b = self.representative(a), self.representative(b)
        if a is not b:
            self._same[b] = a

    def leaf(self, kind: str, detail: Hashable, value: Tensor, labels: Labels) -> Traced:
        """The tensor of a leaf, of one node whenever it is asked for."""
        axes = frozenset(a for a in labels if isinstance(a, Axis))
        node = self.leaves.setdefault((kind, detail), Node(kind, value.dtype, axes, detail=detail))
        return traced(value, node, labels, self)


class Traced(Tensor):
    """A tensor that remembers how it was computed."""

    value: Tensor
    node: Node
    labels: Labels
    tracer: Tracer

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in WHOLE:
            return WHOLE[func](*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        values = torch.utils._pytree.tree_map(_value, list(args))
        result = func(*values, **torch.utils._pytree.tree_map(_value, keywords))
        name = func.overloadpacket.__name__
        if name in IDENTITIES:
            return traced(result, args[0].node, args[0].labels, args[0].tracer)
        if name in VIEWS:
            labels = VIEWS[name](args[0], result, *args[1:], **keywords)
            return traced(result, args[0].node, labels, args[0].tracer)
        if name in _FILLS:
            return _filled(name, args, result)
        if name in ("sum", "mean"):
            return _reduced(name, args[0], result, *args[1:], **keywords)
        if name not in POINTWISE or not isinstance(result, Tensor):
            raise NotFusable(f"{func} has no C form")
        return _pointwise(func, args, keywords, result)


def traced(value: Tensor, node: Node, labels: Labels, tracer: Tracer) -> Traced:
    """A traced tensor with the shape and type of `value`."""
    tensor: Traced = torch.Tensor._make_wrapper_subclass(
        Traced, value.shape, dtype=value.dtype, device=value.device
    )
    tensor.value, tensor.node, tensor.labels, tensor.tracer = value, node, labels, tracer
    return tensor


def _value(argument: Any) -> Any:
    return argument.value if isinstance(argument, Traced) else argument


def _pointwise(func: Any, args: Sequence[Any], keywords: dict[str, Any], result: Tensor) -> Traced:
    tensors = [a for a in args if isinstance(a, Traced)]
    tracer = tensors[0].tracer
    labels = merged_labels(tensors, result.dim())
    arguments = tuple(_argument(a) for a in args)
    axes = frozenset(axis for tensor in tensors for axis in tensor.node.axes)
    kept = {k: v for k, v in keywords.items() if k in ("alpha", "dtype")}
    node = Node(Kind.POINTWISE, result.dtype, axes, arguments, func, kept)
    return traced(result, node, labels, tracer)


def merged_labels(tensors: Sequence[Traced], rank: int) -> Labels:
    """Labels of what operands that broadcast give."""
    labels: list[Label] = [None] * rank
    for tensor in tensors:
        _merge(labels, tensor.labels, tensor.tracer)
    return tuple(labels)


def _argument(argument: Any) -> Any:
    if isinstance(argument, Traced):
        return argument.node
    if not isinstance(argument, Tensor):
        return argument
    if argument.requires_grad:
        raise NotFusable("a number with a gradient")
    if argument.numel() != 1:
        raise NotFusable("a tensor that is neither a quantity of a side nor a number")
    return Node(Kind.CONSTANT, argument.dtype, detail=float(argument))


def _merge(labels: list[Label], others: Labels, tracer: Tracer) -> None:
    """Labels of a broadcast result; two axes that meet in one dimension are tied."""
    start = len(labels) - len(others)
    for k, other in enumerate(others, start):
        mine = labels[k]
        if mine is None:
            labels[k] = other
        elif isinstance(mine, Axis) and isinstance(other, Axis):
            tracer.identify(mine, other)
        elif other is not None and other != mine:
            raise NotFusable("a batch that meets a position")


def _filled(name: str, args: Sequence[Any], result: Tensor) -> Traced:
    """A tensor of one number; it varies along no axis."""
    like = args[0]
    if result.numel() and not bool((result == result.flatten()[0]).all()):
        raise NotFusable(f"{name} of several numbers")
    node = Node(Kind.CONSTANT, result.dtype, detail=float(result.flatten()[0]))
    return traced(result, node, (None,) * result.dim(), like.tracer)


_FILLS = frozenset(
    {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "fill"}
)


# -- views -------------------------------------------------------------------------------------


def _permuted(tensor: Traced, result: Tensor, order: Sequence[int]) -> Labels:
    return tuple(tensor.labels[k] for k in order)


def _unsqueezed(tensor: Traced, result: Tensor, dim: int) -> Labels:
    labels = list(tensor.labels)
    labels.insert(dim % result.dim(), None)
    return tuple(labels)


def _reshaped(tensor: Traced, result: Tensor, *_: Any) -> Labels:
    """Dimensions of size one come and go; the others keep their order."""
    pairs = zip(tensor.labels, tensor.shape, strict=True)
    sized = [(label, size) for label, size in pairs if size != 1]
    if [size for _, size in sized] != [size for size in result.shape if size != 1]:
        raise NotFusable("a reshape that joins or splits dimensions")
    rest = iter(label for label, _ in sized)
    return tuple(next(rest) if size != 1 else None for size in result.shape)


def _expanded(tensor: Traced, result: Tensor, *_: Any, **__: Any) -> Labels:
    return (None,) * (result.dim() - tensor.dim()) + tensor.labels


VIEWS: dict[str, Callable[..., Labels]] = {
    "permute": _permuted,
    "unsqueeze": _unsqueezed,
    "view": _reshaped,
    "_unsafe_view": _reshaped,
    "_reshape_alias": _reshaped,
    "squeeze": _reshaped,
    "expand": _expanded,
}


# -- reductions --------------------------------------------------------------------------------


def _reduced(
    name: str, tensor: Traced, result: Tensor, dim: Sequence[int], keepdim: bool = False, **_: Any
) -> Traced:
    """A sum over positions at which left and right are tied."""
    dims = sorted(d % tensor.dim() for d in dim)
    axes = tuple(a for d in dims if isinstance(a := tensor.labels[d], Axis))
    if any(isinstance(tensor.labels[d], str) for d in dims):
        raise NotFusable("a sum over examples")
    count = math.prod(tensor.shape[d] for d in dims)
    repeated = count // math.prod(a.size for a in axes)
    factor = 1 / count if name == "mean" else 1.0
    node = reduction(tensor.node, axes, tensor.tracer)
    kept: list[Label] = [None if d in dims else a for d, a in enumerate(tensor.labels)]
    labels = kept if keepdim else [a for d, a in enumerate(tensor.labels) if d not in dims]
    node = multiple(node, repeated * factor)
    return traced(result, node, tuple(labels), tensor.tracer)


def reduction(node: Node, axes: tuple[Axis, ...], tracer: Tracer) -> Node:
    """The sum of a node over `axes` at equal positions; sums of sums are one."""
    if not axes:
        return node
    if node.kind == Kind.REDUCE and node.detail.weights is None:
        axes = (*node.detail.axes, *axes)
        node = node.arguments[0]
    gone = {tracer.representative(a) for a in axes}
    kept = frozenset(a for a in node.axes if tracer.representative(a) not in gone)
    return Node(Kind.REDUCE, node.dtype, kept, (node,), detail=Reduction(axes))


def multiple(node: Node, factor: float, *, always: bool = False) -> Node:
    """A node times a number; with `always`, a new node even if that is one."""
    if factor == 1.0 and not always:
        return node
    return Node(Kind.POINTWISE, node.dtype, node.axes, (node, factor), torch.ops.aten.mul.Tensor)


# -- windows -----------------------------------------------------------------------------------


def _windowed(values: Traced, dim: int, window: Window) -> Traced:
    """The sum over a window's taps as one node."""
    values.tracer.expect_windows()
    result = single_sum(values.value, dim, window)
    found, tracer = values.labels[dim], values.tracer
    if window.source.size == 1:
        return _from_one_position(values, window, result)
    if found is None:  # the same number at all positions, spread first
        found = window.source
    assert isinstance(found, Axis)
    tracer.identify(found, window.source)
    if window.wraps and not tracer.wraps:
        return _windowed(*_unwrapped(values, dim, window))
    labels = list(values.labels)
    labels[dim] = window.target if window.target.size > 1 else None
    kept = {
        a for a in values.node.axes if tracer.representative(a) is not tracer.representative(found)
    }
    axes = frozenset(kept | {window.target})
    node = Node(Kind.WINDOW, result.dtype, axes, (values.node,), detail=window)
    return traced(result, node, tuple(labels), tracer)


def _unwrapped(values: Traced, dim: int, window: Window) -> tuple[Traced, int, Window]:
    """What a window that wraps reads, padded, and the window that reads it as it is."""
    tracer, labels = values.tracer, list(values.labels)
    whole = (window.target.size - 1) * window.stride + (window.taps - 1) * window.dilation + 1
    padded = tracer.padded(window, whole)
    labels[dim] = padded
    axes = tuple(a for a in values.labels if isinstance(a, Axis))
    targets = tuple(a for a in labels if isinstance(a, Axis))
    if len(axes) != len(targets):
        raise NotFusable("a window around the same number at all positions")
    still: list[tuple[Row, ...]] = [tuple(((k, 1.0),) for k in range(a.size)) for a in axes]
    still[targets.index(padded)] = unwrapped_rows(window, whole)
    detail = Resampling(None, False, axes, targets, tuple(still))
    node = Node(Kind.RESAMPLE, values.dtype, frozenset(targets), (values.node,), detail=detail)
    shape = [padded.size if k == dim else size for k, size in enumerate(values.shape)]
    made = traced(values.value.new_full(shape, 0.5), node, tuple(labels), tracer)
    return made, dim, replace(window, source=padded, padding=0, wraps=False)


def _from_one_position(values: Traced, window: Window, result: Tensor) -> Traced:
    if window.target.size != 1:
        raise NotFusable("a convolution that makes several positions of one")
    reads = [t * window.dilation - window.padding for t in range(window.taps)]
    taps = window.taps if window.wraps else reads.count(0)
    return traced(result, multiple(values.node, float(taps)), values.labels, values.tracer)


WHOLE: dict[Callable[..., Any], Callable[..., Any]] = {single_sum: _windowed}
"""Functions of the rules that are one operation in a graph, and how they are recorded."""
