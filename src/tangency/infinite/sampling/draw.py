"""What samples are, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from tangency.errors import UnsupportedOperation

__all__ = ["Draw", "NeedsSamples", "Sampling"]


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
