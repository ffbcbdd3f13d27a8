"""How much room the results of a sampled kernel take, by number of examples and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from tangency.infinite.layout import Block, Moments
from tangency.infinite.sampling.draw import Draw
from tangency.infinite.sampling.factors import Factor
from tangency.infinite.sampling.gaussians import Row
from tangency.infinite.sampling.noise import UNIT
from tangency.infinite.sampling.products import Factors

__all__ = ["InFile", "Part", "Room", "Size", "room_of", "size_of_result"]

InFile: TypeAlias = Callable[[int], bool]
"""Whether a tensor of so many bytes goes to a file."""


class Room(NamedTuple):
    """Bytes in memory and in files."""

    memory: int = 0
    files: int = 0

    def plus(self, *others: Room) -> Room:
        """The sum."""
        every = (self, *others)
        return Room(sum(room.memory for room in every), sum(room.files for room in every))


class Part(NamedTuple):
    """Bytes of a tensor for one example and the samples of a rehearsal.

    Attributes:
        pairs: of what every pair of examples has.
        draws: of what every example has for every sample.
        movable: whether it may go to a file.
    """

    pairs: int = 0
    draws: int = 0
    movable: bool = True

    def room(self, examples: int, samples: float, in_file: InFile) -> Room:
        """For so many examples, and so many times the samples."""
        size = self.pairs * examples**2 + round(self.draws * examples * samples)
        return Room(files=size) if self.movable and in_file(size) else Room(memory=size)


def room_of(parts: Iterable[Part], examples: int, samples: float, in_file: InFile) -> Room:
    """The room of some tensors."""
    return Room().plus(*(part.room(examples, samples, in_file) for part in parts))


class Size(NamedTuple):
    """The tensors of a result, and those beside it while it is made or used."""

    held: tuple[Part, ...] = ()
    work: tuple[Part, ...] = ()

    @property
    def pairs(self) -> int:
        """Bytes of what every pair of examples has."""
        return sum(part.pairs for part in self.held)

    def noise(self, *, movable: bool) -> tuple[Part, ...]:
        """What Gaussian samples are made of: as much as they."""
        return tuple(Part(draws=part.draws, movable=movable) for part in self.held)


def size_of_result(result: Any, *, sampled: bool) -> Size:
    """The size of what a memory holds; what does not grow with pairs or samples counts as none.

    Estimates from the few samples of a rehearsal have a smaller rank than those of the real run.
    """
    if isinstance(result, (Block, Moments)):
        parts = tuple(Part(pairs=_bytes(tensor)) for tensor in result if tensor is not None)
        return Size(parts, parts)
    if isinstance(result, Draw):
        return Size(tuple(Part(draws=_bytes(tensor)) for tensor in result))
    if isinstance(result, Factors):
        parts = tuple(Part(_factor(factor, sampled)) for factor in result.all)
        white = UNIT * 8 * _rank(result.query, sampled) * _rank(result.key, sampled)
        return Size(parts, (Part(white),))
    if isinstance(result, tuple) and all(isinstance(row, Row) for row in result):
        factors = [Part(_factor(row.factor, sampled)) for row in result]
        blocks = [Part(_bytes(block)) for row in result for block in row.blocks.values()]
        # Beside a factor its covariance, and beside blocks those with the vectors before.
        return Size((*factors, *blocks), (factors[0], *blocks))
    return Size()


def _rank(factor: Factor, sampled: bool) -> int:
    return len(factor.matrix) if sampled else len(factor.kept)


def _factor(factor: Factor, sampled: bool) -> int:
    return len(factor.matrix) * _rank(factor, sampled) * factor.matrix.element_size()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
