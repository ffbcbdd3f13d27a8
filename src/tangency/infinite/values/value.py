"""What every value of the infinite-width engine can say about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar, cast

from torch import Tensor

from tangency.infinite.layout import Block, Layout, Moments, Positions, Ties, place
from tangency.program.axes import Axis, size_of

if TYPE_CHECKING:
    from tangency.infinite.pairs import Pairs
    from tangency.infinite.sampling.draw import Draw
    from tangency.infinite.sampling.draws import Draws
    from tangency.infinite.side import Side

__all__ = [
    "Ask",
    "Covariance",
    "Value",
    "at_odds",
    "diagonal",
    "fill",
    "leaves_of",
    "to_positions",
    "uncorrelated",
    "untied",
]

T = TypeVar("T")


class Value(ABC):
    """Over its width axis, i.i.d. copies of a random variable, one per example and position.

    Quantities of one value on one side (a data set of n examples) have shape `(*positions, n)`.
    """

    precedence: ClassVar[float] = 0
    """Of two values that meet in a covariance, the one with the higher precedence expands."""

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self._made: dict[Hashable, Any] = {}

    def memo(self, make: Callable[..., T], *args: Hashable) -> T:
        """`make(self, *args)`, made once: what is remembered of it is remembered by identity."""
        key = (make, *args)
        if key not in self._made:
            self._made[key] = make(self, *args)
        return cast(T, self._made[key])

    @property
    @abstractmethod
    def gaussian(self) -> bool:
        """Whether the value is a zero-mean Gaussian, jointly with all other such values."""

    @property
    @abstractmethod
    def centred(self) -> bool:
        """Whether the mean is zero by construction."""

    @abstractmethod
    def second_moment(self, side: Side) -> Tensor:
        """E[u^2], shape `(*positions, n)`; exact on its own recursion."""

    def mean(self, side: Side) -> Tensor | None:
        """E[u], shape `(*positions, n)`; None where it is zero by construction."""
        return None

    @abstractmethod
    def covariance(self, other: Value, layout: Layout, pairs: Pairs) -> Block | None:
        """The block of this value (left) and `other` (right), whose precedence is not higher.

        None where the two are uncorrelated because they share no randomness.
        """

    def moments(self, other: Value, layout: Layout, pairs: Pairs) -> Moments | None:
        """The same covariance as float64 moments; linear values compute these first."""
        return pairs.from_block(self, other, layout)

    # -- coordinate by coordinate --------------------------------------------------------------

    @property
    def parts(self) -> tuple[Value, ...]:
        """The values of which each coordinate is a function, of the same coordinate of each."""
        return ()

    def from_parts(self, side: Side, *parts: Tensor) -> Tensor:
        """That function, on samples `(S, *positions, n)` of the parts; may be broadcast."""
        raise NotImplementedError(f"{type(self).__name__} is a source of randomness")

    @cached_property
    def origins(self) -> frozenset[Hashable]:
        """The sources of randomness behind one coordinate: weights, biases, tables, masks.

        Values without a common origin are independent.
        """
        return frozenset[Hashable]().union(*(part.origins for part in self.parts))

    @cached_property
    def sampled(self) -> bool:
        """Whether the value's own moments are estimates from samples."""
        return any(part.sampled for part in self.parts)

    @cached_property
    def factored(self) -> bool:
        """Whether a part of the value is drawn without the covariance of all its positions."""
        return any(part.factored for part in self.parts)

    @property
    def odd_in(self) -> frozenset[Hashable]:
        """Origins in which the value is odd: it is uncorrelated with all that lacks one of them."""
        return frozenset()

    @property
    def leaves(self) -> tuple[Value, ...]:
        """The values of which this is a linear combination by construction."""
        return (self,)

    def at_odds_with(self, other: Value) -> bool:
        """Whether the covariance with `other`, a value of no higher precedence that depends on the
        same origins, is sampled while that of one of the two with itself is exact.
        """
        return False

    @cached_property
    def bundled(self) -> bool:
        """Whether neighbouring coordinates depend on each other."""
        return any(part.bundled for part in self.parts)

    def draw(self, draws: Draws) -> Draw:
        """Joint samples of this value and of its tangent."""
        return draws.through(self)

    @property
    def whole(self) -> bool:
        """Whether covariances follow from samples, which those of all examples have in common."""
        return False

    @property
    def reads(self) -> int:
        """Number of positions that the value is made of."""
        return 1

    def numbers_held(self, one: Callable[[], Side]) -> int:
        """Numbers that a side remembers of it for every example and position, about.

        Args:
            one: a side of the example with the largest norm, for values of which the data decide.
        """
        return 6

    @property
    def gathers(self) -> int:
        """Number of positions of it or of what it gathers by weights that are sampled."""
        return size_of(self.positions)


def leaves_of(parts: Sequence[Value]) -> tuple[Value, ...]:
    """The leaves of a linear combination of `parts`, each once."""
    return tuple(dict.fromkeys(leaf for part in parts for leaf in part.leaves))


def uncorrelated(u: Value, v: Value) -> bool:
    """Whether two values are so by construction; most pairs of a deep residual network are."""
    if (u.centred or v.centred) and u.origins.isdisjoint(v.origins):
        return True
    return not (u.odd_in <= v.origins and v.odd_in <= u.origins)


def at_odds(u: Value, v: Value) -> bool:
    """Whether the covariance of two values is sampled and that of one with itself is exact."""
    if u.origins.isdisjoint(v.origins):
        return False
    return any(_leaves_at_odds(a, b) for a in u.leaves for b in v.leaves)


def _leaves_at_odds(u: Value, v: Value) -> bool:
    if u.origins.isdisjoint(v.origins) or uncorrelated(u, v):
        return False
    expands, other = (u, v) if u.precedence >= v.precedence else (v, u)
    return expands.at_odds_with(other)


def to_positions(values: Tensor, have: Positions, want: Positions) -> Tensor:
    """A side quantity over positions `have` as one that broadcasts over `want`."""
    lead = values.dim() - 1 - len(have)
    return place(values, [want.index(a) for a in have], len(want), lead=lead)


def fill(values: Tensor, dim: int, size: int) -> Tensor:
    """`values` with a broadcast dimension expanded."""
    if values.shape[dim] == size:
        return values
    return values.expand(*values.shape[:dim], size, *values.shape[dim + 1 :])


Covariance = TypeVar("Covariance", Block, Moments)

Ask: TypeAlias = Callable[[Value, Value, Ties], "Covariance | None"]
"""`pairs.block` or `pairs.moments`: what selects positions does the same to both."""


def untied(
    u: Value, v: Value, tie: tuple[Axis, Axis], layout: Layout, ask: Ask[Covariance]
) -> Covariance | None:
    """A tied covariance as the diagonal of the one in which the two axes are free."""
    wide = Layout(layout.left, layout.right, layout.ties - {tie})
    return diagonal(ask(u, v, wide.ties), tie, wide)


def diagonal(
    covariance: Covariance | None, tie: tuple[Axis, Axis], wide: Layout
) -> Covariance | None:
    """A tied covariance as the diagonal of the one, laid out by `wide`, with free axes."""
    if covariance is None:
        return None
    i, j = wide.index("left", tie[0]), wide.index("right", tie[1])
    size = tie[0].size

    def take(values: Tensor) -> Tensor:
        whole = fill(fill(values, i, size), j, size)
        return whole.diagonal(dim1=i, dim2=j).movedim(-1, i)

    first, ntk = covariance
    return type(covariance)(take(first), None if ntk is None else take(ntk))
