"""Sparse matrices as dense ones while a module is recorded.

`torch.export` cannot record operations on sparse tensors. A kernel needs all pairs of the nodes of
a graph anyway, so a dense adjacency costs it no more: sparse tensors that a module holds or makes
are replaced by dense ones, and sparse operations by those that compute the same of dense tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from tangency.errors import UnsupportedOperation

__all__ = ["SparseAsDense", "dense", "dense_tensors", "is_sparse"]

MOST = 1 << 24
"""Entries of a dense matrix (of 4096 nodes) that replaces a sparse one."""


def is_sparse(value: object) -> bool:
    """Whether a value is a tensor of any sparse layout."""
    return isinstance(value, Tensor) and value.layout is not torch.strided


def dense(tensor: Tensor, what: str = "a sparse tensor") -> Tensor:
    """A sparse tensor as a dense one.

    Raises:
        UnsupportedOperation: it would be too large; `what` says which tensor it is.
    """
    if math.prod(tensor.shape) > MOST:
        raise UnsupportedOperation(
            f"{what} of shape {tuple(tensor.shape)} is recorded as a dense one, which may have "
            f"{MOST} entries: a limit kernel holds all pairs of positions. Ask for a smaller "
            "graph. EmpiricalKernel runs the module itself."
        )
    return tensor.to_dense()


@contextmanager
def dense_tensors(model: nn.Module) -> Iterator[bool]:
    """Put dense tensors in place of the sparse buffers and attributes of `model`, and them back.

    Gives whether there are any.
    """
    found = [
        (held, name, value, f"{path}.{name}".removeprefix("."))
        for path, module in model.named_modules()
        for held in (module._buffers, vars(module))
        for name, value in held.items()
        if is_sparse(value)
    ]
    made = {id(value): dense(value, f"the sparse tensor '{path}'") for _, _, value, path in found}
    try:
        for held, name, value, _ in found:
            held[name] = made[id(value)]
        yield bool(found)
    finally:
        for held, name, value, _ in found:
            held[name] = value


class SparseAsDense(TorchFunctionMode):
    """Within it, sparse operations act on dense tensors, and nothing sparse is made."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = args, dict(kwargs or {})
        if any(map(is_sparse, pytree.tree_leaves(given))):
            given = pytree.tree_map(lambda x: self._dense(x) if is_sparse(x) else x, given)
        function = _DENSE.get(getattr(func, "__name__", ""), func)
        return function(*given[0], **given[1])

    def _dense(self, tensor: Tensor) -> Tensor:
        """The same dense constant for every use of a tensor."""
        if id(tensor) not in self._known:
            with _disable_current_modes():
                self._known[id(tensor)] = tensor, dense(tensor)
        return self._known[id(tensor)][1]


def _itself(tensor: Tensor, *layout: object, **options: object) -> Tensor:
    return tensor


def _converted(tensor: Tensor, dtype: torch.dtype | None = None, **options: object) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def _product(left: Tensor, right: Tensor, reduce: str = "sum") -> Tensor:
    if reduce != "sum":
        raise UnsupportedOperation(
            f'torch.sparse.mm with reduce="{reduce}" has no rule for a limit kernel; only sums '
            "along the edges have. EmpiricalKernel needs no rules."
        )
    return torch.mm(left, right)


def _sum_and_product(
    summand: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """`addmm` in operations that need no weight among the factors."""
    product = torch.mm(left, right)
    first = summand if beta == 1 else summand * beta
    return first + (product if alpha == 1 else product * alpha)


def _total(tensor: Tensor, dim: Any = None, dtype: torch.dtype | None = None) -> Tensor:
    return torch.sum(tensor, dtype=dtype) if dim is None else torch.sum(tensor, dim, dtype=dtype)


def _coordinates(
    indices: Any, values: Any, size: Any = None, *, dtype: Any = None, device: Any = None, **_: Any
) -> Tensor:
    """`torch.sparse_coo_tensor` as a dense tensor; entries of equal indices add up."""
    if size is None:
        raise UnsupportedOperation(
            "torch.sparse_coo_tensor without a size takes it from the values of the indices, which "
            "cannot be recorded: pass the size."
        )
    values = torch.as_tensor(values, dtype=dtype, device=device)
    places = tuple(torch.as_tensor(indices, device=values.device).unbind(0))
    made: Tensor = values.new_zeros(tuple(size)).index_put(places, values, accumulate=True)
    return made


_DENSE: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("_sparse_mm", "sparse_mm", "smm", "spmm", "hspmm"), _product),
    **dict.fromkeys(("_sparse_addmm", "sparse_addmm", "sspaddmm", "addmm"), _sum_and_product),
    **dict.fromkeys(("_sparse_sum", "sparse_sum"), _total),
    **dict.fromkeys(("coalesce", "to_sparse", "to_sparse_coo"), _itself),
    **{f"to_sparse_{layout}": _itself for layout in ("csr", "csc", "bsr", "bsc")},
    "to_dense": _converted,
    "is_coalesced": lambda tensor: True,
    "sparse_coo_tensor": _coordinates,
}
"""What computes the same of dense tensors, by the name of the sparse operation."""
