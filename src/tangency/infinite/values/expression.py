"""Values as functions of one Gaussian: which Gaussian, and which function.

A chain of pointwise operations is one composite function. The Gaussian that it rests on, its base,
is taken as deep as sums of one term go, so that `x * sigmoid(1.7 * x)` is a function of x alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Positions
from tangency.infinite.values.composite import Composite
from tangency.infinite.values.sources import One
from tangency.infinite.values.sum import Sum
from tangency.infinite.values.value import Value, to_positions

if TYPE_CHECKING:
    from tangency.infinite.side import Side

__all__ = ["base_of", "evaluate", "key_of"]


def base_of(values: Sequence[Value]) -> Value | None:
    """The one Gaussian of which all `values` are functions; None if there is no such."""
    bases: list[Value] = []
    for value in values:
        found = _bases(value)
        if found is None:
            return None
        bases.extend(b for b in found if b not in bases)
    return bases[0] if len(bases) == 1 else None


def _bases(value: Value) -> list[Value] | None:
    if isinstance(value, One):
        return []
    if isinstance(value, Composite):
        return _bases(value.source)
    if isinstance(value, Sum):
        gaussians = [term for term in value.terms if term.value.gaussian]
        if value.gaussian and len(gaussians) > 1:
            return [value]
        if len(gaussians) > 1:
            return _with_rest(value)
        found: list[Value] = []
        for term in value.terms:
            inner = _bases(term.value)
            if inner is None:
                return None
            found.extend(inner)
        return found
    return [value] if value.gaussian else None


def _with_rest(value: Sum) -> list[Value] | None:
    """A Gaussian sum plus constants; other terms would have to depend on the same sum."""
    rest = [term for term in value.terms if not term.value.gaussian]
    if any(not isinstance(term.value, One) for term in rest):
        return None
    return [value.gaussian_part]


def evaluate(value: Value, base: Value, side: Side, positions: Positions, z: Tensor) -> Tensor:
    """`value` at samples `z` `(nodes, *positions, n)` of its base."""
    if value is base:
        return z
    if isinstance(value, One):
        return torch.ones_like(z)
    if isinstance(value, Composite):
        return value.function(side, positions)(evaluate(value.source, base, side, positions, z))
    assert isinstance(value, Sum)
    total = torch.zeros_like(z)
    terms = list(enumerate(value.terms))
    if value.gaussian_part is base:
        total = z
        terms = [(i, term) for i, term in terms if not term.value.gaussian]
    for i, term in terms:
        amplitude = to_positions(value.amplitude(i, side), value.positions, positions)
        total = total + amplitude * evaluate(term.value, base, side, positions, z)
    return total


def key_of(value: Value, base: Value) -> Hashable:
    """Equal keys mean the same function of the base."""
    if value is base:
        return "z"
    if isinstance(value, One):
        return 1
    if isinstance(value, Composite):
        return (value.key, key_of(value.source, base))
    assert isinstance(value, Sum)
    if value.gaussian_part is base:
        rest = [term for term in value.terms if not term.value.gaussian]
        return ("z+", *((term.number, *map(id, term.coefficients)) for term in rest))
    return tuple(
        (term.number, *map(id, term.coefficients), key_of(term.value, base)) for term in value.terms
    )
