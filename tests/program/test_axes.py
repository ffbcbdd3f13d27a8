"""The algebra of axes: brackets move, atoms stay in order."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangency.program.axes import (
    BATCH,
    Axis,
    AxisError,
    batch,
    identify,
    position,
    rebracket,
    resolve,
    size_of,
    width,
)


def sizes(dims: tuple[tuple[Axis, ...], ...]) -> list[list[int]]:
    return [[axis.size for axis in resolve(dim)] for dim in dims]


def test_dimensions_of_size_one_have_no_axis() -> None:
    assert position(1) == width(1) == ()
    assert [a.kind for a in (*position(3), *width(4), batch())] == ["position", "width", "batch"]
    assert size_of((*position(3), *width(4))) == 12
    assert size_of(()) == 1


def test_rebracket_merges() -> None:
    n, (p,), (w,) = batch(), position(5), width(12)
    assert rebracket([n, p, w], [BATCH, 60]) == ((n,), (p, w))
    assert rebracket([n, p, w], [BATCH * 5, 1, 12]) == ((n, p), (), (w,))


def test_rebracket_splits_and_remembers() -> None:
    """A split is seen in every tensor that has the axis."""
    (w,) = width(12)
    first, second, third = rebracket([w], [2, 3, 2])
    assert resolve([w]) == (*first, *second, *third)
    assert [a.size for a in resolve([w])] == [2, 3, 2]
    assert {a.kind for a in resolve([w])} == {"width"}
    assert rebracket([w], [6, 2]) == ((*first, *second), third)


def test_rebracket_splits_off_from_the_outside() -> None:
    (p,), (w,) = position(6), width(10)
    assert sizes(rebracket([p, w], [3, 20])) == [[3], [2, 10]]
    assert [a.size for a in resolve([p])] == [3, 2]


@pytest.mark.parametrize(
    "wanted", [[5, 12], [8, 8], [61], [60, 2], [3, 4]], ids=lambda w: "x".join(map(str, w))
)
def test_what_cannot_be_viewed(wanted: list[int]) -> None:
    axes = [*position(4), *width(15)]
    with pytest.raises(AxisError):
        rebracket(axes, wanted) and rebracket(axes, [7, *wanted])


def test_the_batch_is_never_split() -> None:
    n, (p,) = batch(), position(4)
    with pytest.raises(AxisError):
        rebracket([n, p], [2, BATCH * 2])
    assert n.parts is None
    with pytest.raises(AxisError):
        identify([n], [*position(BATCH)])
    with pytest.raises(AxisError):
        identify([n, p], [*position(4), n])
    assert n.parts is None
    assert n.same is None


@st.composite
def factorisations(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Sizes of axes, and other sizes with the same product that cut between their primes.

    All primes stand in one order; both lists group it, so that each is a view of the other.
    """
    primes = draw(st.lists(st.sampled_from([2, 3, 5]), min_size=1, max_size=8))

    def grouped() -> list[int]:
        cuts = draw(st.lists(st.booleans(), min_size=len(primes), max_size=len(primes)))
        groups = [[primes[0]]]
        for prime, cut in zip(primes[1:], cuts[1:], strict=True):
            groups.append([prime]) if cut else groups[-1].append(prime)
        return [math.prod(group) for group in groups]

    return grouped(), grouped()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(shapes=factorisations(), kinds=st.lists(st.booleans(), min_size=8, max_size=8))
def test_rebracketing_and_back(shapes: tuple[list[int], list[int]], kinds: list[bool]) -> None:
    """Nothing is lost, added or reordered, whatever the brackets."""
    first, second = shapes
    dims = [position(s) if kind else width(s) for s, kind in zip(first, kinds, strict=False)]
    axes = [axis for dim in dims for axis in dim]
    try:
        there = rebracket(axes, second)
    except AxisError:
        # Both groupings cut the same sequence of primes, but an axis splits as a number does.
        assert not aligned(first, second)
        return
    assert [size_of(resolve(dim)) for dim in there] == second
    back = rebracket([axis for dim in there for axis in dim], first)
    flat = resolve(axes)
    assert resolve(axis for dim in there for axis in dim) == flat
    assert [resolve(dim) for dim in back] == [resolve([axis]) for axis in axes]
    for axis, kind in zip(axes, kinds, strict=False):
        assert {atom.kind for atom in resolve([axis])} == {"position" if kind else "width"}


def aligned(first: list[int], second: list[int]) -> bool:
    """Whether each partial product divides the next in the union of both: a common refinement."""
    edges = {1}
    for grouping in (first, second):
        for k in range(len(grouping)):
            edges.add(math.prod(grouping[: k + 1]))
    ordered = sorted(edges)
    return all(b % a == 0 for a, b in itertools.pairwise(ordered))


def test_identify_merges() -> None:
    (p,), (q,), (w,) = position(12), position(12), width(12)
    identify([p], [q])
    assert resolve([p]) == resolve([q])
    identify([q], [w])
    assert resolve([p]) == resolve([q]) == (w,)  # a width stays a width
    identify([w], [w])
    assert resolve([w]) == (w,)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(shapes=factorisations())
def test_identify_finds_the_common_refinement(shapes: tuple[list[int], list[int]]) -> None:
    first = [axis for size in shapes[0] for axis in width(size)]
    second = [axis for size in shapes[1] for axis in position(size)]
    if not aligned(*shapes):
        with pytest.raises(AxisError):
            identify(first, second)
        return
    identify(first, second)
    assert resolve(first) == resolve(second)
    edges = sorted(
        {math.prod(g[:k]) for g in (list(shapes[0]), list(shapes[1])) for k in range(len(g) + 1)}
    )
    assert [a.size for a in resolve(first)] == [b // a for a, b in itertools.pairwise(edges)]


def test_identify_refuses_what_does_not_align() -> None:
    with pytest.raises(AxisError):
        identify(width(4), position(6))
    with pytest.raises(AxisError):
        identify([*width(4), *width(3)], [*width(4)])
    with pytest.raises(AxisError):
        identify([*width(4), *width(3)], [*width(3), *width(4)])
