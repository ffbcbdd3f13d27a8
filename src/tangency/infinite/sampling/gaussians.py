"""Correlated Gaussian vectors, drawn one after another as they are needed."""

from __future__ import annotations

from collections.abc import Container, Hashable
from typing import NamedTuple

from torch import Tensor

from tangency.infinite.sampling.factors import Factor
from tangency.infinite.sampling.scratch import IN_MEMORY, Scratch

__all__ = ["GaussianVectors", "Row", "factor_of"]


class Row(NamedTuple):
    """A row of the block factor of a joint covariance: g = sum_j blocks_j z_j + factor z."""

    blocks: dict[Hashable, Tensor]
    factor: Factor


class GaussianVectors:
    """Zero-mean jointly Gaussian vectors g_1, g_2, ..., of which each is drawn given all before.

    With white noise z_j, g_k = sum_j A_kj z_j, where A is the block Cholesky factor of the joint
    covariance. It grows by a row of blocks with each vector; blocks between vectors that are
    uncorrelated (also by way of others) are zero and left out. Vectors have names.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Row, Tensor]] = {}

    def extend(
        self,
        name: Hashable,
        row: Row,
        noise: Tensor,
        *,
        last: bool = False,
        scratch: Scratch = IN_MEMORY,
    ) -> Tensor:
        """Draw the next vector.

        Args:
            name: of the vector.
            row: what `row` gives for it.
            noise: independent standard normal numbers, `(N, S)`.
            last: whether no later vector is correlated with it.
            scratch: where noise and samples go.

        Returns:
            S samples, `(N, S)`.
        """
        taken = row.factor.white(noise)
        samples = row.factor.times(taken)
        for j, block in row.blocks.items():
            samples = samples + block @ self._known[j][1]
        if not last:
            self._known[name] = row, scratch.moved(taken)
        return scratch.moved(samples)

    def row(
        self,
        own: Tensor,
        earlier: dict[Hashable, Tensor],
        before: Container[Hashable] | None = None,
        scratch: Scratch = IN_MEMORY,
    ) -> Row:
        """The row of the next vector.

        Args:
            own: its covariance, `(N, N)`, positive semi-definite up to rounding; it is overwritten.
            earlier: its covariance `(N, N_j)` with the vectors j with which it is correlated.
            before: the vectors that come before it, if it is drawn anew and others are there.
            scratch: where its covariance lies, and the row goes.
        """
        before = self._known.keys() if before is None else before
        blocks = self._blocks(earlier, before, scratch)
        sd = own.diagonal().clamp_min(0).sqrt()
        for block in blocks.values():
            if own.requires_grad or block.requires_grad:
                own = own - block @ block.T
            else:
                own.addmm_(block, block.T, alpha=-1)
        return Row(blocks, Factor(own, sd, scratch))

    def _blocks(
        self, earlier: dict[Hashable, Tensor], before: Container[Hashable], scratch: Scratch
    ) -> dict[Hashable, Tensor]:
        """The blocks A_kj, j < k, by forward substitution."""
        blocks: dict[Hashable, Tensor] = {}
        for j, (known, _) in self._known.items():
            if j not in before:
                continue
            rest = earlier.get(j)
            for i, block in known.blocks.items():
                if i in blocks:
                    part = blocks[i] @ block.T
                    rest = -part if rest is None else rest - part
            if rest is not None:
                blocks[j] = scratch.moved(known.factor.divide(rest))
        return blocks


def factor_of(covariance: Tensor, scratch: Scratch) -> Factor:
    """The factor of a covariance, which lies in `scratch` and is overwritten."""
    return Factor(covariance, covariance.diagonal().clamp_min(0).sqrt(), scratch)
