"""Joint samples of values over one data set, and of their tangents.

A value is coordinatewise a function psi of Gaussian values g_a. With G ~ N(0, K_g) over all
positions and examples, and tangents tau ~ N(0, T_g) independent of G, the samples u = psi(G) and
du = sum_a dpsi/dg_a tau_a have the second moments K(u, v) = E[u v] and
T(u, v) = E[du dv] = sum_ab E[du/dg_a dv/dg_b] T(g_a, g_b): the NNGP and the NTK. Estimates are
means over samples, hence positive semi-definite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from tangency.errors import InvalidInput, UnsupportedOperation
from tangency.infinite.layout import Layout
from tangency.infinite.memory import Memory, rests_on_samples
from tangency.infinite.pairs import Pairs
from tangency.infinite.sampling.gaussians import GaussianVectors
from tangency.infinite.values.position import Rearranged
from tangency.infinite.values.value import Value
from tangency.program.axes import size_of

if TYPE_CHECKING:
    from tangency.infinite.side import Side, SideTile

__all__ = ["Draw", "Draws", "NeedsSamples", "Sampling"]

MOST = 12_000
"""Positions times examples of one Gaussian value: its covariance takes 1.2 GB."""

FACTORED = 200
"""Positions from which the logits of attention are drawn by way of queries and keys."""


class NeedsSamples(UnsupportedOperation):
    """A covariance that has no closed form was asked for without samples."""


class Draw(NamedTuple):
    """S samples of a value and of its tangent, each `(S, *positions, n)`."""

    value: Tensor
    tangent: Tensor


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        samples: number of samples S.
        seed: equal seeds give equal samples.
        group: sets of samples with different group numbers are independent.
    """

    samples: int
    seed: int
    group: int = 0

    def generator(self, *key: int) -> np.random.SeedSequence:
        """A source of seeds for the random numbers that `key` names."""
        return np.random.SeedSequence([self.seed, self.group, *key])


class Draws:
    """The samples of all values on one side, drawn at first need.

    A data set that begins with the examples of another has the other's samples in common. What is
    exact among the pairs is taken over from `like`, pairs of the same examples.
    """

    def __init__(
        self, side: Side, whole: SideTile, sampling: Sampling, like: Pairs | None = None
    ) -> None:
        self.side = side
        self.samples = sampling.samples
        self.pairs = Pairs(whole, whole, like=like)
        self._sampling = sampling
        self._known = Memory()
        self._gaussians: list[Value] = []
        self._streams = 1
        self._values, self._tangents = GaussianVectors(), GaussianVectors()
        self._coordinates = self._uniform(0)

    def of(self, value: Value) -> Draw:
        """Samples of a value, `(S, *positions, n)`."""
        rests_on_samples()
        return cast(Draw, self._known.ask(value, lambda: self._drawn(value)))

    def _drawn(self, value: Value) -> Draw:
        pooled = value.gaussian and not self._by_parts(value)
        draw = self._gaussian(value) if pooled else value.draw(self)
        shape = (self.samples, *(axis.size for axis in value.positions), self.side.count)
        return Draw(draw.value.expand(shape), draw.tangent.expand(shape))

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
        return (self._coordinates * width).long().clamp_max(width - 1)

    def normal(self, *shape: int) -> Tensor:
        """New independent standard normal numbers, `(S, *shape)`, in the order of the calls."""
        self._streams += 1
        return self._noise(self._streams, int(np.prod(shape))).T.reshape(self.samples, *shape)

    def blocks(self, *shape: int) -> Callable[[int, int], Tensor]:
        """New standard normal numbers in blocks `(S, *shape)`, two numbers saying which."""
        self._streams += 1
        stream = self._streams

        def block(a: int, b: int) -> Tensor:
            noise = torch.randn(
                self.samples, *shape, generator=self._generator(stream, a, b), dtype=torch.float64
            )
            return noise.to(self.side.device)

        return block

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
        """Draw a Gaussian value given all that were drawn before."""
        size = size_of(value.positions) * self.side.count
        if size > MOST:
            raise InvalidInput(
                f"sampling needs the joint covariance of {size_of(value.positions)} positions of "
                f"{self.side.count} examples, more than {MOST} in all: ask for the kernel of fewer "
                "examples at a time, or of smaller inputs."
            )
        own = self._covariance(value, value)
        assert own is not None
        # The list that is iterated over grows if a covariance needs further samples.
        crossed = [
            None if value.origins.isdisjoint(other.origins) else self._covariance(value, other)
            for other in self._gaussians
        ]
        number = len(self._gaussians)
        self._gaussians.append(value)
        parts = []
        for kind, vectors in enumerate((self._values, self._tangents)):
            earlier = {j: pair[kind] for j, pair in enumerate(crossed) if pair is not None}
            noise = self._noise(-1 - 2 * number - kind, size)
            samples = vectors.extend(own[kind], earlier, noise)
            sizes = [axis.size for axis in value.positions]
            parts.append(samples.T.reshape(self.samples, -1, *sizes).movedim(1, -1))
        return Draw(*parts)

    def _covariance(self, u: Value, v: Value) -> tuple[Tensor, Tensor] | None:
        """Moment and NTK of all examples and positions, `(n * positions of u, n * ... of v)`."""
        moments = self.pairs.moments(u, v, frozenset())
        if moments is None:
            return None
        layout = Layout(u.positions, v.positions)
        ntk = torch.zeros_like(moments.moment) if moments.ntk is None else moments.ntk
        return self._matrix(moments.moment, layout), self._matrix(ntk, layout)

    def _matrix(self, block: Tensor, layout: Layout) -> Tensor:
        """A block `(*left, *right, n, n)` as a matrix, the examples outermost."""
        left, right, n = len(layout.left), len(layout.right), self.side.count
        sizes = [axis.size for axis in (*layout.left, *layout.right)]
        full = block.double().expand(*sizes, n, n)
        positions = range(left + right)
        order = [left + right, *positions[:left], left + right + 1, *positions[left:]]
        return full.permute(order).reshape(n * size_of(layout.left), n * size_of(layout.right))

    # -- random numbers ------------------------------------------------------------------------

    def _noise(self, stream: int, size: int) -> Tensor:
        """Standard normal numbers `(size, S)`; more of them begin with the same ones.

        The first S / 4 have mean 0, variance 1 and no correlation within the samples, exactly. On
        small data this makes errors 2 to 3 times smaller, for a bias of order 1 / S.
        """
        noise = torch.randn(
            size, self.samples, generator=self._generator(stream), dtype=torch.float64
        )
        noise[: self.samples // 4] = _matched(noise[: self.samples // 4])
        return noise.to(self.side.device)

    def _uniform(self, stream: int) -> Tensor:
        generator = self._generator(stream)
        uniform = torch.rand(self.samples, generator=generator, dtype=torch.float64)
        return uniform.to(self.side.device)

    def _generator(self, stream: int, *block: int) -> torch.Generator:
        source = self._sampling.generator(abs(stream), int(stream < 0), *block)
        state = source.generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]) >> 1)


def _matched(noise: Tensor) -> Tensor:
    """Rows made centred and orthonormal, each by itself and those before it."""
    centred = noise - noise.mean(1, keepdim=True)
    lower = torch.linalg.cholesky(centred @ centred.T / noise.shape[1])
    matched: Tensor = torch.linalg.solve_triangular(lower, centred, upper=False)
    return matched


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
