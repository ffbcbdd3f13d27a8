"""Values as functions of one Gaussian, or of several: which Gaussians, and which function.

A chain of pointwise operations is one composite function. The Gaussian that it rests on, its base,
is taken as deep as sums of one term go, so that `x * sigmoid(1.7 * x)` is a function of x alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangency.infinite.layout import Positions
from tangency.infinite.values.composite import Composite
from tangency.infinite.values.composite_of_two import CompositeOfTwo
from tangency.infinite.values.product import Product
from tangency.infinite.values.sources import One
from tangency.infinite.values.sum import Sum, Term
from tangency.infinite.values.value import Value, to_positions

if TYPE_CHECKING:
    from tangency.infinite.side import Side

__all__ = ["base_of", "bases_of", "evaluate", "is_fixed", "key_of"]


def base_of(values: Sequence[Value]) -> Value | None:
    """The one Gaussian of which all `values` are functions; None if there is no such."""
    bases = bases_of(values)
    return bases[0] if bases is not None and len(bases) == 1 else None


def bases_of(values: Sequence[Value]) -> list[Value] | None:
    """The Gaussians of which all `values` are pointwise functions; None if they are not."""
    bases: list[Value] = []
    for value in values:
        found = _bases(value)
        if found is None:
            return None
        bases.extend(b for b in found if b not in bases)
    return bases


def _bases(value: Value) -> list[Value] | None:
    if isinstance(value, One):
        return []
    if isinstance(value, Composite):
        return _bases(value.source)
    if isinstance(value, CompositeOfTwo):
        return list(value.sources)
    if isinstance(value, Product):
        return bases_of(value.factors)
    if isinstance(value, Sum):
        gaussians = [term for term in value.terms if term.value.gaussian]
        if value.gaussian and len(gaussians) > 1:
            return [value]
        if len(gaussians) > 1:
            return _with_rest(value)
        return bases_of([term.value for term in value.terms])
    return [value] if value.gaussian else None


def _with_rest(value: Sum) -> list[Value] | None:
    """A sum of Gaussians as one, and other terms, which must not depend on a part of that sum."""
    rest = bases_of([term.value for term in value.terms if not term.value.gaussian])
    whole = value.gaussian_part
    if rest is None or any(base.origins & whole.origins for base in rest):
        return None
    return [whole, *rest]


def is_fixed(value: Value, bases: Sequence[Value]) -> bool:
    """Whether the value is the same function of its bases for all examples and positions."""
    if value in bases or isinstance(value, (One, CompositeOfTwo)):
        return True
    if isinstance(value, Composite):
        return value.fixed and is_fixed(value.source, bases)
    if isinstance(value, Sum):
        terms = _other_terms(value, bases)
        return all(not t.coefficients and is_fixed(t.value, bases) for _, t in terms)
    return all(is_fixed(part, bases) for part in value.parts)


def evaluate(
    value: Value, samples: Mapping[Value, Tensor], side: Side | None, positions: Positions
) -> Tensor:
    """`value` at samples `(nodes, *positions, n)` of its bases.

    Without a side, of values that are fixed functions of them.
    """
    if value in samples:
        return samples[value]
    some = next(iter(samples.values()))
    if isinstance(value, One):
        return torch.ones_like(some)
    if isinstance(value, Composite):
        return value.function(side, positions)(evaluate(value.source, samples, side, positions))
    if isinstance(value, CompositeOfTwo):
        first, second = (evaluate(source, samples, side, positions) for source in value.sources)
        return value.function(first, second)
    if isinstance(value, Product):
        factors = [evaluate(factor, samples, side, positions) for factor in value.factors]
        return math.prod(factors[1:], start=factors[0])
    assert isinstance(value, Sum)
    total = samples.get(value.gaussian_part, torch.zeros_like(some))
    for i, term in _other_terms(value, samples):
        part = evaluate(term.value, samples, side, positions)
        if not term.coefficients:
            total = total + term.number * part
            continue
        assert side is not None
        amplitude = to_positions(value.amplitude(i, side), value.positions, positions)
        total = total + amplitude * part
    return total


def _other_terms(value: Sum, bases: Collection[Value]) -> list[tuple[int, Term]]:
    """The terms, with their numbers; those that one of the bases stands for are left out."""
    terms = list(enumerate(value.terms))
    if value.gaussian_part not in bases:
        return terms
    return [(i, term) for i, term in terms if not term.value.gaussian]


def key_of(value: Value, bases: Sequence[Value]) -> Hashable:
    """Equal keys mean the same function of the bases."""
    if value in bases:
        return ("z", bases.index(value))
    if isinstance(value, One):
        return 1
    if isinstance(value, Composite):
        return (value.key, key_of(value.source, bases))
    if isinstance(value, CompositeOfTwo):
        return (value.key, *(key_of(source, bases) for source in value.sources))
    if isinstance(value, Product):
        return ("*", *(key_of(factor, bases) for factor in value.factors))
    assert isinstance(value, Sum)
    whole = key_of(value.gaussian_part, bases) if value.gaussian_part in bases else "+"
    return whole, *(
        (term.number, *map(id, term.coefficients), key_of(term.value, bases))
        for _, term in _other_terms(value, bases)
    )
