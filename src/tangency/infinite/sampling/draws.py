"""Joint samples of values over one data set, and of their tangents.

A value is coordinatewise a function psi of Gaussian values g_a. With G ~ N(0, K_g) over all
positions and examples, and tangents tau ~ N(0, T_g) independent of G, the samples u = psi(G) and
du = sum_a dpsi/dg_a tau_a have the second moments K(u, v) = E[u v] and
T(u, v) = E[du dv] = sum_ab E[du/dg_a dv/dg_b] T(g_a, g_b): the NNGP and the NTK. Estimates are
means over samples, hence positive semi-definite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from tangency.infinite.layout import Layout
from tangency.infinite.memory import Memory, rests_on_samples
from tangency.infinite.sampling.blockwise import BlockwisePairs, Diagonals
from tangency.infinite.sampling.draw import Draw, Sampling
from tangency.infinite.sampling.gaussians import GaussianVectors, Row
from tangency.infinite.sampling.matrices import matrix_of
from tangency.infinite.sampling.noise import UNIT, Noise
from tangency.infinite.sampling.plan import SamplingPlan
from tangency.infinite.sampling.products import Factors, factors_of
from tangency.infinite.sampling.uses import COVARIANCES
from tangency.infinite.values.position import Rearranged
from tangency.infinite.values.value import Value
from tangency.program.axes import size_of

if TYPE_CHECKING:
    from tangency.infinite.side import Side, SideTile

__all__ = ["Draws"]

FACTORED = 200
"""Positions from which the logits of attention are drawn by way of queries and keys."""

CHUNK = 1 << 21
"""Numbers of a value in the samples that are drawn at a time."""

_CHUNK_BYTES = 512
"""Bytes of memory for each of these numbers: with all that is made of it, it takes a quarter."""


class _Rows(NamedTuple):
    """What a Gaussian and its tangent are drawn with."""

    value: Row
    tangent: Row


class Draws:
    """The samples of all values on one side, drawn at first need.

    Samples of values are remembered as long as others ask for them; those that would take too much
    memory are made some samples at a time, as often as they are needed. A data set that begins
    with the examples of another has the other's samples in common.

    Args:
        side: the data set.
        whole: all of its examples.
        sampling: how to sample.
        plan: what may be forgotten, and how much memory there is.
        like: draws of the same examples; what is exact among them is taken over.
    """

    def __init__(
        self,
        side: Side,
        whole: SideTile,
        sampling: Sampling,
        plan: SamplingPlan,
        like: Draws | None = None,
    ) -> None:
        self.side = side
        self.plan = plan
        self.noise = Noise(sampling, side.device)
        self.correlated: set[Hashable] = set()
        """The Gaussians that others are correlated with."""
        ledger = plan.ledger()
        exact = (None, None) if like is None else (like.pairs.memory, like._known)
        memory = Memory(exact[0], name=COVARIANCES, ledger=ledger)
        self.pairs: BlockwisePairs = BlockwisePairs(whole, memory, plan)
        self._known: Memory = Memory(exact[1], name="draws", ledger=ledger)
        self._gaussians: dict[Value, int] = {}
        """Gaussians that were drawn, with their numbers."""
        self._streams: dict[Hashable, int] = {}
        self._values, self._tangents = GaussianVectors(), GaussianVectors()
        self._coordinates = self.noise.uniform(0)
        self._whole = slice(0, sampling.samples)
        self._part: slice | None = None
        self._passing: tuple[slice, dict[Value, Draw]] | None = None

    # -- samples -------------------------------------------------------------------------------

    @property
    def part(self) -> slice:
        """The samples that are being drawn."""
        return self._whole if self._part is None else self._part

    @property
    def samples(self) -> int:
        """Their number."""
        return int(self.part.stop - self.part.start)

    @property
    def diagonals(self) -> Diagonals:
        """The covariances of every example with itself, among those of all pairs."""
        return Diagonals(self.side, self.pairs)

    def of(self, value: Value, part: slice | None = None) -> Draw:
        """Samples of a value, `(S, *positions, n)`: some of them, or else those being drawn."""
        rests_on_samples()
        part = self._part if part is None else part
        if part is None:
            return self._remembered(value)
        if self._passes(value):
            return self._some(value, part)
        return _cut(self._all(value), part, self._whole)

    def _all(self, value: Value) -> Draw:
        with self._taking(None):
            return self._remembered(value)

    def for_pairs(self, value: Value, part: slice) -> Draw:
        """The same for covariances, which may be computed for some pairs of examples at a time.

        With each tile of them the samples are needed again. What would be drawn anew lies in a
        file, if there are files.
        """
        if not self._stored(value):
            return self.of(value, part)
        drawn = self._known.ask(("stored", value), lambda: self._in_parts(value))
        return _cut(cast(Draw, drawn), part, self._whole)

    def parts(self, *values: Value) -> Iterator[slice]:
        """All samples, so many at a time that those of the values fit into memory and cache."""
        passing = [size_of(v.positions) for v in values if self._passes(v) and not self._stored(v)]
        yield from self._in_steps(passing)

    def _in_steps(self, passing: list[int]) -> Iterator[slice]:
        """All samples, some at a time, for values with so many positions that are drawn anew."""
        step = self._whole.stop
        if passing:
            numbers = min(CHUNK, self.plan.memory // _CHUNK_BYTES)
            fitting = numbers // (max(passing) * self.side.count)
            step = min(step, max(UNIT, fitting // UNIT * UNIT))
        for start in range(0, self._whole.stop, step):
            yield slice(start, min(start + step, self._whole.stop))
        self._passing = None

    def through(self, value: Value) -> Draw:
        """Samples of a value from those of its parts, tangents by forward-mode derivatives."""
        return push_forward(
            partial(value.from_parts, self.side), [self.of(part) for part in value.parts]
        )

    def coordinates(self, width: int) -> Tensor:
        """For each sample a coordinate of a width, `(S,)`; the same one for values of equal width.

        Data and constants that vary along a width are read at this coordinate.
        """
        rests_on_samples()
        return (self._coordinates[self.part] * width).long().clamp_max(width - 1)

    def normal(self, owner: Value, *shape: int) -> Tensor:
        """Independent standard normal numbers of a value's own, `(S, *shape)`."""
        size, stream = math.prod(shape), self.stream(owner)
        if self.plan.passes(size // self.side.count):
            return self.noise.normal(stream, self.part, size).reshape(self.samples, *shape)
        return self.noise.matched(stream, size)[:, self.part].T.reshape(self.samples, *shape)

    def stream(self, owner: Value, number: int = 0) -> int:
        """The number of a stream of random numbers of a value's own, in the order of first use."""
        return self._streams.setdefault((owner, number), 2 + len(self._streams))

    def factors(self, owner: Value, query: Value, key: Value) -> Factors:
        """What the samples of the product `owner` are made of."""
        found = self._known.ask(("factors", owner), lambda: factors_of(self, query, key))
        return cast(Factors, found)

    def release(self) -> None:
        """Forget all samples and what was made of them, when the group is done.

        What is exact is forgotten too after a rehearsal, and if there is no memory to keep it.
        """
        for memory in (self.pairs.memory, self._known):
            memory.forget_samples()
            if not self.plan.keeps_exact:
                memory.clear()
        self._gaussians.clear()
        self._values, self._tangents = GaussianVectors(), GaussianVectors()
        self._passing = None

    def _passes(self, value: Value) -> bool:
        """Whether samples of a value are made some at a time, and not remembered."""
        return self.plan.passes(size_of(value.positions)) and not self._pooled(value)

    def _stored(self, value: Value) -> bool:
        """Whether samples that would be made again and again lie in a file."""
        return self._passes(value) and self.plan.stores(size_of(value.positions))

    def _in_parts(self, value: Value) -> Draw:
        """All samples of a value in a file."""
        rests_on_samples()
        sizes = [axis.size for axis in value.positions]
        like = torch.empty(0, dtype=torch.float64)
        files = [
            self.plan.scratch.empty(self.side.count, self._whole.stop, *sizes, like=like)
            for _ in range(2)
        ]
        whole = Draw(*(file.movedim(0, -1) for file in files))
        for part in self._in_steps([size_of(value.positions)]):
            for samples, some in zip(whole, self._some(value, part), strict=True):
                samples[part] = some
                self.plan.scratch.touched(8 * some.numel())
        return whole

    def _pooled(self, value: Value) -> bool:
        """Whether a value is drawn jointly over all positions and examples."""
        return value.gaussian and not self._by_parts(value)

    def _remembered(self, value: Value) -> Draw:
        if self._pooled(value):
            return cast(Draw, self._known.ask(("pooled", value), lambda: self._gaussian(value)))
        return cast(Draw, self._known.ask(("draw", value), lambda: self._drawn(value)))

    def _some(self, value: Value, part: slice) -> Draw:
        if self._passing is None or self._passing[0] != part:
            self._passing = part, {}
        known = self._passing[1]
        if value not in known:
            with self._taking(part):
                known[value] = self._drawn(value)
        return known[value]

    def _drawn(self, value: Value) -> Draw:
        rests_on_samples()
        draw = value.draw(self)
        shape = (self.samples, *(axis.size for axis in value.positions), self.side.count)
        return Draw(draw.value.expand(shape), draw.tangent.expand(shape))

    @contextmanager
    def _taking(self, part: slice | None) -> Iterator[None]:
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    # -- Gaussian values -----------------------------------------------------------------------

    def _by_parts(self, value: Value) -> bool:
        """Whether a Gaussian value is drawn as a function of its parts.

        That is cheaper where it repeats or reorders positions of another (a bias by relative place
        has fewer entries than pairs of tokens), or has very many and is a product of factors.
        """
        size = size_of(value.positions)
        if isinstance(value, Rearranged):
            return size_of(value.source.positions) <= size
        return value.factored and size >= FACTORED

    def _gaussian(self, value: Value) -> Draw:
        """Draw a Gaussian value given all that were drawn before it."""
        rests_on_samples()
        positions = size_of(value.positions)
        self.plan.check(positions)
        rows = cast(_Rows, self._known.ask(("rows", value), lambda: self._rows(value)))
        last = self.plan.uses is not None and value not in self.plan.correlated
        number = self._gaussians.setdefault(value, len(self._gaussians))
        size = positions * self.side.count
        sizes = [axis.size for axis in value.positions]
        parts = []
        for kind, vectors in enumerate((self._values, self._tangents)):
            noise = self.noise.matched(-1 - 2 * number - kind, size)
            scratch = self.plan.scratch
            samples = vectors.extend(value, rows[kind], noise, last=last, scratch=scratch)
            parts.append(samples.T.reshape(self._whole.stop, -1, *sizes).movedim(1, -1))
        return Draw(*parts)

    def _rows(self, value: Value) -> _Rows:
        """What a Gaussian is drawn with, given all that were drawn before it."""
        own = self.pairs.moments(value, value, frozenset())
        assert own is not None
        # What is iterated over grows if a covariance needs further samples.
        crossed: dict[Value, tuple[Tensor, Tensor | None]] = {}
        while rest := [v for v in self._related(value) if v not in crossed]:
            found = self.pairs.moments(value, rest[0], frozenset())
            crossed[rest[0]] = (torch.zeros(()), None) if found is None else found
        before = set(self._before(value))
        rows = []
        for kind, vectors in enumerate((self._values, self._tangents)):
            earlier: dict[Hashable, Tensor] = {
                other: self._matrix(block, value, other)
                for other, pair in crossed.items()
                if (block := pair[kind]) is not None and block.dim()
            }
            matrix = self._matrix(own[kind], value, value)
            rows.append(vectors.row(matrix, earlier, before, self.plan.scratch))
            self.correlated |= rows[-1].blocks.keys()
        if any(self._known.rests_on_samples(("rows", v)) for v in self.correlated):
            rests_on_samples()
        return _Rows(*rows)

    def _before(self, value: Value) -> list[Value]:
        """The Gaussians that are drawn before another one."""
        number = self._gaussians.get(value, len(self._gaussians))
        return [v for v, other in self._gaussians.items() if other < number]

    def _related(self, value: Value) -> list[Value]:
        """Those of them that may be correlated with it."""
        return [v for v in self._before(value) if not value.origins.isdisjoint(v.origins)]

    def _matrix(self, block: Tensor | None, u: Value, v: Value) -> Tensor:
        """A block `(*left, *right, n, n)` as a new matrix, the examples outermost."""
        layout = Layout(u.positions, v.positions)
        if block is None:
            n = self.side.count
            shape = n * size_of(layout.left), n * size_of(layout.right)
            return torch.zeros(shape, dtype=torch.float64, device=self.side.device)
        return matrix_of(block, layout, self.side.count, self.plan.scratch)


def _cut(draw: Draw, part: slice, whole: slice) -> Draw:
    return draw if part == whole else Draw(*(samples[part] for samples in draw))


def push_forward(function: Callable[..., Tensor], parts: Sequence[Draw]) -> Draw:
    """Samples of a function of values, and of its tangent by forward-mode derivatives."""
    smooth = [i for i, part in enumerate(parts) if part.value.is_floating_point()]

    def of_smooth(*values: Tensor) -> Tensor:
        arguments = [part.value for part in parts]
        for i, value in zip(smooth, values, strict=True):
            arguments[i] = value
        return function(*arguments)

    primals = tuple(parts[i].value for i in smooth)
    if not smooth:
        value = of_smooth()
        return Draw(value, torch.zeros_like(value, dtype=torch.float64))
    tangents = tuple(parts[i].tangent for i in smooth)
    value, tangent = torch.func.jvp(of_smooth, primals, tangents)  # type: ignore[misc]
    if not value.is_floating_point():  # a comparison
        tangent = torch.zeros_like(value, dtype=torch.float64)
    return Draw(value, tangent)
