"""Which entries of which parameter an operation uses: views, slices and multiples of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from tangency.errors import UnsupportedOperation
from tangency.program.axes import shape_of
from tangency.program.operations import base_name
from tangency.program.trace import Trace, location

if TYPE_CHECKING:
    from tangency.program.row_maps import RowMap

__all__ = ["Block", "ParameterUse", "is_view", "parameter_use", "root_of"]

Block: TypeAlias = tuple[range, ...]
"""For every dimension of a parameter the indices that are used."""

_COPIES = frozenset({"clone", "contiguous", "alias", "_to_copy", "to"})
_TRANSPOSES = frozenset({"t", "numpy_T", "transpose", "permute"})
_VIEWS = frozenset(
    {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"}
    | {"select", "slice", "split", "split_with_sizes", "chunk", "unbind", "getitem"}
    | _COPIES
    | _TRANSPOSES
)


@dataclass(frozen=True)
class ParameterUse:
    """A parameter as one site uses it: `factor` times (a block of) the parameter called `name`.

    Attributes:
        name: first qualified name of the parameter.
        factor: number that it is multiplied with before it is used.
        transposed: whether a matrix is used as (in, out) rather than (out, in).
        block: the indices used of every dimension of the *parameter*; None for the whole of it.
            Uses of disjoint blocks are independent; `W[e : 2 * e]` of an (3e, e) matrix has
            `(range(e, 2 * e), range(0, e))`.
        rows: how the rows of a weight are scaled before it is used; None where they are not.
    """

    name: str
    factor: float = 1.0
    transposed: bool = False
    block: Block | None = None
    rows: RowMap | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all parameters that are used: the one called `name`, and gains of its rows."""
        gain = None if self.rows is None else self.rows.gain_name
        return (self.name,) if gain is None else (self.name, gain)


def is_view(node: fx.Node) -> bool:
    """Whether a node shows entries of its first argument, or a multiple of them, and no more."""
    name = base_name(node)
    if name in ("mul", "div"):
        return isinstance(node.args[1], (int, float))
    return name in _VIEWS or name == "neg"


def parameter_use(trace: Trace, node: fx.Node, flip: bool = False) -> ParameterUse:
    """The parameter behind `node`, a chain of views and multiples; `flip`: it is read transposed.

    Raises:
        UnsupportedOperation: the node computes something else with a parameter, repeats entries,
            or takes entries that are not a block.
    """
    chain = _chain(trace, node)
    factor = math.prod((_factor(n) for n in chain), start=1.0)
    source = chain[-1].args[0] if chain else node
    name = trace.parameters[cast(fx.Node, source)]
    if all(_keeps_all(n) for n in chain):
        turned = sum(base_name(n) in _TRANSPOSES and not _is_identity(n) for n in chain) % 2 == 1
        return ParameterUse(name, factor, flip != turned)
    view = _replay(cast(fx.Node, source), chain)
    shape = shape_of(cast(fx.Node, source))
    block = _block(view, shape) if view is not None else None
    if view is None or block is None:
        raise UnsupportedOperation(
            f"{location(node)} computes with a parameter before it meets the data: it repeats "
            "entries or takes entries that are not a block of the parameter."
        )
    turned = _first_is_inner(view)
    whole = all(len(indices) == size for indices, size in zip(block, shape, strict=True))
    return ParameterUse(name, factor, flip != turned, None if whole else block)


def root_of(node: fx.Node) -> fx.Node:
    """The parameter of which `node` is a view or multiple."""
    while node.op != "placeholder":
        node = cast(fx.Node, node.args[0])
    return node


def _chain(trace: Trace, node: fx.Node) -> list[fx.Node]:
    """The nodes from `node` back to the one that reads the parameter."""
    chain: list[fx.Node] = []
    while node not in trace.parameters:
        if not is_view(node):
            raise UnsupportedOperation(
                f"{location(node)} computes with a parameter before it meets the data; "
                "only views, slices, transposes and scalar factors are known."
            )
        chain.append(node)
        node = cast(fx.Node, node.args[0])
    return chain


def _factor(node: fx.Node) -> float:
    name = base_name(node)
    if name == "neg":
        return -1.0
    if name not in ("mul", "div"):
        return 1.0
    number = float(cast(float, node.args[1]))
    return number if name == "mul" else 1 / number


def _keeps_all(node: fx.Node) -> bool:
    """Whether a node keeps the shape, or transposes a matrix."""
    name = base_name(node)
    if name in _TRANSPOSES:
        return len(node.meta["val"].shape) == 2
    return name in _COPIES or name in ("mul", "div", "neg")


def _is_identity(node: fx.Node) -> bool:
    """A permutation of two dimensions that leaves them in order."""
    if base_name(node) in ("t", "numpy_T"):
        return False
    if base_name(node) == "permute":
        return [d % 2 for d in cast(Sequence[int], node.args[1])] == [0, 1]
    first, second = cast("tuple[int, int]", node.args[1:3])
    return first % 2 == second % 2


def _replay(source: fx.Node, chain: list[fx.Node]) -> Tensor | None:
    """The chain of views on a tensor without memory; None if a reshape had to copy."""
    whole = torch.empty(shape_of(source), device="meta")
    view: Any = whole
    for node in reversed(chain):
        if not (base_name(node) in _COPIES or base_name(node) in ("mul", "div", "neg")):
            args, kwargs = map_arg((node.args[1:], node.kwargs), _size)
            view = cast(Any, node.target)(view, *args, **kwargs)
    tensor = cast(Tensor, view)
    shared = tensor.untyped_storage()._cdata == whole.untyped_storage()._cdata
    return tensor if shared else None


def _size(node: fx.Node) -> int:
    """A size in an argument; the free one of the batch is any number above one."""
    value = node.meta["val"]
    return value if isinstance(value, int) else 2


def _block(view: Tensor, shape: tuple[int, ...]) -> Block | None:
    """The indices of every dimension of a contiguous parameter that a strided view takes."""
    strides = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
    start = [view.storage_offset() // s % d for s, d in zip(strides, shape, strict=True)]
    block = [range(s, s + 1) for s in start]
    dims = sorted(zip(view.stride(), view.shape, strict=True), reverse=True)
    for stride, size in dims:
        if size > 1 and not _extend(block, shape, strides, stride, size):
            return None
    return tuple(block)


def _extend(
    block: list[range], shape: tuple[int, ...], strides: list[int], stride: int, size: int
) -> bool:
    """Let `block` also run over `size` steps of `stride`; False where that is no block."""
    k = next((k for k, s in enumerate(strides) if 0 < s <= stride), None)
    if k is None or stride % strides[k]:
        return False
    step = stride // strides[k]
    while size > 1 and k >= 0:
        old = block[k]
        count = size if old[0] + (size - 1) * step < shape[k] else shape[k]
        if size % count or (count < size and (step != 1 or old[0] != 0)):
            return False
        if len(old) > 1 and old.step != count * step:
            return False
        block[k] = range(old[0], old[0] + len(old) * count * step, step)
        size, step, k = size // count, 1, k - 1
    return size == 1


def _first_is_inner(view: Tensor) -> bool:
    """Whether the first dimension runs over inner entries of the parameter than the others."""
    if view.dim() < 2 or view.shape[0] == 1:
        return False
    others = [s for s, n in zip(view.stride()[1:], view.shape[1:], strict=True) if n > 1]
    return bool(others) and view.stride(0) < max(others)
