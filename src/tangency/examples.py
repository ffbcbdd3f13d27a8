"""A batch of examples: any pytree of tensors with a common leading dimension."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tangency.errors import InvalidInput

__all__ = [
    "Examples",
    "arguments",
    "arrange",
    "cast",
    "check",
    "concatenate",
    "count",
    "dense",
    "largest",
    "take",
    "tensors",
]

Examples: TypeAlias = object
"""A tensor, or a (nested) tuple, list or dictionary of tensors, all with the same leading size."""


def tensors(x: Examples) -> list[Tensor]:
    """The tensors of the pytree `x`, in a fixed order."""
    return [leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]


def count(x: Examples) -> int:
    """Number of examples n, the common leading size."""
    return int(tensors(x)[0].shape[0])


def _map(function: Callable[[Tensor], Tensor], x: Examples) -> Examples:
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, x)


def take(x: Examples, index: slice | Tensor) -> Examples:
    """The examples that `index` selects along the leading dimension."""
    return _map(lambda leaf: leaf[index], x)


def concatenate(x1: Examples, x2: Examples) -> Examples:
    """Examples of `x1` followed by those of `x2` (same tree structure)."""
    return pytree.tree_map(lambda a, b: torch.cat([a, b]) if isinstance(a, Tensor) else a, x1, x2)


def largest(x: Examples) -> int:
    """Which example has the largest norm, over all its floating-point numbers."""
    total = torch.zeros(count(x), dtype=torch.float64)
    for leaf in tensors(x):
        if leaf.is_floating_point():
            total += leaf.detach().reshape(len(leaf), -1).double().square().sum(1).cpu()
    return int(total.argmax())


def cast(x: Examples, dtype: torch.dtype) -> Examples:
    """Floating-point tensors of `x` in `dtype`; integers (tokens, masks) stay as they are."""
    return _map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, x)


def dense(x: Examples) -> Examples:
    """Sparse tensors of `x` (an adjacency of every example) as dense ones."""
    return _map(lambda leaf: leaf if leaf.layout is torch.strided else leaf.to_dense(), x)


def check(x: Examples, name: str = "x", *, like: Examples | None = None) -> None:
    """Refuse data that no kernel can be computed of.

    `name` is what the caller calls the data; `like` is an example batch whose tree structure,
    shapes (but for the leading size) and kind of numbers `x` must share.

    Raises:
        InvalidInput: no tensors, sparse ones, a scalar, an empty set, unequal leading sizes, NaN or
            infinity, or a structure, shape or kind of numbers other than that of `like`.
    """
    leaves = tensors(x)
    if not leaves:
        raise InvalidInput(
            f"{name} holds no torch.Tensor (got {type(x).__name__}): pass a tensor, or a tuple, "
            "list or dictionary of tensors with one row per example."
        )
    for leaf in leaves:
        if leaf.is_nested or leaf.layout is not torch.strided:
            kind = "nested" if leaf.is_nested else str(leaf.layout).removeprefix("torch.")
            raise InvalidInput(
                f"{name} holds a {kind} tensor, of which examples cannot be taken: pass a dense "
                "one (x.to_dense(); nested ones padded, with a mask)."
            )
        if leaf.dim() == 0:
            raise InvalidInput(f"{name} is a scalar: its first dimension must count the examples.")
        if leaf.is_floating_point() and not _finite(leaf):
            row = int((~torch.isfinite(leaf)).nonzero()[0, 0])
            raise InvalidInput(f"{name} holds NaN or infinite values, first in example {row}.")
    sizes = {int(leaf.shape[0]) for leaf in leaves}
    if len(sizes) > 1:
        raise InvalidInput(f"the tensors of {name} differ in their leading size: {sorted(sizes)}.")
    if sizes == {0}:
        raise InvalidInput(f"{name} is empty: it has no examples.")
    if like is not None:
        _check_like(arrange(x, like), name, like)


def _finite(values: Tensor) -> bool:
    """One pass where all is well: a finite sum has finite terms."""
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _check_like(x: Examples, name: str, like: Examples) -> None:
    if pytree.tree_structure(x) != pytree.tree_structure(like):
        raise InvalidInput(
            f"{name} is structured as {pytree.tree_structure(x)}, "
            f"but the example input as {pytree.tree_structure(like)}."
        )
    for leaf, model in zip(tensors(x), tensors(like), strict=True):
        if leaf.shape[1:] != model.shape[1:]:
            raise InvalidInput(
                f"{name} has examples of shape {tuple(leaf.shape[1:])}, "
                f"but the example input has {tuple(model.shape[1:])}."
            )
        if leaf.is_floating_point() != model.is_floating_point():
            raise InvalidInput(
                f"{name} has dtype {leaf.dtype}, but the example input has {model.dtype}: "
                "convert it, e.g. with x.float()."
            )


def arrange(x: Examples, like: Examples) -> Examples:
    """`x` with the entries of its dictionaries in the order that they have in `like`."""
    if isinstance(x, dict) and isinstance(like, dict) and x.keys() == like.keys():
        return {key: arrange(x[key], like[key]) for key in like}
    if isinstance(x, (tuple, list)) and isinstance(like, (tuple, list)) and len(x) == len(like):
        return type(x)(arrange(a, b) for a, b in zip(x, like, strict=True))
    return x


def arguments(x: Examples) -> tuple[tuple[object, ...], dict[str, object]]:
    """How a module is called on `x`: as `model(x)`, `model(*x)` or, a dictionary, `model(**x)`."""
    if isinstance(x, dict):
        return (), dict(x)
    if isinstance(x, (tuple, list)):
        return tuple(x), {}
    return (x,), {}
