"""How much memory the results of a sampled kernel take, by number of examples and samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from tangency.infinite.layout import Block, Moments
from tangency.infinite.sampling.draw import Draw
from tangency.infinite.sampling.factors import Factor
from tangency.infinite.sampling.gaussians import Row
from tangency.infinite.sampling.noise import UNIT
from tangency.infinite.sampling.products import Factors

__all__ = ["Size", "size_of_result"]


class Size(NamedTuple):
    """Bytes of a result for one example and the samples of a rehearsal.

    Attributes:
        pairs: of what every pair of examples has.
        draws: of what every example has for every sample.
        work: beside the result, for every pair of examples, while it is made or used.
    """

    pairs: int = 0
    draws: int = 0
    work: int = 0

    def bytes(self, examples: int, samples: float) -> int:
        """For so many examples, and so many times the samples."""
        return self.pairs * examples**2 + round(self.draws * examples * samples)


def size_of_result(result: Any, *, sampled: bool) -> Size:
    """The size of what a memory holds; what does not grow with pairs or samples counts as none.

    Estimates from the few samples of a rehearsal have a smaller rank than those of the real run.
    """
    if isinstance(result, (Block, Moments)):
        size = _bytes(result)
        return Size(pairs=size, work=size)
    if isinstance(result, Draw):
        return Size(draws=_bytes(result))
    if isinstance(result, Factors):
        parts = [_factor(factor, sampled) for factor in result.all]
        white = UNIT * 8 * _rank(result.query, sampled) * _rank(result.key, sampled)
        return Size(pairs=sum(parts), work=white)
    if isinstance(result, tuple) and all(isinstance(row, Row) for row in result):
        parts = [_factor(row.factor, sampled) for row in result]
        blocks = [_bytes(row.blocks.values()) for row in result]
        return Size(pairs=sum(parts) + sum(blocks), work=max([*parts, *blocks]))
    return Size()


def _rank(factor: Factor, sampled: bool) -> int:
    return len(factor.matrix) if sampled else len(factor.kept)


def _factor(factor: Factor, sampled: bool) -> int:
    return len(factor.matrix) * _rank(factor, sampled) * factor.matrix.element_size()


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
