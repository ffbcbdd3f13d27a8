"""Operations that are written with simpler ones before anything else reads the graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tangency.program import recurrent
from tangency.program.einsum import einsum
from tangency.program.operations import argument, base_name

__all__ = ["TABLE", "decompositions"]

_aten = torch.ops.aten


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    values, gates = x.chunk(2, dim)
    return values * gates.sigmoid()


def _repeat(x: Tensor, repeats: Sequence[int]) -> Tensor:
    """Copies side by side, dimension by dimension."""
    x = x.reshape((1,) * (len(repeats) - x.dim()) + tuple(x.shape))
    for dim, count in enumerate(repeats):
        if count != 1:
            x = torch.cat([x] * count, dim)
    return x


def _tile(x: Tensor, dims: Sequence[int]) -> Tensor:
    return _repeat(x, (1,) * (x.dim() - len(dims)) + tuple(dims))


def _repeat_interleave(
    x: Tensor, repeats: int, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    if dim is None:
        x, dim = x.flatten(), 0
    index = torch.arange(int(x.shape[dim]) * repeats, device=x.device) // repeats
    return x.index_select(dim, index)


def _rot90(x: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    first, second = dims
    turns = k % 4
    if turns == 0:
        return x
    if turns == 2:
        return x.flip((first, second))
    return x.flip(second if turns == 1 else first).transpose(first, second)


def _stacked(dim: int) -> Callable[[Sequence[Tensor]], Tensor]:
    return lambda tensors: torch.cat(list(tensors), dim)


def _vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
) -> Tensor:
    """The Euclidean norm, as a mean: over a width it is a limit statistic.

    Of a single entry it is the absolute value, which has a slope of its own at 0.
    """
    dims = list(range(x.dim())) if dim is None else list(dim)
    count = math.prod(int(x.shape[d]) for d in dims)
    if count == 1:
        return x.abs() if keepdim else x.abs().squeeze(dims)
    return (x.square().mean(dims, keepdim) * count).sqrt()


def _variance(
    x: Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Tensor:
    """The mean square deviation, with the module's own correction of the count."""
    dims = list(range(x.dim())) if dim is None else list(dim)
    count = math.prod(int(x.shape[d]) for d in dims)
    deviation = x - x.mean(dims, keepdim=True)
    rest = max(count - (1 if correction is None else correction), 0)
    return deviation.square().mean(dims, keepdim) * (count / rest if rest else math.nan)


def _variance_unbiased(
    x: Tensor, dim: Sequence[int] | None = None, unbiased: bool = True, keepdim: bool = False
) -> Tensor:
    return _variance(x, dim, correction=float(unbiased), keepdim=keepdim)


def _root(variance: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: variance(*args, **kwargs).sqrt()


def _offsets(x: Tensor) -> Tensor:
    """Column minus row of every entry of the last two dimensions."""
    rows, columns = (torch.arange(int(size), device=x.device) for size in x.shape[-2:])
    return columns - rows[:, None]


def _lower(x: Tensor, diagonal: int = 0) -> Tensor:
    return torch.where(_offsets(x) <= diagonal, x, 0.0)


def _upper(x: Tensor, diagonal: int = 0) -> Tensor:
    return torch.where(_offsets(x) >= diagonal, x, 0.0)


def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + a * b if value == 1 else x + a * b * value


def _lerp(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    return start + (end - start) * weight


TABLE: dict[torch._ops.OperatorBase, Callable[..., Any]] = {
    _aten.glu.default: _glu,
    _aten.repeat.default: _repeat,
    _aten.tile.default: _tile,
    _aten.repeat_interleave.self_int: _repeat_interleave,
    _aten.rot90.default: _rot90,
    _aten.fliplr.default: lambda x: x.flip(1),
    _aten.flipud.default: lambda x: x.flip(0),
    _aten.hstack.default: _stacked(1),
    _aten.vstack.default: _stacked(0),
    _aten.dstack.default: _stacked(2),
    _aten.expand_as.default: lambda x, other: x.expand(other.shape),
    _aten.linalg_vector_norm.default: _vector_norm,
    _aten.var.correction: _variance,
    _aten.std.correction: _root(_variance),
    _aten.var.dim: _variance_unbiased,
    _aten.std.dim: _root(_variance_unbiased),
    _aten.tril.default: _lower,
    _aten.triu.default: _upper,
    _aten.addcmul.default: _addcmul,
    _aten.lerp.Scalar: _lerp,
    _aten.lerp.Tensor: _lerp,
    _aten.einsum.default: einsum,
    **recurrent.TABLE,
}
"""What is decomposed, if it acts on values that depend on parameters."""


def decompositions(graph: fx.Graph, parameters: Collection[fx.Node]) -> dict[Any, Any]:
    """The part of `TABLE` that `graph` needs; empty if it has no such operation on parameters."""
    dependent = set(parameters)
    needed: dict[Any, Any] = {}
    for node in graph.nodes:
        if dependent.intersection(node.all_input_nodes):
            dependent.add(node)
            if node.target in TABLE and not _is_other_norm(node):
                needed[node.target] = TABLE[node.target]
    return needed


def _is_other_norm(node: fx.Node) -> bool:
    """A norm that is not Euclidean stays as it is, for a rule to refuse by name."""
    return base_name(node) == "linalg_vector_norm" and argument(node, 1, "ord", 2) != 2
